"""Table 2: clean accuracy over the whole test split, and which methods are better than original dropout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from robustfdd.paper.statistics import LEVEL, Comparison, Interval, Summary, compare, holm, p_text, summarise
from robustfdd.report.exhibit import GAP, Column, Exhibit, data, fields, shown, table
from robustfdd.report.results import Results
from robustfdd.report.study import Method, seeds_text, signed
from robustfdd.report.tables import best, half_width, shown_decimals
from robustfdd.report.training import clean_accuracy, n_test_images, over_test_split, planned_seeds
from robustfdd.rounding import fixed, with_spread

ORDER = 20


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


def _of(part: Summary | Comparison | None, name: str) -> Any:
    """An attribute of what a row may not have; None where it has it not."""
    return None if part is None else getattr(part, name)


def _half(interval: Interval | None, decimals: int) -> str:
    """Half the width of an interval, which is symmetric about its figure."""
    return GAP if interval is None else f"±{fixed((interval[1] - interval[0]) / 2, decimals)}"


def _signed(difference: Fraction | None) -> str:
    return GAP if difference is None else signed(difference)


def _accuracy(row: _Row, decimals: int) -> str:
    if row.summary is None:
        return GAP
    shown = with_spread(row.summary.mean, row.summary.variance, decimals)
    return shown + ("†" if _of(row.comparison, "significantly_higher") else "")


def _seeds(row: _Row) -> str:
    n = _of(row.summary, "n") or 0
    return str(n) if n == row.n_planned else f"{n} of {row.n_planned}"


def _columns(rows: list[_Row], reference: Method | None, n_test: int | None) -> list[Column[_Row]]:
    """All of them as data; in the table those that the number of seeds and the tests allow."""
    decimals = shown_decimals(n_test or 0)
    winners = [rows[i] for i in best([_of(row.summary, "mean") for row in rows], decimals, n=1)]
    intervals = any(_of(row.summary, "interval") for row in rows)
    compared = reference is not None and any(row.comparison for row in rows)
    n_tests = sum(row.holm is not None for row in rows)

    def ends(key: str, part: Callable[[_Row], Any]) -> list[Column[_Row]]:
        low, high = (lambda row, i=i: (_of(part(row), "interval") or (None, None))[i] for i in range(2))
        return [data(f"{key}_low", low), data(f"{key}_high", high)]

    def half(header: str, part: Callable[[_Row], Any]) -> Column[_Row]:
        return Column(header, lambda row: _half(_of(part(row), "interval"), decimals))

    return [
        Column("Method", lambda row: row.method.title, "method", lambda row: row.method.label, "name"),
        Column("Clean accuracy", lambda row: _accuracy(row, decimals), bold=lambda row: row in winners),
        *fields("mean=summary.mean std=summary.std"),
        Column("Seeds", _seeds, "n_seeds", lambda row: _of(row.summary, "n") or 0),
        *([half("95 % CI", lambda row: row.summary)] if intervals else ()),
        *ends("ci", lambda row: row.summary),
        data("n_test", lambda _: n_test),
        shown("Difference" if compared else None, "difference=comparison.difference", _signed),
        *([half("CI of difference", lambda row: row.comparison)] if n_tests else ()),
        *ends("difference_ci", lambda row: row.comparison),
        shown("p (Student)" if n_tests else None, "p_student=comparison.student", p_text),
        shown("p (Holm)" if n_tests > 1 else None, "p_student_holm=holm", p_text),
        shown("p (Welch)" if n_tests else None, "p_welch=comparison.welch", p_text),
        data("significantly_better", lambda row: bool(_of(row.comparison, "significantly_higher"))),
        data("no_test_because", lambda row: _of(row.comparison, "reason") or ""),
    ]


def _caption(results: Results, rows: list[_Row], reference: Method | None, n_test: int | None) -> str:
    study = results.study
    several = any(row.summary and row.summary.n > 1 for row in rows)
    spread = "mean ± sample standard deviation over " if several else ""
    sentences = [f"{study.dataset}, {over_test_split(n_test)}; {spread}{seeds_text(study.trained_seeds)}."]
    if several:
        sentences.append("95 % CI: of the mean over training runs (Student's t).")
    sentences += _tests_text(rows, reference)
    if n_test:
        sentences.append(
            f"Apart from training, the choice of {n_test:,} images leaves ±{fixed(half_width(n_test), 1)} points at "
            "worst (binomial 95 % interval, Wilson)."
        )
    if sum(row.summary is not None for row in rows) > 1:
        sentences.append("Bold: the best.")
    return " ".join(sentences)


def _tests_text(rows: list[_Row], reference: Method | None) -> list[str]:
    """What was tested, how, and what was not."""
    comparisons = [row.comparison for row in rows if row.comparison]
    tested = [item for item in comparisons if item.student is not None]
    if reference is None:
        return ["There is no original dropout in this study, so nothing is tested against it."]
    if not comparisons:
        untrained = f"{reference.title} has no training record, so nothing is tested against it."
        return [untrained] if len(rows) > 1 else []
    if not tested:
        reason = f"No method is marked as significantly better: {comparisons[0].reason}."
        return [f"Difference: to {reference.title}, in points. {reason}"]
    sentences = [
        f"† Significantly better than {reference.title} at the {LEVEL} level, by a two-sided Student's "
        "t-test over the training runs as independent samples, as in Table 2 of Ke et al. (2020)."
    ]
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
    in_a_test = (row for row in rows if row.method is reference or _of(row.comparison, "student") is not None)
    fewest = min(row.summary.n for row in in_a_test if row.summary)
    if fewest < 3:
        sentences.append(
            f"With {fewest} runs of a method, a test finds only large differences, and relies on normal errors."
        )
    reasons = [(row.method.title, _of(row.comparison, "reason")) for row in rows]
    untested = [f"{title} ({reason})" for title, reason in reasons if reason]
    return [*sentences, f"Not tested: {'; '.join(untested)}."] if untested else sentences


def build(results: Results) -> list[Exhibit]:
    """Clean accuracy of every method with its spread over seeds and its tests against original dropout.

    None without training records.
    """
    reference = _reference(results)
    rows = _rows(results, reference)
    if not any(row.summary for row in rows):
        return []
    n_test = n_test_images(results)
    caption = _caption(results, rows, reference, n_test)
    columns = _columns(rows, reference, n_test)
    return [table("table2-clean-accuracy", "Table 2: clean accuracy (%)", caption, rows, columns)]
