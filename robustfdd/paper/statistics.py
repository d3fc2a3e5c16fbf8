"""The statistics of figures over training seeds: means, their intervals, and tests of one method against another.

Seeds are independent training runs, so two methods are compared as two independent samples. Nothing here knows what the
numbers are; intervals and differences have the unit of the values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from scipy.stats import t as student_t
from scipy.stats import ttest_ind_from_stats

from robustfdd.report.exhibit import GAP
from robustfdd.rounding import Figure, fixed
from robustfdd.rounding import mean as exact_mean
from robustfdd.rounding import variance as exact_variance

#: The coverage of every interval.
CONFIDENCE = 0.95
#: Below this p-value a difference is called significant; the level of the published comparison.
LEVEL = 0.05

Interval = tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """A sample in short.

    Attributes:
        mean: of the values, exactly.
        variance: sample variance (divided by n - 1), exactly; None for one value.
        n: how many values.
        interval: of the mean, at 95 %, by Student's t distribution with n - 1 degrees of freedom; None for one value.
    """

    mean: Fraction
    variance: Fraction | None
    n: int
    interval: Interval | None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for one value."""
        return None if self.variance is None else math.sqrt(self.variance)


@dataclass(frozen=True)
class Comparison:
    """One sample against a reference, as independent samples; without a test, ``reason`` says why.

    Attributes:
        difference: mean of the sample minus mean of the reference, exactly.
        interval: of the difference, at 95 %, without assuming equal variances (Welch).
        student: two-sided p-value of Student's t-test, which assumes equal variances.
        welch: two-sided p-value of Welch's t-test, which does not.
        reason: why there is no test; empty where there is one.
    """

    difference: Fraction
    interval: Interval | None = None
    student: float | None = None
    welch: float | None = None
    reason: str = ""

    @property
    def significantly_higher(self) -> bool:
        """Whether the sample's mean is above the reference's, with a p-value of Student's test below 0.05."""
        return self.student is not None and self.student < LEVEL and self.difference > 0


def p_text(value: float | None) -> str:
    """A p-value in a table; None where there is no test."""
    return GAP if value is None else "<0.001" if value < 0.001 else fixed(value, 3)


def summarise(values: Sequence[Figure]) -> Summary:
    """Mean, sample variance and the interval of the mean; the order of the values makes no difference.

    Raises:
        ValueError: there are no values.
    """
    n = len(values)
    if n == 0:
        raise ValueError("a summary needs at least one value")
    mean = exact_mean(values)
    if n == 1:
        return Summary(mean, None, 1, None)
    variance = exact_variance(values)
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(variance / n)
    return Summary(mean, variance, n, (float(mean) - half, float(mean) + half))


def compare(values: Sequence[Figure], reference: Sequence[Figure]) -> Comparison:
    """Test a sample against a reference with Student's and with Welch's t-test, both two-sided.

    Args:
        values: one for each seed, at least one.
        reference: likewise; the seeds need not be the same, and the two samples are not paired.

    Raises:
        ValueError: one of the two is empty.
    """
    a, b = summarise(values), summarise(reference)
    difference = a.mean - b.mean
    if a.variance is None or b.variance is None:
        return Comparison(difference, reason="a test needs at least two values on each side")
    if a.variance == b.variance == 0:
        return Comparison(difference, reason="neither side varies, so chance cannot be estimated")
    # From the moments: given the samples, SciPy would warn of cancellation where one of the two does not vary.
    student, welch = (
        float(
            ttest_ind_from_stats(
                float(a.mean), math.sqrt(a.variance), a.n, float(b.mean), math.sqrt(b.variance), b.n, equal_var=equal
            ).pvalue
        )
        for equal in (True, False)
    )
    # Welch (1947): the degrees of freedom of a difference whose two variances are estimated apart.
    parts = a.variance / a.n, b.variance / b.n
    total = parts[0] + parts[1]
    freedom = total**2 / (parts[0] ** 2 / (a.n - 1) + parts[1] ** 2 / (b.n - 1))
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, float(freedom))) * math.sqrt(total)
    return Comparison(difference, (float(difference) - half, float(difference) + half), student, welch)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, after Holm (1979); in the order given.

    The k-th smallest of m is multiplied by m - k + 1, and none becomes smaller than one before it, nor larger than 1.
    Adjusted values below a level bound the chance of even one false finding by that level.
    """
    m = len(p_values)
    adjusted = [0.0] * m
    highest = 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
