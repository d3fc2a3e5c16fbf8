"""The tables of accuracy under attack, in the layout of Table 3 of Ke et al. (2020), and what all tables share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from robustfdd.records import Verdict
from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Metric, Place, Results
from robustfdd.report.study import (
    HALF_PRECISION,
    PROTOCOL_MEANINGS,
    VERDICT_MARKS,
    ZERO,
    Epsilon,
    Method,
    Study,
    file_stem,
    norm_title,
)
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import NAME, TITLE, WorstCase, explanation, worst_case
from robustfdd.rounding import Figure, exact, fixed, fixed_root, mean, rounded, variance

#: How many values of a row are marked as the best.
BEST = 3

#: What the caption of the table in L-infinity says of its form.
LAYOUT = "Layout: Table 3 of Ke et al. (2020)."

_TITLES: dict[Metric, str] = {
    "robust_accuracy": "Robust accuracy (%)",
    "survival_rate": "Survival rate (%)",
}


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
        spread = "" if self.variance is None else f" ± {fixed_root(self.variance, decimals)}"
        mark = f" {VERDICT_MARKS[self.verdict]}" if self.verdict else ""
        return f"{fixed(self.mean, decimals)}{spread}{'‡' if self.incomplete else ''}{mark}"


@dataclass(frozen=True)
class Row:
    """One attack, or the worst case, at one radius; ``eps`` is None in the row of the clean accuracy."""

    attack: str
    title: str
    eps: Epsilon | None
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class MainTable:
    """One metric in one norm: attacks and radii down, methods across.

    Every form of the table, from the web page to the CSV file, is made from this one object.

    Attributes:
        metric: ``"robust_accuracy"`` or ``"survival_rate"``.
        norm: ``"linf"`` or ``"l2"``.
        study: whose methods and units of epsilon it has.
        columns: the methods, in the study's order.
        rows: the clean row (robust accuracy only), one row for each attack and radius, and those of the worst case.
        decimals: how many are shown; no more than the number of images can tell apart.
        about: what a reader must know: data, denominator, engines, protocol, seeds, sampling error, worst case.
        results: the run.
    """

    metric: Metric
    norm: str
    study: Study
    columns: tuple[Method, ...]
    rows: tuple[Row, ...]
    decimals: int
    about: str
    results: Results

    @property
    def name(self) -> str:
        """The stem of the table's files."""
        return file_stem(f"{self.metric}-{self.norm}")

    @property
    def caption(self) -> str:
        """What a reader must know, and what the audits say of the figures of this table."""
        shown = (entry.verdict for row in self.rows for entry in row.entries)
        return f"{self.about} {marks_text(self.results, shown, self.norm)}"

    @property
    def marks(self) -> frozenset[tuple[int, int]]:
        """(row, column) of the best three of every row; see :func:`best`."""
        return frozenset(
            (i, j)
            for i, row in enumerate(self.rows)
            for j in best([entry.mean for entry in row.entries], self.decimals)
        )

    @property
    def grid(self) -> Grid:
        """The table as it is shown."""
        attacks = [row.attack for row in self.rows]
        starts = group_starts(attacks)
        radii = [row.eps or ZERO for row in self.rows]
        # A model that does not normalise has one unit, and one column is enough for it.
        one_unit = all(eps.normalized == eps.pixel for eps in radii)
        units = self.study.units_shown
        units = (" = ".join(units),) if one_unit else units
        rows = tuple(
            (
                row.title if i == 0 or i in starts else "",
                *eps.texts(self.study.eps_unit)[: len(units)],
                *(entry.text(self.decimals) for entry in row.entries),
            )
            for i, (row, eps) in enumerate(zip(self.rows, radii, strict=True))
        )
        return Grid(
            name=self.name,
            title=f"{_TITLES[self.metric]}, {norm_title(self.norm)}",
            caption=self.caption,
            headers=(
                "Attack",
                *(f"ε ({unit})" for unit in units),
                *(method.title for method in self.columns),
            ),
            rows=rows,
            n_text=1,
            marks=frozenset((i, j + 1 + len(units)) for i, j in self.marks),
            rules=starts,
        )

    def frame(self) -> pd.DataFrame:
        """The table as data: percent with four decimals, one column a method, more for spread and verdict."""
        entries = [entry for row in self.rows for entry in row.entries]
        spread, audited = any(entry.n_planned > 1 for entry in entries), any(entry.verdict for entry in entries)
        records = []
        for row in self.rows:
            record: dict[str, Any] = {
                "attack": row.attack,
                "norm": self.norm,
                "eps_normalized": (row.eps or ZERO).normalized if self.study.eps_scale is not None else None,
                "eps_pixel": (row.eps or ZERO).pixel,
            }
            for method, entry in zip(self.columns, row.entries, strict=True):
                record[method.label] = _rounded(entry.mean)
                if spread:
                    record[f"{method.label} std"] = _rounded(entry.std)
                    record[f"{method.label} seeds"] = entry.n_seeds
                if audited:
                    record[f"{method.label} verdict"] = entry.verdict
            records.append(record)
        frame: pd.DataFrame = pd.DataFrame.from_records(records)
        return frame


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


