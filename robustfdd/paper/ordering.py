"""Whether a run puts the methods in the order in which the paper has them, and how far its figures are from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from robustfdd.paper.matching import Pair
from robustfdd.paper.published import PublishedCell
from robustfdd.rounding import exact, mean

#: Figures at most this far apart, in percentage points, count as close.
CLOSE_POINTS = 2.0
#: The methods that every other one is meant to beat.
BASELINES = ("none", "original")
#: With two methods a rank correlation can only be 1 or -1.
LEAST_METHODS = 3
#: With fewer methods even the very same order has a p-value above 0.05: twice 1/4! is 0.083.
LEAST_FOR_P = 5

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ordering:
    """The order of the methods in one block: one table's clean accuracies, or one attack, norm and radius.

    Attributes:
        pairs: the figures of the block.
        spearman: Spearman's rank correlation of the run's figures with the published ones; equal figures share a rank.
        spearman_p: two-sided, exact: over all orders of the methods; None where it means nothing.
        kendall: Kendall's tau-b.
        kendall_p: likewise.
        remark: why something is None; empty otherwise.
    """

    pairs: tuple[Pair, ...]
    spearman: float | None = None
    spearman_p: float | None = None
    kendall: float | None = None
    kendall_p: float | None = None
    remark: str = ""

    @property
    def published(self) -> PublishedCell:
        """The first of the published figures."""
        return self.pairs[0].published

    @property
    def place(self) -> str:
        """The name of its table or figure."""
        return self.published.place

    def best(self, *, ours: bool) -> tuple[str, ...]:
        """The methods with the highest figure, by the name of the dropout."""
        return self.order(ours=ours)[0]

    def order(self, *, ours: bool) -> list[tuple[str, ...]]:
        """The methods from the highest figure to the lowest; equal ones stand together."""
        values = _figures(self.pairs, ours=ours)
        ranked = sorted(zip(values, (pair.published.method for pair in self.pairs), strict=True), reverse=True)
        return [tuple(sorted(name for _, name in group)) for _, group in groupby(ranked, key=lambda item: item[0])]


def _figures(pairs: Iterable[Pair], *, ours: bool) -> list[Fraction]:
    return [pair.mean if ours else pair.theirs for pair in pairs]


def _ranks(figures: Sequence[Fraction]) -> Array:
    """The place of every figure among the different ones, from 1: what rank statistics need, and no float can blur."""
    order = {figure: place for place, figure in enumerate(sorted(set(figures)), start=1)}
    return np.array([order[figure] for figure in figures], dtype=np.float64)


def _row_key(pair: Pair) -> tuple[object, ...]:
    return pair.published.row


def _measurement_key(pair: Pair) -> tuple[object, ...]:
    return pair.published.key[:-1]


def blocks(pairs: Iterable[Pair], key: Callable[[Pair], tuple[object, ...]] = _row_key) -> list[tuple[Pair, ...]]:
    """The pairs block by block, in the order in which the blocks first appear.

    Args:
        pairs: in any order.
        key: what the pairs of a block have in common; by default table or figure, attack, norm and radius.
    """
    found: dict[tuple[object, ...], list[Pair]] = {}
    for pair in pairs:
        found.setdefault(key(pair), []).append(pair)
    return [tuple(block) for block in found.values()]


def _exact_p(values: Array, statistic: Callable[[Array], Array]) -> float:
    """The two-sided p-value of a statistic over all orders of the values."""

    def along(sample: Array, axis: int) -> Any:
        return statistic(np.moveaxis(sample, axis, -1))

    test = stats.permutation_test(
        (values,),
        along,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=math.factorial(len(values)),
        alternative="two-sided",
    )
    return float(test.pvalue)


def order_block(block: Sequence[Pair]) -> Ordering:
    """Hold the order of a block against the published one."""
    ours, published = _ranks(_figures(block, ours=True)), _ranks(_figures(block, ours=False))
    remark = ""
    if len(block) < LEAST_METHODS:
        remark = f"fewer than {LEAST_METHODS} methods"
    elif len(set(published)) == 1:
        remark = "all published figures are equal"
    elif len(set(ours)) == 1:
        remark = "all figures of the run are equal"
    if remark:
        return Ordering(tuple(block), remark=remark)
    spearman, kendall = float(stats.spearmanr(published, ours)[0]), float(stats.kendalltau(published, ours)[0])
    if len(block) < LEAST_FOR_P:
        remark = f"fewer than {LEAST_FOR_P} methods: no p"
        return Ordering(tuple(block), spearman, kendall=kendall, remark=remark)
    ranks = stats.rankdata(published) - (len(block) + 1) / 2
    i, j = np.triu_indices(len(block), 1)
    signs = np.sign(published[i] - published[j])
    return Ordering(
        pairs=tuple(block),
        spearman=spearman,
        # Both statistics are the coefficients but for a factor that is the same for all orders.
        spearman_p=_exact_p(stats.rankdata(ours), lambda y: (y * ranks).sum(-1)),
        kendall=kendall,
        kendall_p=_exact_p(ours, lambda y: (np.sign(y[..., i] - y[..., j]) * signs).sum(-1)),
    )


@dataclass(frozen=True)
class Versus:
    """How often the run agrees with the paper on whether a method beats a baseline, over methods and blocks.

    Attributes:
        baseline: the name of its dropout.
        agreeing: comparisons with the same sign in both.
        decided: comparisons with a sign in both.
        tied: the others: equal in the run, or no further apart in the paper than the reading error.
    """

    baseline: str
    agreeing: int
    decided: int
    tied: int


def versus(found: Iterable[Sequence[Pair]], baseline: str) -> Versus:
    """Hold every method against a baseline in every block that has both."""
    agreeing = decided = tied = 0
    for block in found:
        base = next((pair for pair in block if pair.published.method == baseline), None)
        for pair in block:
            if base is None or pair is base:
                continue
            ours, published = pair.mean - base.mean, pair.theirs - base.theirs
            # Each of the two may be off by its reading error, in opposite directions.
            if ours == 0 or abs(published) <= exact(pair.reading_error) + exact(base.reading_error):
                tied += 1
            else:
                decided += 1
                agreeing += (ours > 0) == (published > 0)
    return Versus(baseline, agreeing, decided, tied)


@dataclass(frozen=True)
class Summary:
    """How far the figures of a run are from the published ones.

    Attributes:
        place: name of the table or figure; None for all of them.
        n_cells: how many figures.
        median: of the differences, the run minus the paper, in percentage points.
        mean_absolute: of the differences.
        n_close: differences of at most :data:`CLOSE_POINTS`.
        versus: one entry for each of :data:`BASELINES`.
        spearman: the median over the blocks that have a coefficient; None over all tables and figures.
        kendall: likewise.
        n_ordered: the blocks that have a coefficient; 0 over all tables and figures.
        n_same_best: those of them in which the run has the paper's best method at the top, in a tie of either or not.
    """

    place: str | None
    n_cells: int
    median: Fraction
    mean_absolute: Fraction
    n_close: int
    versus: tuple[Versus, ...]
    spearman: float | None
    kendall: float | None
    n_ordered: int
    n_same_best: int


def distinct(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs without those of a later table or figure that show the same again, as Figure 7 does of Table 3."""
    found: dict[tuple[object, ...], Pair] = {}
    for pair in pairs:
        found.setdefault(pair.published.key, pair)
    return list(found.values())


