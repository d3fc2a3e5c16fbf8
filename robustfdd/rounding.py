"""Figures as text: kept as exact fractions, and rounded once, by one rule.

A share of images is a count over a count, and so is a mean of such shares over seeds. As floats the same mean can
come out a last bit higher or lower, by the order of the seeds alone, and a figure halfway between two printed ones then
falls to either side. Here a figure is a :class:`fractions.Fraction` until it is printed, and a half is rounded away
from zero: 8.25 is 8.3, and -8.25 is -8.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import SupportsFloat, TypeAlias

Figure: TypeAlias = int | float | Fraction

#: How far a share that was kept as a float may be from a count over a count, to be that one.
_FLOAT_NOISE = 1e-9


def exact(value: Figure) -> Fraction:
    """The number that a figure stands for: a float is the decimal that it prints as.

    Raises:
        ValueError: it is NaN or infinite.
    """
    if isinstance(value, Fraction):
        return value
    return Fraction(int(value)) if isinstance(value, int) else Fraction(repr(float(value)))


def share(value: SupportsFloat, of: int) -> Fraction:
    """A share of ``of`` things that was kept as a float, as the count over a count that it was.

    A value that is none, as of a file by somebody else, stays the decimal that it prints as.
    """
    value = float(value)
    if of > 0:
        count = round(value * of)
        if abs(count / of - value) <= _FLOAT_NOISE:
            return Fraction(count, of)
    return exact(value)


def mean(values: Sequence[Figure]) -> Fraction:
    """The mean, exactly; the order of the values makes no difference.

    Raises:
        ZeroDivisionError: there are no values.
    """
    return sum(map(exact, values), Fraction(0)) / len(values)


def variance(values: Sequence[Figure]) -> Fraction:
    """The sample variance (divided by n - 1), exactly; the order of the values makes no difference.

    Raises:
        ZeroDivisionError: there are fewer than two values.
    """
    middle = mean(values)
    return sum(((exact(value) - middle) ** 2 for value in values), Fraction(0)) / (len(values) - 1)


def _half_away(value: Fraction) -> int:
    """The nearest whole number; of two, the one farther from zero."""
    doubled = 2 * abs(value)
    nearest = (doubled.numerator + doubled.denominator) // (2 * doubled.denominator)
    return nearest if value >= 0 else -nearest


def _with_point(units: int, decimals: int) -> str:
    """A whole number of the last decimal's units, written with its decimal point."""
    digits = f"{abs(units):0{decimals + 1}d}"
    text = f"{digits[:-decimals]}.{digits[-decimals:]}" if decimals else digits
    return f"-{text}" if units < 0 else text


def fixed(value: Figure, decimals: int, *, sign: bool = False) -> str:
    """A figure with that many decimals, rounded once; zero has no sign.

    Args:
        value: the figure. NaN and infinities are written as they are.
        decimals: how many, from 0.
        sign: whether a figure above zero has a plus.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    units = _half_away(exact(value) * 10**decimals)
    return ("+" if sign and units > 0 else "") + _with_point(units, decimals)


def fixed_root(square: Fraction, decimals: int) -> str:
    """The square root of a figure with that many decimals, correctly rounded: of a variance, the standard deviation."""
    scaled = 4 * square * 100**decimals
    return _with_point((math.isqrt(scaled.numerator // scaled.denominator) + 1) // 2, decimals)


def with_spread(middle: Figure, square: Fraction | None, decimals: int) -> str:
    """A mean with the standard deviation of that variance, each with that many decimals; None: there is no variance."""
    return fixed(middle, decimals) + ("" if square is None else f" ± {fixed_root(square, decimals)}")


def rounded(value: Figure, decimals: int) -> float:
    """A figure as the float that prints with at most that many decimals, for data."""
    return float(Fraction(_half_away(exact(value) * 10**decimals), 10**decimals))


def significant(value: Figure, digits: int) -> str:
    """A figure with at most ``digits`` significant digits, never in exponent form unless it is tiny or huge."""
    size = abs(float(value))
    if size != 0 and not 1e-6 <= size < 1e9:
        return f"{float(value):.{digits}g}"
    if size == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(size))
    units = _half_away(exact(value) * Fraction(10) ** decimals)
    text = _with_point(units, decimals) if decimals > 0 else str(units * 10**-decimals)
    return text.rstrip("0").rstrip(".") if "." in text else text
