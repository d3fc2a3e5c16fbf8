"""Table 2: clean accuracy over the whole test split, and which methods are better than original dropout."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pandas as pd

from robustfdd.paper.statistics import LEVEL, Comparison, Interval, Summary, compare, holm, summarise
from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import GAP, Grid
from robustfdd.report.results import Results
from robustfdd.report.study import Method, signed
from robustfdd.report.tables import best, half_width, seeds_text, shown_decimals
from robustfdd.report.training import clean_accuracy, n_test_images, planned_seeds
from robustfdd.rounding import fixed, fixed_root

ORDER = 20

_NAME = "table2-clean-accuracy"
_TITLE = "Table 2: clean accuracy (%)"


@dataclass(frozen=True)
class _Row:
    method: Method
    n_planned: int
    summary: Summary | None
    comparison: Comparison | None  # None for the reference, without a reference, and for a gap
    holm: float | None


def _reference(results: Results) -> Method | None:
    """Original dropout; of several, the one under the dropout's own name, or the first."""
    found = [method for method in results.study.methods if method.dropout == "original"]
    return next((method for method in found if method.label == "original"), found[0] if found else None)


def _rows(results: Results, reference: Method | None) -> list[_Row]:
    values = {method.label: list(clean_accuracy(results, method.label).values()) for method in results.study.methods}
    other = values[reference.label] if reference else []
    # One network under two names has nothing to be tested for, and would count among the tests.
    twins = {
        label for group in results.identical_methods() if reference and reference.label in group for label in group
    }
    comparisons = {
        label: Comparison(Fraction(0), reason="the same network") if label in twins else compare(found, other)
        for label, found in values.items()
        if found and other and found is not other
    }
    tested = {label: item.student for label, item in comparisons.items() if item.student is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return [
        _Row(
            method,
            len(planned_seeds(results, method.label)),
            summarise(values[method.label]) if values[method.label] else None,
            comparisons.get(method.label),
            adjusted.get(method.label),
        )
        for method in results.study.methods
    ]


def _p(value: float | None) -> str:
    if value is None:
        return GAP
    return "<0.001" if value < 0.001 else fixed(value, 3)


def _half(interval: Interval | None, decimals: int) -> str:
    """Half the width of an interval, which is symmetric about its figure."""
    return GAP if interval is None else f"±{fixed((interval[1] - interval[0]) / 2, decimals)}"


def _accuracy(row: _Row, decimals: int) -> str:
    if row.summary is None:
        return GAP
    variance = row.summary.variance
    spread = "" if variance is None else f" ± {fixed_root(variance, decimals)}"
    dagger = "†" if row.comparison and row.comparison.significantly_higher else ""
    return f"{fixed(row.summary.mean, decimals)}{spread}{dagger}"


def _seeds(row: _Row) -> str:
    n = row.summary.n if row.summary else 0
    return str(n) if n == row.n_planned else f"{n} of {row.n_planned}"


def _grid(rows: list[_Row], reference: Method | None, decimals: int, caption: str) -> Grid:
    headers = ["Method", "Clean accuracy", "Seeds"]
    columns = [
        [row.method.title for row in rows],
        [_accuracy(row, decimals) for row in rows],
        [_seeds(row) for row in rows],
    ]
    if any(row.summary and row.summary.interval for row in rows):
        headers.append("95 % CI")
        columns.append([_half(row.summary.interval if row.summary else None, decimals) for row in rows])
    compared = [row.comparison for row in rows]
    if reference and any(compared):
        headers.append("Difference")
        columns.append([signed(item.difference) if item else GAP for item in compared])
    n_tests = sum(row.holm is not None for row in rows)
    if n_tests:
        headers += ["CI of difference", "p (Student)"]
        columns += [
            [_half(item.interval, decimals) if item else GAP for item in compared],
            [_p(item.student) if item else GAP for item in compared],
        ]
        if n_tests > 1:
            headers.append("p (Holm)")
            columns.append([_p(row.holm) for row in rows])
        headers.append("p (Welch)")
        columns.append([_p(item.welch) if item else GAP for item in compared])
    means = [row.summary.mean if row.summary else None for row in rows]
    marks = frozenset((i, 1) for i in best(means, decimals, n=1))
    cells = tuple(zip(*columns, strict=True))
    return Grid(_NAME, _TITLE, caption, tuple(headers), cells, n_text=1, marks=marks)


def _caption(results: Results, rows: list[_Row], reference: Method | None, n_test: int | None) -> str:
    study = results.study
    several = any(row.summary and row.summary.n > 1 for row in rows)
    spread = "mean ± sample standard deviation over " if several else ""
    size = f"all {n_test:,} test images" if n_test else "all test images"
    sentences = [f"{study.dataset}, {size}, before any attack; {spread}{seeds_text(study.trained_seeds)}."]
    if several:
        sentences.append("95 % CI: of the mean over training runs (Student's t).")
    comparisons = [row.comparison for row in rows if row.comparison]
    tested = [item for item in comparisons if item.student is not None]
    if reference is None:
        sentences.append("There is no original dropout in this study, so nothing is tested against it.")
    elif tested:
        sentences.append(
            f"† Significantly better than {reference.title} at the {LEVEL} level, by a two-sided Student's "
            "t-test over the training runs as independent samples, as in Table 2 of Ke et al. (2020)."
        )
        if len(tested) > 1:
            sentences.append(
                f"The mark takes each of the {len(tested)} comparisons by itself; p (Holm) is that p-value "
                "adjusted for their number."
            )
        sentences.append(
            f"Difference: to {reference.title}, in points; its 95 % interval and the last p-value do not assume "
            "equal variances (Welch)."
        )
        # With two runs on each side the test rests on two degrees of freedom.
        in_a_test = [
            row.summary.n
            for row in rows
            if row.summary and (row.method is reference or (row.comparison and row.comparison.student is not None))
        ]
        if min(in_a_test) < 3:
            sentences.append(
                f"With {min(in_a_test)} runs of a method, a test finds only large differences, and relies on normal "
                "errors."
            )
        untested = [
            f"{row.method.title} ({row.comparison.reason})" for row in rows if row.comparison and row.comparison.reason
        ]
        if untested:
            sentences.append(f"Not tested: {'; '.join(untested)}.")
    elif not comparisons and len(rows) > 1:
        sentences.append(f"{reference.title} has no training record, so nothing is tested against it.")
    elif comparisons:
        sentences.append(
            f"Difference: to {reference.title}, in points. No method is marked as significantly better: "
            f"{comparisons[0].reason}."
        )
    if n_test:
        sentences.append(
            f"Apart from training, the choice of {n_test:,} images leaves ±{fixed(half_width(n_test), 1)} points at "
            "worst (binomial 95 % interval, Wilson)."
        )
    if sum(row.summary is not None for row in rows) > 1:
        sentences.append("Bold: the best.")
    return " ".join(sentences)


def _frame(rows: list[_Row], n_test: int | None) -> pd.DataFrame:
    nowhere = (None, None)
    records = []
    for row in rows:
        summary, comparison = row.summary, row.comparison
        low, high = (summary.interval if summary else None) or nowhere
        difference_low, difference_high = (comparison.interval if comparison else None) or nowhere
        records.append(
            {
                "method": row.method.label,
                "mean": float(summary.mean) if summary else None,
                "std": summary.std if summary else None,
                "n_seeds": summary.n if summary else 0,
                "ci_low": low,
                "ci_high": high,
                "n_test": n_test,
                "difference": float(comparison.difference) if comparison else None,
                "difference_ci_low": difference_low,
                "difference_ci_high": difference_high,
                "p_student": comparison.student if comparison else None,
                "p_student_holm": row.holm,
                "p_welch": comparison.welch if comparison else None,
                "significantly_better": bool(comparison and comparison.significantly_higher),
                "no_test_because": comparison.reason if comparison else "",
            }
        )
    frame: pd.DataFrame = pd.DataFrame.from_records(records)
    return frame


def build(results: Results) -> list[Artefact]:
    """Clean accuracy of every method with its spread over seeds and its tests against original dropout.

    None without training records.
    """
    reference = _reference(results)
    rows = _rows(results, reference)
    if not any(row.summary for row in rows):
        return []
    n_test = n_test_images(results)
    decimals = shown_decimals(n_test or 0)
    caption = _caption(results, rows, reference, n_test)
    return [Artefact(_NAME, _TITLE, caption, _frame(rows, n_test), _grid(rows, reference, decimals, caption))]
