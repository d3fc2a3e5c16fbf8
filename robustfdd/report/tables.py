"""The tables of accuracy under attack, in the layout of Table 3 of Ke et al. (2020), and what all tables share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from scipy.stats import binomtest

from robustfdd.records import Verdict
from robustfdd.report.exhibit import GAP, Column, Exhibit, data, radius, table
from robustfdd.report.results import Metric, Place, Results
from robustfdd.report.study import (
    HALF_PRECISION,
    PROTOCOL_MEANINGS,
    VERDICT_MARKS,
    ZERO,
    Epsilon,
    Method,
    Study,
    count_text,
    file_stem,
    norm_title,
    seeds_text,
)
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import NAME, TITLE, WorstCase, explanation, worst_case
from robustfdd.rounding import Figure, exact, fixed, mean, rounded, variance, with_spread

#: How many values of a row are marked as the best.
BEST = 3

#: What the caption of the table in L-infinity says of its form.
LAYOUT = "Layout: Table 3 of Ke et al. (2020)."

#: What the caption of a table says where the mark of :meth:`Entry.text` for missing seeds stands in it.
INCOMPLETE = "‡ Some of the planned seeds are missing."

_TITLES: dict[Metric, str] = {"robust_accuracy": "Robust accuracy (%)", "survival_rate": "Survival rate (%)"}


@dataclass(frozen=True)
class Entry:
    """One method at one radius, in percent, over training seeds.

    Attributes:
        mean: over the seeds that have a record, exactly; None for a gap.
        variance: sample variance (divided by n - 1), exactly; None for fewer than two seeds.
        n_seeds: how many seeds have a record.
        n_planned: how many the plan has.
        verdict: of the audit of this very figure; None where it was not audited.
    """

    mean: Fraction | None
    variance: Fraction | None
    n_seeds: int
    n_planned: int
    verdict: Verdict | None = None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for fewer than two seeds."""
        return None if self.variance is None else math.sqrt(self.variance)

    @property
    def point(self) -> float:
        """The mean as a picture draws it: NaN for a gap."""
        return math.nan if self.mean is None else float(self.mean)

    @property
    def spread(self) -> float:
        """The sample standard deviation as a picture draws it: NaN where there is none."""
        return math.nan if self.std is None else self.std

    @property
    def incomplete(self) -> bool:
        """Whether some of the planned seeds, but not all, are missing."""
        return 0 < self.n_seeds < self.n_planned

    def text(self, decimals: int) -> str:
        """The entry as it is shown, with the mark of its verdict; a double dagger: planned seeds are missing."""
        if self.mean is None:
            return GAP
        mark = f" {VERDICT_MARKS[self.verdict]}" if self.verdict else ""
        return f"{with_spread(self.mean, self.variance, decimals)}{'‡' if self.incomplete else ''}{mark}"


@dataclass(frozen=True)
class Row:
    """One attack, or the worst case, at one radius; ``eps`` is 0 in the row of the clean accuracy."""

    attack: str
    title: str
    eps: Epsilon
    entries: tuple[Entry, ...]


def _rounded(value: Figure | None) -> float | None:
    return None if value is None else rounded(value, 4)


def best(values: Sequence[Figure | None], decimals: int, n: int = BEST) -> list[int]:
    """The positions of the best n values of a row, all that tie with the last of them included.

    Values are compared exactly, and what shows the same figure as a marked one is marked like it, so that of two equal
    figures never only one is. Of n values or fewer the last is left out, or the mark would say nothing; nothing is
    marked where all show the same; and 0 is
    nobody's best.

    Args:
        values: percentages, None for a gap.
        decimals: how many decimals are shown.
        n: how many are marked.
    """
    shown = {i: rounded(value, decimals) for i, value in enumerate(values) if value is not None}
    if len(set(shown.values())) < 2:
        return []
    threshold = sorted(shown.values(), reverse=True)[min(n, len(shown) - 1) - 1]
    return [i for i, value in shown.items() if value >= threshold and value > 0]


