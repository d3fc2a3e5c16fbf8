"""What is to be reached, and whether the measurements reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from benchmarks.contenders import REFERENCE
from benchmarks.training import PRECISIONS


@dataclass(frozen=True)
class Target:
    """A bound on a ratio that is to hold in the worst case.

    Attributes:
        what: in words; the ratio is that of the first to the second.
        bound: of the ratio.
        at_least: whether it is to be at least the bound, or at most.
    """

    what: str
    bound: float
    at_least: bool

    @property
    def goal(self) -> str:
        """The bound in words."""
        return f"{'at least' if self.at_least else 'at most'} {self.bound:g}"

    def judged(self, found: pd.DataFrame) -> dict[str, object]:
        """The row of the table.

        Args:
            found: what was measured: ``where``, ``ratio``, ``low`` and ``high``; at least one row.
        """
        found = found.reset_index(drop=True)
        at = int(found["ratio"].argmin() if self.at_least else found["ratio"].argmax())
        worst = found.iloc[at]
        missed = (found["ratio"] < self.bound) if self.at_least else (found["ratio"] > self.bound)
        # Where the interval encloses the bound, another run may come out on the other side.
        unsure = (found["low"] <= self.bound) & (found["high"] >= self.bound)
        return {
            "what": self.what,
            "target": self.goal,
            "measured": worst["ratio"],
            "low": worst["low"],
            "high": worst["high"],
            "worst_case": worst["where"],
            "cases": len(found),
            "cases_met": int((~missed).sum()),
            "met": bool(~missed.any()),
            "within_interval": bool(unsure.iloc[at]),
        }


def _against(
    summary: pd.DataFrame, other: str, chosen: Callable[[str], bool], *, inverse: bool = False
) -> pd.DataFrame:
    """The other contender's time in units of the reference's, or the inverse, in each of the chosen cases."""
    none: pd.DataFrame = pd.DataFrame()
    if "ratio" not in summary:
        return none
    rows = summary[(summary["contender"] == other) & summary["case"].map(chosen) & summary["ratio"].notna()]
    ratio, low, high = (rows[name] for name in ("ratio", "ratio_low", "ratio_high"))
    if inverse:
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    found: pd.DataFrame = pd.DataFrame({"where": rows["title"], "ratio": ratio, "low": low, "high": high})
    return found


def _sweeps(summary: pd.DataFrame) -> Iterator[tuple[Target, pd.DataFrame]]:
    def fgsm(case: str) -> bool:
        return case.startswith("fgsm")

    def iterated(case: str) -> bool:
        return not fgsm(case) and case.endswith("paper")

    def strong(case: str) -> bool:
        return case.endswith("strong")

    for peer in ("art", "foolbox"):
        yield Target(f"FGSM: {peer} to {REFERENCE}", 3.0, True), _against(summary, peer, fgsm)
    for peer in ("art", "foolbox"):
        yield Target(f"BIM and PGD: {peer} to {REFERENCE}", 1.5, True), _against(summary, peer, iterated)
    yield (
        Target(f"BIM and PGD: adv-lib to {REFERENCE}", 1.0, True),
        _against(summary, "adv-lib", lambda case: not fgsm(case)),
    )
    yield (
        Target(f"{REFERENCE} to the bare passes", 1.05, False),
        _against(summary, "bare", lambda _: True, inverse=True),
    )
    yield Target(f"strong: foolbox to {REFERENCE}", 3.0, True), _against(summary, "foolbox", strong)


def _dropouts(dropout: pd.DataFrame) -> Iterator[tuple[Target, pd.DataFrame]]:
    where = (
        dropout["dropout"] + ", width " + dropout["width"].astype(str) + ", batch " + dropout["batch_size"].astype(str)
    )
    found = pd.DataFrame(
        {"where": where, "ratio": dropout["ratio"], "low": dropout["ratio_low"], "high": dropout["ratio_high"]}
    )
    yield Target("a training step with a dropout to one without", 1.03, False), found


def _training(training: pd.DataFrame) -> Iterator[tuple[Target, pd.DataFrame]]:
    for precision in PRECISIONS:
        rows = training[(training["precision"] == precision) & (training["contender"] == "robustfdd")]
        if "ratio" not in rows:
            continue
        found = pd.DataFrame(
            {
                "where": "against " + rows["against"],
                "ratio": rows["ratio"],
                "low": rows["ratio_low"],
                "high": rows["ratio_high"],
            }
        )
        yield Target(f"training in {precision}: images a second of robustfdd to the plain loop", 1.3, True), found


def _cluster(cluster: pd.DataFrame) -> Iterator[tuple[Target, pd.DataFrame]]:
    rows = cluster[cluster["nodes"] == 2]
    found = pd.DataFrame(
        {
            "where": rows["units"].astype(str) + " units",
            "ratio": rows["ratio"],
            "low": rows["ratio_low"],
            "high": rows["ratio_high"],
        }
    )
    yield Target("a study on two one-core nodes of Ray to one node", 0.65, False), found


def target_table(
    sweep: pd.DataFrame | None,
    dropout: pd.DataFrame | None,
    training: pd.DataFrame | None,
    cluster: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row for each target that something was measured for.

    Args:
        sweep: the summary of :func:`benchmarks.sweep.run_sweeps`.
        dropout: from :func:`benchmarks.dropout.run_dropouts`.
        training: the summary of :func:`benchmarks.training.run_training`.
        cluster: the summary of :func:`benchmarks.cluster.run_cluster`.
    """
    pairs: list[tuple[Target, pd.DataFrame]] = []
    if sweep is not None and len(sweep):
        pairs += _sweeps(sweep)
    if dropout is not None and len(dropout):
        pairs += _dropouts(dropout)
    if training is not None and len(training):
        pairs += _training(training)
    if cluster is not None and len(cluster):
        pairs += _cluster(cluster)
    table: pd.DataFrame = pd.DataFrame([target.judged(found) for target, found in pairs if len(found)])
    return table
