"""The threat model: which perturbations an attacker may make, and whether one lies within them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from robustfdd.errors import ConfigurationError

if TYPE_CHECKING:  # study files are read, and help is printed, without torch
    from torch import Tensor

Norm = Literal["linf", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)

#: Relative and absolute slack granted to float32 arithmetic when a perturbation is held against its budget.
#: A step of an attack is a handful of float32 operations on values of at most 1, so its rounding error is a few
#: units of 2**-24 = 6e-8 a pixel; in L2 the errors of d pixels add up to at most sqrt(d) times that.
BUDGET_RTOL = 1e-5
BUDGET_ATOL = 1e-6
#: Slack for the box [0, 1]: an attack that adds a clipped perturbation back to the image may leave it by a rounding.
BOX_ATOL = 1e-6

#: Larger radii are mistakes: in L-infinity 1 already reaches every image, and in L2 the square root of the number of
#: pixels does, which is below this for images of up to 5,000 x 5,000 pixels in three channels.
MAX_EPS: dict[Norm, float] = {"linf": 1.0, "l2": 1e4}


@dataclass(frozen=True)
class Threat:
    """A ball of perturbations around an image, cut with the box [0, 1] of valid pixels.

    Attributes:
        norm: ``"linf"`` or ``"l2"``.
        eps: radius of the ball in pixel units, that is for pixels in [0, 1]; finite, at least 0 and at most
            :data:`MAX_EPS`. For L2 it is the Euclidean length over all pixels and channels of one image.
        normalized: the same radius in units of a model's normalisation, as it was asked for; None where it was asked
            for in pixel units. Kept because neither product nor quotient of floats can be undone to the last bit. Two
            threats of one ball are equal, however they were asked for.

    Raises:
        ConfigurationError: the norm is unknown, or eps is negative, not finite or too large.
    """

    norm: Norm
    eps: float
    normalized: float | None = field(default=None, compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ConfigurationError(f"unknown norm {self.norm!r}; allowed: {', '.join(NORMS)}")
        if not math.isfinite(self.eps) or self.eps < 0:
            raise ConfigurationError(f"eps must be finite and at least 0, not {self.eps!r}")
        if self.eps > MAX_EPS[self.norm]:
            raise ConfigurationError(
                f"eps must be at most {MAX_EPS[self.norm]:g} in {self.norm}, not {self.eps:g}: it is for pixels in "
                f"[0, 1], where 8 of 255 levels are {8 / 255:.4f}"
            )

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Length of the perturbation of each image, in pixel units.

        Args:
            x: images, shape (N, ...).
            x_adv: perturbed images, same shape.

        Returns:
            Shape (N,), in float64, so that measuring adds no rounding of its own.
        """
        delta = (x_adv.detach().double() - x.detach().double()).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def within(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Whether each perturbed image respects the budget, up to float32 rounding.

        Returns:
            Boolean, shape (N,). NaN in ``x_adv`` counts as outside.
        """
        slack = BUDGET_ATOL if self.norm == "linf" else BUDGET_ATOL * math.sqrt(x.shape[1:].numel())
        return self.distance(x, x_adv) <= self.eps * (1 + BUDGET_RTOL) + slack


def in_box(x: Tensor) -> Tensor:
    """Whether all pixels of each image lie in [0, 1], up to float32 rounding (:data:`BOX_ATOL`).

    Args:
        x: images, shape (N, ...).

    Returns:
        Boolean, shape (N,). NaN counts as outside.
    """
    flat = x.detach().flatten(1)
    return ((flat >= -BOX_ATOL) & (flat <= 1 + BOX_ATOL)).all(1)
