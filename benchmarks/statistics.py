"""Medians and ratios of paired durations, with their intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: The interval of a median covers it with at least this probability, where there are measurements enough for that.
COVERAGE = 0.95


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios.

    Attributes:
        median: of them.
        low: the lower end of its interval (:func:`median_interval`).
        high: the upper end.
    """

    median: float
    low: float
    high: float


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The order-statistic interval of the median (Conover 1999, section 3.2): it assumes no distribution.

    The k-th smallest and the k-th largest of n values enclose the median with probability 1 - 2 P(B < k), B binomial
    with n draws of probability 1/2; k is the largest for which that is at least :data:`COVERAGE`. Fewer than six
    values have no such k: then it is their range, which covers less.

    Args:
        values: at least one.
    """
    ordered, n = sorted(values), len(values)
    k, below = 1, 0.5**n  # P(B < 1)
    while 2 * (below + math.comb(n, k) * 0.5**n) <= 1 - COVERAGE:
        below += math.comb(n, k) * 0.5**n
        k += 1
    return ordered[k - 1], ordered[n - k]


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """The median of the ratios of values that were measured side by side.

    Args:
        numerators: at least one.
        denominators: as many, above 0.
    """
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), *median_interval(ratios))