def _summary(
    place: str | None, pairs: Sequence[Pair], found: Sequence[Sequence[Pair]], orderings: Sequence[Ordering]
) -> Summary:
    differences = [pair.difference for pair in pairs]
    sizes = [abs(difference) for difference in differences]
    ordered = [item for item in orderings if item.spearman is not None]

    def middle(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    return Summary(
        place=place,
        n_cells=len(pairs),
        median=median(differences),
        mean_absolute=mean(sizes),
        n_close=sum(size <= CLOSE_POINTS for size in sizes),
        versus=tuple(versus(found, baseline) for baseline in BASELINES),
        spearman=middle(item.spearman for item in ordered),
        kendall=middle(item.kendall for item in ordered),
        n_ordered=len(ordered),
        n_same_best=sum(bool({*item.best(ours=True)} & {*item.best(ours=False)}) for item in ordered),
    )


def summarise(orderings: Sequence[Ordering]) -> list[Summary]:
    """The blocks in a few figures: for each table or figure, and over all, each measurement once."""
    summaries = []
    for place in dict.fromkeys(item.place for item in orderings):
        chosen = [item for item in orderings if item.place == place]
        found = [item.pairs for item in chosen]
        summaries.append(_summary(place, [pair for block in found for pair in block], found, chosen))
    once = distinct(pair for item in orderings for pair in item.pairs)
    return [*summaries, _summary(None, once, blocks(once, _measurement_key), ())]