def half_width(n_images: int) -> float:
    """Half the width of Wilson's 95 % interval for a share of n images, at its widest (a share of one half).

    Returns:
        Percentage points.
    """
    interval = binomtest(n_images // 2, n_images).proportion_ci(0.95, method="wilson")
    return 50 * float(interval.high - interval.low)


def shown_decimals(n_images: int) -> int:
    """The decimals of a percentage over n images that can be told apart: 0 for 100 images, 2 for 10,000 or more."""
    return min(max(math.ceil(math.log10(n_images)) - 2, 0), 2) if n_images else 0


def aggregate(values: Sequence[Figure], n_planned: int, verdict: Verdict | None = None) -> Entry:
    """Mean and sample variance of fractions, in percent."""
    percent = [100 * exact(value) for value in values]
    return Entry(
        mean=mean(percent) if percent else None,
        variance=variance(percent) if len(percent) > 1 else None,
        n_seeds=len(percent),
        n_planned=n_planned,
        verdict=verdict,
    )


def entry_at(results: Results, place: Place, metric: Metric) -> Entry:
    """A metric at a place of the plan, over its training seeds."""
    values = list(results.values(place, metric).values())
    return aggregate(values, len(results.planned_seeds(place)), results.verdict(place))


def worst_entry(worst: WorstCase, method: str, step: int, metric: Metric) -> Entry:
    """A metric of a method in the worst case, over its training seeds; the radii are counted from 1."""
    return aggregate(list(worst.values(method, step, metric).values()), len(worst.planned_seeds(method, step)))


def main_rows(results: Results, metric: Metric, norm: str) -> list[Row]:
    """The clean row (robust accuracy only), one row for each attack and radius, and those of the worst case."""
    study, labels = results.study, [method.label for method in results.study.methods]
    rows = []
    if metric == "robust_accuracy":
        clean = (entry_at(results, results.clean_place(label, norm), metric) for label in labels)
        rows.append(Row("clean", "Clean", ZERO, tuple(clean)))
    for attack in study.attacks:
        for step, eps in enumerate(attack.eps.get(norm, ()), start=1):
            places = [results.place(label, attack.name, norm, step) for label in labels]
            entries = tuple(entry_at(results, place, metric) for place in places)
            rows.append(Row(attack.name, attack.title, eps, entries))
    worst = worst_case(results, norm)
    for step, eps in enumerate(worst.grid, start=1):
        rows.append(Row(NAME, TITLE, eps, tuple(worst_entry(worst, label, step, metric) for label in labels)))
    return rows


def main_table(
    results: Results, metric: Metric, norm: str, rows: Sequence[Row], shown: Sequence[Row] | None = None
) -> Exhibit:
    """One metric in one norm: attacks and radii down, methods across; the best three of every row in bold.

    Args:
        results: the run.
        metric: what is shown.
        norm: of the attacks.
        rows: those of :func:`main_rows`.
        shown: those of them that stand in the table; all when None.
    """
    shown = rows if shown is None else shown
    about = _about(results, metric, norm, incomplete=any(entry.incomplete for row in rows for entry in row.entries))
    caption = f"{about} {marks_text(results, (entry.verdict for row in shown for entry in row.entries), norm)}"
    title = f"{_TITLES[metric]}, {norm_title(norm)}"
    columns = _main_columns(results, norm, shown)
    return table(file_stem(f"{metric}-{norm}"), title, caption, shown, columns, group=lambda row: row.attack)


def _main_columns(results: Results, norm: str, rows: Sequence[Row]) -> list[Column[Row]]:
    """One column a method; in the data percent with four decimals, and more of them for spread and verdict."""
    study, decimals = results.study, decimals_of(results, norm)
    entries = [entry for row in rows for entry in row.entries]
    spread, audited = any(entry.n_planned > 1 for entry in entries), any(entry.verdict for entry in entries)
    units: list[Column[Row]] = radius(study, lambda row: row.eps)
    # A model that does not normalise has one unit, and one column is enough for it.
    if all(row.eps.normalized == row.eps.pixel for row in rows):
        units = [replace(units[0], header=f"ε ({' = '.join(study.units_shown)})")]

    def columns(method: Method, i: int) -> list[Column[Row]]:
        found: list[Column[Row]] = [
            Column(
                method.title,
                lambda row: row.entries[i].text(decimals),
                method.label,
                lambda row: _rounded(row.entries[i].mean),
                bold=lambda row: i in best([entry.mean for entry in row.entries], decimals),
            )
        ]
        if spread:
            found.append(data(f"{method.label} std", lambda row: _rounded(row.entries[i].std)))
            found.append(data(f"{method.label} seeds", lambda row: row.entries[i].n_seeds))
        if audited:
            found.append(data(f"{method.label} verdict", lambda row: row.entries[i].verdict))
        return found

    return [
        Column("Attack", lambda row: row.title, "attack", lambda row: row.attack, "once"),
        data("norm", lambda _: norm),
        data("eps_normalized", lambda row: row.eps.normalized if study.eps_scale is not None else None),
        data("eps_pixel", lambda row: row.eps.pixel),
        *units,
        *(column for i, method in enumerate(study.methods) for column in columns(method, i)),
    ]


def main_tables(results: Results, metric: Metric = "robust_accuracy") -> list[Exhibit]:
    """The tables of a metric, one for each norm of the study: every attack through its first engine, the worst case."""
    return [main_table(results, metric, norm, main_rows(results, metric, norm)) for norm in results.study.norms]


def decimals_of(results: Results, norm: str) -> int:
    """The decimals of the figures in a norm."""
    counted = results.counts("n_images", norm=norm)
    return shown_decimals(counted[1] if counted else 0)


def over_seeds(study: Study) -> str:
    """The training seeds in words, and what a figure with a spread is over several of them."""
    return ("mean ± sample standard deviation over " if len(study.trained_seeds) > 1 else "") + seeds_text(study.seeds)


def known_within(n_images: int) -> str:
    """How exactly a share of that many images is known at worst, in words."""
    return f"known to within ±{fixed(half_width(n_images), 1)} points at worst (binomial 95 % interval, Wilson)"


def _about(results: Results, metric: Metric, norm: str, *, incomplete: bool) -> str:
    """What a reader must know: data, denominator, engines, protocol, seeds, sampling error, worst case."""
    study = results.study
    images, attacked = results.counts("n_images", norm=norm), results.counts("n_attacked", norm=norm)
    meaning = PROTOCOL_MEANINGS.get(study.protocol)
    setting = f"{study.engines_text(norm=norm)}; protocol {study.protocol}" + (f" ({meaning})" if meaning else "")
    if study.attack_precision == "bf16":
        setting += f"; {HALF_PRECISION}"
    if images is None or attacked is None:
        return f"{study.dataset}; {setting}; no records yet."
    smallest = images[0]
    over = f"{count_text(images)} test images, all of them in the denominator"
    if metric == "survival_rate":
        smallest = attacked[0]
        over = (
            f"over the images attacked, that is those classified correctly before: {count_text(attacked)} of "
            f"{count_text(images)} test images, depending on the model"
        )
    sentences = [f"{study.dataset}; {over}; {setting}; {over_seeds(study)}."]
    if smallest:
        sentences.append(f"With this many images a figure is {known_within(smallest)}.")
    noted = [attack for attack in study.attacks if norm in attack.eps and attack.settings.get("note")]
    sentences += [f"{attack.title}: {attack.settings['note']}" for attack in noted]
    if len(study.methods) > 1:
        n_marked = min(BEST, len(study.methods) - 1)
        sentences.append(f"Bold: the best {n_marked} of a row, ties included." if n_marked > 1 else "Bold: the best.")
    sentences.append(explanation(results, norm))
    if metric == "robust_accuracy" and norm == "linf":
        sentences.append(LAYOUT)
    if incomplete:
        sentences.append(INCOMPLETE)
    return " ".join(sentences)