def main_tables(results: Results, metric: Metric = "robust_accuracy") -> list[MainTable]:
    """The tables of a metric, one for each norm of the study: every attack through its first engine, the worst case."""
    study = results.study
    tables = []
    for norm in study.norms:
        rows = []
        if metric == "robust_accuracy":
            places = [results.clean_place(method.label, norm) for method in study.methods]
            rows.append(Row("clean", "Clean", None, tuple(entry_at(results, place, metric) for place in places)))
        for attack in study.attacks:
            for step, eps in enumerate(attack.eps.get(norm, ()), start=1):
                places = [results.place(method.label, attack.name, norm, step) for method in study.methods]
                rows.append(
                    Row(attack.name, attack.title, eps, tuple(entry_at(results, place, metric) for place in places))
                )
        worst = worst_case(results, norm)
        for step, eps in enumerate(worst.grid, start=1):
            entries = [worst_entry(worst, method.label, step, metric) for method in study.methods]
            rows.append(Row(NAME, TITLE, eps, tuple(entries)))
        counted = results.counts("n_images", norm=norm)
        decimals = shown_decimals(counted[1] if counted else 0)
        incomplete = any(entry.incomplete for row in rows for entry in row.entries)
        about = _about(results, metric, norm, incomplete=incomplete)
        tables.append(MainTable(metric, norm, study, study.methods, tuple(rows), decimals, about, results))
    return tables


def count_text(counts: tuple[int, int]) -> str:
    """A number of images, or the range of it."""
    low, high = counts
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def seeds_text(seeds: Sequence[int]) -> str:
    """The training seeds in words; -1 is that of models that were not trained here."""
    trained = [seed for seed in seeds if seed >= 0]
    texts = [("seed " if len(trained) == 1 else "seeds ") + ", ".join(map(str, trained))] if trained else []
    if len(trained) < len(seeds):
        texts.append("a model trained elsewhere" if trained else "trained elsewhere")
    return "; ".join(texts)


def _about(results: Results, metric: Metric, norm: str, *, incomplete: bool) -> str:
    study = results.study
    images = results.counts("n_images", norm=norm)
    attacked = results.counts("n_attacked", norm=norm)
    meaning = PROTOCOL_MEANINGS.get(study.protocol)
    engines = study.engines_text(norm=norm)
    setting = f"{engines}; protocol {study.protocol}" + (f" ({meaning})" if meaning else "")
    if study.attack_precision == "bf16":
        setting += f"; {HALF_PRECISION}"
    if images is None or attacked is None:
        return f"{study.dataset}; {setting}; no records yet."
    if metric == "robust_accuracy":
        over, smallest = f"{count_text(images)} test images, all of them in the denominator", images[0]
    else:
        smallest = attacked[0]
        over = (
            f"over the images attacked, that is those classified correctly before: {count_text(attacked)} of "
            f"{count_text(images)} test images, depending on the model"
        )
    spread = "mean ± sample standard deviation over " if len(study.trained_seeds) > 1 else ""
    sentences = [f"{study.dataset}; {over}; {setting}; {spread}{seeds_text(study.seeds)}."]
    if smallest:
        sentences.append(
            f"With this many images a figure is known to within ±{fixed(half_width(smallest), 1)} points at worst "
            "(binomial 95 % interval, Wilson)."
        )
    sentences += [
        f"{attack.title}: {attack.settings['note']}"
        for attack in study.attacks
        if norm in attack.eps and attack.settings.get("note")
    ]
    if len(study.methods) > 1:
        n_marked = min(BEST, len(study.methods) - 1)
        sentences.append(f"Bold: the best {n_marked} of a row, ties included." if n_marked > 1 else "Bold: the best.")
    sentences.append(explanation(results, norm))
    if metric == "robust_accuracy" and norm == "linf":
        sentences.append(LAYOUT)
    if incomplete:
        sentences.append("‡ Some of the planned seeds are missing.")
    return " ".join(sentences)
