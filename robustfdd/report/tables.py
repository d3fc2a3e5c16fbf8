"""The tables of accuracy under attack, in the layout of Table 3 of Ke et al. (2020), and what all tables share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Metric, Place, Results
from robustfdd.report.study import (
    HALF_PRECISION,
    PROTOCOL_MEANINGS,
    ZERO,
    Epsilon,
    EpsUnit,
    Method,
    file_stem,
    norm_title,
    unit_titles,
)
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import NAME, TITLE, WorstCase, explanation, worst_case

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
        mean: over the seeds that have a record; None for a gap.
        std: sample standard deviation (divided by n - 1); None for fewer than two seeds.
        n_seeds: how many seeds have a record.
        n_planned: how many the plan has.
    """

    mean: float | None
    std: float | None
    n_seeds: int
    n_planned: int

    @property
    def incomplete(self) -> bool:
        """Whether some of the planned seeds, but not all, are missing."""
        return 0 < self.n_seeds < self.n_planned

    def text(self, decimals: int) -> str:
        """The entry as it is shown; a double dagger says that planned seeds are missing."""
        if self.mean is None:
            return GAP
        spread = "" if self.std is None else f" ± {self.std:.{decimals}f}"
        return f"{self.mean:.{decimals}f}{spread}{'‡' if self.incomplete else ''}"


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
        eps_unit: the unit in the first of the two columns of radii.
        columns: the methods, in the study's order.
        rows: the clean row (robust accuracy only), one row for each attack and radius, and those of the worst case.
        decimals: how many are shown; no more than the number of images can tell apart.
        caption: data, denominator, engines, protocol, seeds, the sampling error, the worst case and the verdicts.
    """

    metric: Metric
    norm: str
    eps_unit: EpsUnit
    columns: tuple[Method, ...]
    rows: tuple[Row, ...]
    decimals: int
    caption: str

    @property
    def name(self) -> str:
        """The stem of the table's files."""
        return file_stem(f"{self.metric}-{self.norm}")

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
        units = (" = ".join(unit_titles(self.eps_unit)),) if one_unit else unit_titles(self.eps_unit)
        rows = tuple(
            (
                row.title if i == 0 or i in starts else "",
                *eps.texts(self.eps_unit)[: len(units)],
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
        """The table as data: percent with four decimals, one column a method, one more for its spread over seeds."""
        spread = any(entry.n_planned > 1 for row in self.rows for entry in row.entries)
        records = []
        for row in self.rows:
            record: dict[str, Any] = {
                "attack": row.attack,
                "norm": self.norm,
                "eps_normalized": (row.eps or ZERO).normalized,
                "eps_pixel": (row.eps or ZERO).pixel,
            }
            for method, entry in zip(self.columns, row.entries, strict=True):
                record[method.label] = _rounded(entry.mean)
                if spread:
                    record[f"{method.label} std"] = _rounded(entry.std)
                    record[f"{method.label} seeds"] = entry.n_seeds
            records.append(record)
        frame: pd.DataFrame = pd.DataFrame.from_records(records)
        return frame


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def best(values: Sequence[float | None], decimals: int, n: int = BEST) -> list[int]:
    """The positions of the best n values of a row, all that tie with the last of them included.

    Values are compared as they are shown, so that of two equal figures never only one is marked. Of n values
    or fewer the last is left out, or the mark would say nothing; nothing is marked where all are equal; and 0 is
    nobody's best.

    Args:
        values: percentages, None for a gap.
        decimals: how many decimals are shown.
        n: how many are marked.
    """
    shown = {i: round(value, decimals) for i, value in enumerate(values) if value is not None}
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


def aggregate(values: Sequence[float], n_planned: int) -> Entry:
    """Mean and sample standard deviation of fractions, in percent."""
    percent = 100 * np.asarray(values, dtype=np.float64)
    return Entry(
        mean=float(percent.mean()) if len(percent) else None,
        std=float(percent.std(ddof=1)) if len(percent) > 1 else None,
        n_seeds=len(percent),
        n_planned=n_planned,
    )


def entry_at(results: Results, place: Place, metric: Metric) -> Entry:
    """A metric at a place of the plan, over its training seeds."""
    return aggregate(list(results.values(place, metric).values()), len(results.planned_seeds(place)))


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
        caption = _caption(results, metric, norm, incomplete=incomplete)
        tables.append(MainTable(metric, norm, study.eps_unit, study.methods, tuple(rows), decimals, caption))
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
        texts.append("a model that was not trained here")
    return "; ".join(texts)


def _caption(results: Results, metric: Metric, norm: str, *, incomplete: bool) -> str:
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
            f"With this many images a figure is known to within ±{half_width(smallest):.1f} points at worst "
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
    sentences.append(marks_text(study.methods))
    if metric == "robust_accuracy" and norm == "linf":
        sentences.append(LAYOUT)
    if incomplete:
        sentences.append("‡ Some of the planned seeds are missing.")
    return " ".join(sentences)
