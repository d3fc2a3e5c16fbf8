"""How each method looks, the same in every figure, and where each epsilon stands on the axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robustfdd.report.study import ZERO, Epsilon, EpsUnit, unit_titles

# The palette of Okabe and Ito (2008), safe for the common colour blindnesses, without its yellow, which is too
# light for a line on white; then four colours of Tol's "muted" scheme (2021) for those who have more methods.
_COLOURS = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"),
    *("#882255", "#999933", "#332288", "#999999"),
)
# Marker and line style differ too, so a figure printed in grey still tells its lines apart. The first name of a
# pair is Matplotlib's, the second Plotly's. There are as many markers as colours, and the number of lines has no
# factor in common with them: styles repeat after 44.
_MARKERS = (
    *(("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down")),
    *(("P", "cross"), ("X", "x"), ("p", "pentagon"), ("*", "star"), ("<", "triangle-left"), (">", "triangle-right")),
)
_LINES = (("-", "solid"), ("--", "dash"), ("-.", "dashdot"), (":", "dot"))


@dataclass(frozen=True)
class Style:
    """Colour, marker and line of one method, for Matplotlib and for Plotly."""

    colour: str
    marker: str
    line: str
    symbol: str
    dash: str


def style(index: int) -> Style:
    """The style of the method at a position of the study."""
    marker, symbol = _MARKERS[index % len(_MARKERS)]
    line, dash = _LINES[index % len(_LINES)]
    return Style(_COLOURS[index % len(_COLOURS)], marker, line, symbol, dash)


@dataclass(frozen=True)
class EpsilonAxis:
    """The places of the radii 0, eps_1, eps_2, ... on an axis from 0 to 1.

    The radii of published sweeps double from one to the next: on a linear axis most points crowd at the left, where
    the curves fall, and 0, the clean accuracy, has no place on a logarithmic one. So for such a grid the axis is linear
    from 0 to the smallest radius and logarithmic from there, with the first step as wide as the average one after it;
    radii that double are evenly spaced. A grid that is nearer to even steps has a linear axis. Of the two the one is
    taken that keeps the two closest points further apart.

    Attributes:
        positions: one for 0 and one for each radius.
        units: the names of the units of epsilon: two, or pixels alone.
        labels: the tick labels, in each unit.
    """

    positions: tuple[float, ...]
    units: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]

    @property
    def title(self) -> str:
        """The title of an axis that shows the first unit; both names where the two are the same."""
        return f"ε ({self.units[0]})" if self.two_units else f"ε ({' = '.join(self.units)})"

    @property
    def two_units(self) -> bool:
        """Whether there are two units that differ, as they do unless the standard deviation is 1."""
        return len(self.labels) > 1 and self.labels[0] != self.labels[1]

    @property
    def radii(self) -> tuple[str, ...]:
        """Every radius in words, in every unit."""
        return tuple(
            ", ".join(f"{text} {unit}" for text, unit in zip(texts, self.units, strict=True))
            for texts in zip(*self.labels, strict=True)
        )

    def labelled(self, labels: Sequence[str], characters: float) -> list[int]:
        """The ticks to label: 0, the last, and as many evenly chosen ones between them as have room.

        Args:
            labels: one for each tick.
            characters: how many characters in a row are as long as the axis.
        """

        def fits(low: int, high: int) -> bool:
            room = characters * (self.positions[high] - self.positions[low])
            return room >= (len(labels[low]) + len(labels[high])) / 2 + 1

        last = len(self.positions) - 1
        for stride in range(1, last):
            chosen = [*range(last, 0, -stride)][::-1]
            if all(fits(low, high) for low, high in pairwise(chosen)):
                return [0, *(i for i in chosen if i == last or fits(0, i))]
        return [0, last]


def epsilon_axis(grid: Sequence[Epsilon], first: EpsUnit) -> EpsilonAxis:
    """The axis for a grid of radii, ascending, all above 0, with the unit ``first`` before the other."""
    radii = np.array([0.0, *(eps.pixel for eps in grid)])
    linear = radii / radii[-1]
    octave = math.log(radii[-1] / radii[1]) / max(len(grid) - 1, 1) or 1.0
    steps = np.array([0.0, *(1 + np.log(radii[1:] / radii[1]) / octave)])
    logarithmic = steps / steps[-1]
    positions = max(linear, logarithmic, key=lambda places: float(np.diff(places).min()))
    texts = [eps.texts(first, 3) for eps in grid]
    units = unit_titles(first) if len(texts[0]) > 1 else ("pixel",)
    labels = tuple(zip(ZERO.texts(first)[: len(units)], *texts, strict=True))
    return EpsilonAxis(tuple(positions.tolist()), units, labels)
