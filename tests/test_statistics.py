"""Tests and intervals over training seeds, held against textbook figures, closed forms and SciPy's own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp, ttest_ind

from robustfdd.paper.statistics import compare, holm, summarise

# Hours of sleep gained by ten patients with two drugs: Cushny and Peebles (1905), in Student (1908).
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_students_sleep_data() -> None:
    """The figures are those that R prints for ``t.test(extra ~ group, sleep)``, and with ``var.equal = TRUE``."""
    found = compare(DRUG_1, DRUG_2)
    assert found.difference == pytest.approx(0.75 - 2.33)
    assert found.welch == pytest.approx(0.07939, abs=5e-6)
    assert found.student == pytest.approx(0.07919, abs=5e-6)
    assert found.interval == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)
    assert found.reason == ""


def test_two_seeds_a_side_by_hand() -> None:
    """Variances 0.02 each and a standard error of sqrt(0.02); Student's t has a closed form at 2 and at 1 degrees."""
    found = compare([94.3, 94.5], [94.0, 94.2])
    t = 0.3 / math.sqrt(0.02)
    expected = 1 - t / math.sqrt(2 + t**2)
    assert expected == pytest.approx(0.168, abs=5e-4)
    assert found.student == pytest.approx(expected)
    assert found.welch == pytest.approx(expected)  # with equal variances and sizes the two tests are one
    one = summarise([94.3, 94.5])
    assert (one.mean, one.std, one.n) == (pytest.approx(94.4), pytest.approx(math.sqrt(0.02)), 2)
    half = math.tan(math.pi * 0.475) * 0.1  # the quantile of Cauchy's distribution, times 0.1 = sqrt(0.02 / 2)
    assert one.interval == pytest.approx((94.4 - half, 94.4 + half))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 5), (3, 3), (7, 4)])
def test_p_values_and_intervals_are_scipys(n: int, m: int) -> None:
    random = np.random.default_rng(10 * n + m)
    a, b = random.normal(94.0, 0.3, n), random.normal(93.5, 0.1, m)
    found = compare(a.tolist(), b.tolist())
    welch = ttest_ind(a, b, equal_var=False)
    assert found.welch == pytest.approx(welch.pvalue, rel=1e-9)
    assert found.interval == pytest.approx(tuple(welch.confidence_interval(0.95)), rel=1e-9)
    assert found.student == pytest.approx(ttest_ind(a, b).pvalue, rel=1e-9)
    assert found.difference == pytest.approx(a.mean() - b.mean())
    assert summarise(a.tolist()).interval == pytest.approx(tuple(ttest_1samp(a, 0).confidence_interval(0.95)))


def test_direction() -> None:
    high, low = [95.0, 95.1, 95.2], [90.0, 90.1, 90.2]
    better, worse = compare(high, low), compare(low, high)
    assert better.student == worse.student
    assert better.student is not None
    assert better.student < 0.001
    assert better.interval is not None
    assert worse.interval == pytest.approx((-better.interval[1], -better.interval[0]))
    assert (better.significantly_higher, worse.significantly_higher) == (True, False)
    assert not compare([95.0, 91.0], [94.0, 90.0]).significantly_higher  # higher, but not significantly


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], [3.0]), ([1.0], [3.0])])
def test_one_value_is_no_sample(a: list[float], b: list[float]) -> None:
    found = compare(a, b)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.student, found.welch, found.interval) == (None, None, None)
    assert "at least two values" in found.reason
    assert not found.significantly_higher


def test_without_any_variance_there_is_no_test() -> None:
    found = compare([0.3, 0.3, 0.3], [0.1, 0.1, 0.1])  # whose mean differs from them by a rounding
    assert (found.student, found.welch, found.interval) == (None, None, None)
    assert "neither side varies" in found.reason
    assert summarise([0.1, 0.1, 0.1]).std == 0


def test_variance_on_one_side_is_enough() -> None:
    """Welch's test is then that of one sample against a number; SciPy would warn of cancellation."""
    found = compare([5.0, 6.0, 7.0], [4.0, 4.0, 4.0])
    t = 2.0 / math.sqrt(1 / 3)
    assert found.welch == pytest.approx(2 * student_t.sf(t, 2))
    assert found.student == pytest.approx(2 * student_t.sf(2.0 / math.sqrt(0.5 * 2 / 3), 4))


def test_holm() -> None:
    """0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1 not below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_no_values_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        summarise([])
