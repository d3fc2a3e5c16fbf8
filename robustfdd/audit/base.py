"""What an indicator is, what it finds, and how findings become a verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from robustfdd.audited import ALARM_POINTS, verdict_of
from robustfdd.records import Status
from robustfdd.registry import Registry

if TYPE_CHECKING:
    from robustfdd.audit.evidence import Evidence

__all__ = [
    "ALARM_POINTS",
    "INDICATORS",
    "WARNING_POINTS",
    "Finding",
    "Indicator",
    "Line",
    "graded",
    "positions",
    "register",
    "verdict_of",
]

#: Margin, in percentage points of all images, by which one attack must beat another before a warning is given: twice
#: the steps that still gain more than this were too few (Carlini et al. 2019).
WARNING_POINTS = 1.0


@dataclass(frozen=True)
class Finding:
    """What an indicator found.

    Attributes:
        status: ``"passed"``, ``"warning"``, ``"alarm"`` or ``"not applicable"``.
        value: the figure that was held against the threshold; None where there is none.
        text: one or two sentences with the figures in them.
        images: positions of the images concerned, among those that were attacked, ascending.
    """

    status: Status
    value: float | None
    text: str
    images: tuple[int, ...] = ()


@dataclass(frozen=True)
class Indicator:
    """One test of whether a number can be believed.

    Attributes:
        number: its place in the list; see the documentation.
        name: lower case with hyphens.
        title: for people, in a few words.
        unit: of the value, e.g. ``"points"``.
        threshold: in words, both levels.
        source: where the test and the threshold come from.
        advice: what to do when it fails, in one sentence.
        compute: looks at the evidence.
        cost: roughly, in input gradients an image, for the progress bar.
    """

    number: int
    name: str
    title: str
    unit: str
    threshold: str
    source: str
    advice: str
    compute: Callable[[Evidence], Finding]
    cost: float = 1.0


@dataclass(frozen=True)
class Line:
    """One line, or the one surface, of a picture.

    Attributes:
        picture: ``"loss-along-attack"``, ``"loss-surface"``, ``"unbounded"``, ``"steps"`` or ``"logit-scale"``.
        series: the name of the line.
        x: abscissae.
        y: ordinates.
        z: heights of a surface, row by row: ``len(y)`` rows of ``len(x)``.
        x_title: what the abscissa is.
        y_title: what the ordinate is.
        title: of the picture.
    """

    picture: str
    series: str
    x: Sequence[float]
    y: Sequence[float]
    x_title: str
    y_title: str
    title: str
    z: Sequence[float] = field(default_factory=tuple)


#: All known indicators by name. It follows later registrations.
INDICATORS: Registry[Indicator] = Registry("indicator", claims=lambda indicator: {f"number {indicator.number}"})
register = INDICATORS.register


def graded(value: float, *, warning: float, alarm: float | None = None, least: float = 0.0) -> Status:
    """The status of a value of which more is worse: above ``alarm``, else above ``warning``, else passed.

    Args:
        value: what was measured.
        warning: a value above it is a warning.
        alarm: a value above it is an alarm; none is when None.
        least: both levels are at least this: of few images, a single one is more than a point, and decides nothing.
    """
    value -= 1e-9  # shares of images are compared, which differ by rounding
    if alarm is not None and value > max(alarm, least):
        return "alarm"
    return "warning" if value > max(warning, least) else "passed"


def positions(images: Tensor) -> tuple[int, ...]:
    """Where a choice of images, boolean, shape (N,), is true; ascending."""
    return tuple(images.nonzero().squeeze(1).tolist())


def nothing_left(images: Tensor, attacks: str = "The audited attack") -> Finding | None:
    """The finding of an indicator that looks for more than some attacks found, where they left nothing to find.

    Args:
        images: which of the attacked images they left, boolean, shape (N,).
        attacks: what they are, as the beginning of a sentence, in the singular.

    Returns:
        None where there is an image that more could be found on.
    """
    if bool(images.any()):
        return None
    return Finding("not applicable", None, f"{attacks} left no image, so there is nothing more to find.")
