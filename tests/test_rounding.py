"""Figures are exact until they are printed, and rounded once, so that equal ones are printed alike."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import FakeRun, Key

from robustfdd.paper.claims import _mean, tally
from robustfdd.paper.exhibits import table2
from robustfdd.paper.statistics import compare, summarise
from robustfdd.records import load_run
from robustfdd.report.analyses import mean_and_spread
from robustfdd.report.results import sort_results
from robustfdd.report.study import number, signed
from robustfdd.report.tables import aggregate, best, main_tables
from robustfdd.rounding import exact, fixed, fixed_root, mean, rounded, share, significant, variance

fractions = st.fractions(min_value=-200, max_value=200, max_denominator=100_000)
decimals = st.integers(0, 4)


def reference(value: Fraction, n: int) -> str:
    """The nearest decimal by comparing with both neighbours; of two as near, the one farther from zero."""
    below = Fraction(math.floor(abs(value) * 10**n), 10**n)
    above = below + Fraction(1, 10**n)
    nearest = below if abs(value) - below < above - abs(value) else above
    text = f"{int(nearest)}" + (f".{int(nearest * 10**n) % 10**n:0{n}d}" if n else "")
    return f"-{text}" if value < 0 and nearest else text


@given(fractions, decimals)
def test_a_figure_is_the_nearest_decimal(value: Fraction, n: int) -> None:
    assert fixed(value, n) == reference(value, n)
    assert rounded(value, n) == float(reference(value, n))
    assert fixed(-value, n) == (f"-{fixed(value, n)}".replace("--", "") if float(fixed(value, n)) else fixed(value, n))


@given(st.integers(-10_000, 10_000), st.integers(0, 3))
def test_halves_go_away_from_zero(k: int, n: int) -> None:
    half = Fraction(2 * k + 1, 2 * 10**n)
    expected = Decimal(2 * k + 1) / 2
    assert Decimal(fixed(half, n)) * 10**n == expected.quantize(Decimal(1), ROUND_HALF_UP)


@given(st.floats(-1e6, 1e6), decimals)
def test_a_float_stands_for_the_decimal_that_it_prints_as(value: float, n: int) -> None:
    assert Decimal(fixed(value, n)) == Decimal(repr(value)).quantize(Decimal(1).scaleb(-n), ROUND_HALF_UP)
    assert fixed(value, n, sign=True).startswith("+") == (Decimal(fixed(value, n)) > 0)


@given(st.fractions(min_value=0, max_value=10_000, max_denominator=1000), decimals)
def test_a_root_is_the_nearest_decimal(square: Fraction, n: int) -> None:
    shown = Fraction(fixed_root(square, n))
    half = Fraction(1, 2 * 10**n)
    assert (shown + half) ** 2 > square
    assert shown == 0 or (shown - half) ** 2 <= square


@given(st.floats(1e-6, 1e8), st.integers(1, 6))
def test_significant_digits(value: float, digits: int) -> None:
    with localcontext() as context:
        context.prec, context.rounding = digits, ROUND_HALF_UP
        expected = +Decimal(repr(value))
    assert Decimal(significant(value, digits)) == expected
    assert "e" not in significant(value, digits).lower()
    assert number(0.0) == "0"


@given(st.integers(1, 20_000), st.data())
def test_a_share_that_was_a_float_is_its_count(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    assert share(count / of, of) == Fraction(count, of)
    assert share(float(Fraction(count, of)), of) == Fraction(count, of)


counts = st.lists(st.integers(0, 400), min_size=2, max_size=6)


@settings(max_examples=60)
@given(counts, st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_makes_no_difference(survivors: list[int], random: object) -> None:
    """Tables, intervals, tests and claims: of equal counts all prints are equal, whatever is summed first."""
    values = [Fraction(count, 400) for count in survivors]
    other = list(values)
    random.shuffle(other)  # type: ignore[attr-defined]
    for n in range(3):
        assert aggregate(values, 6).text(n) == aggregate(other, 6).text(n)
        assert mean_and_spread(values, n) == mean_and_spread(other, n)
        assert mean_and_spread([float(v) for v in values], n) == mean_and_spread([float(v) for v in other], n)
    assert summarise(values) == summarise(other)
    assert compare(values, other).difference == 0
    assert compare(values, [*other, Fraction(1, 3)]) == compare(other, [*values, Fraction(1, 3)])
    assert tally([_mean(values) - _mean(other)]) == (0, 0, 1)
    assert signed(100 * (mean(values) - mean(other))) == "0.00"


@given(counts)
def test_the_printed_mean_is_that_of_the_counts(survivors: list[int]) -> None:
    entry = aggregate([Fraction(count, 400) for count in survivors], len(survivors))
    exact_mean = Fraction(100 * sum(survivors), 400 * len(survivors))
    spread = sum((Fraction(100 * s, 400) - exact_mean) ** 2 for s in survivors) / (len(survivors) - 1)
    assert entry.variance == spread == variance([Fraction(s, 4) for s in survivors])
    assert entry.text(1) == f"{reference(exact_mean, 1)} ± {fixed_root(spread, 1)}"


def test_two_methods_of_one_mean_show_one_figure_and_one_mark(tmp_path: Path) -> None:
    """5.35 % over two seeds, reached in two ways, one of them in either order: all show 5.4, and all are best."""
    survivors = {"a": (24, 83), "b": (81, 26), "c": (26, 81), "d": (20, 30), "e": (10, 11)}

    def outcome(key: Key) -> tuple[int, int, int]:
        left = survivors[key.method][key.seed] if key.step else 900
        return 100, left, 900 - left

    run = FakeRun(outcome, methods=[(name, name.upper()) for name in survivors], seeds=(0, 1), eps={"linf": [1.0]})
    results = sort_results(load_run(run.write(tmp_path)))
    (table,) = main_tables(results)
    fgsm = table.frame["attack"].tolist().index("fgsm")
    cells = table.rows[fgsm][3:]
    assert [cell.partition(" ")[0] for cell in cells] == ["5.4", "5.4", "5.4", "2.5", "1.1"]
    assert {j for i, j in table.marks if i == fgsm} == {3, 4, 5}
    frame = table.frame
    assert frame.loc[fgsm, ["a", "b", "c"]].tolist() == [5.35, 5.35, 5.35]


@pytest.mark.parametrize("order", list(permutations([94.25, 94.26, 94.31])))
def test_clean_accuracy_is_taken_back_to_its_count(tmp_path: Path, order: tuple[float, ...]) -> None:
    """Over a whole test split the record has a float: methods whose seeds come in another order have one mean."""
    accuracies = {"none": (94.25, 94.26, 94.31), "fdd-2d": order}
    run = FakeRun(
        lambda key: (100, 900, 0),
        seeds=(0, 1, 2),
        clean_accuracy=lambda method, seed: accuracies[method][seed] / 100,
    )
    (found,) = table2.build(sort_results(load_run(run.write(tmp_path))))
    assert found.rows[0][1] == found.rows[1][1] == "94.27 ± 0.03"
    assert found.marks == frozenset()


@settings(max_examples=40)
@given(st.lists(st.fractions(min_value=0, max_value=100, max_denominator=1000), min_size=2, max_size=8), decimals)
def test_what_shows_the_same_is_marked_the_same(values: list[Fraction], n: int) -> None:
    marks = best(values, n)
    shown = [fixed(value, n) for value in values]
    assert {shown[i] for i in marks}.isdisjoint({shown[i] for i in range(len(values)) if i not in marks})
    for i in marks:
        assert all(j in marks for j, value in enumerate(values) if value >= values[i])


def test_no_number_is_printed_as_it_is() -> None:
    assert fixed(math.nan, 2) == "nan"
    assert exact(3) == 3
