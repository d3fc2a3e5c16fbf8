"""Biased dropout: of each sample's units, the half that responds more strongly is dropped less often.

Source: Poernomo & Kang 2018, "Biased Dropout and Crossmap Dropout" (Neural Networks 104). The units of a layer are put
into two groups by the magnitude of their response, and each group has a drop probability of its own, the lower one for
the group of the stronger responses.

What the source or Ke et al. 2020, who compare with it, leave open, and what is done here:

* *The two probabilities.* ``p_strong = 0.4`` and ``p_weak = 0.6``: their mean is the 0.5 of original dropout, so that
  the two methods drop the same share of units and differ in the bias alone.
* *The groups.* ``share_strong = 0.5`` makes them equally large, sample by sample. Of equal responses the earlier unit
  counts as the stronger one; it decides only for units that respond alike, most of them with 0.
* *Rescaling.* ``rescale="inverted"``, as torch's dropout does; each group by its own probability.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustfdd.dropouts.base import Active, Dropout, DropoutSpec, Rescale, check_probability, register
from robustfdd.errors import ConfigurationError


class BiasedDropout(Dropout):
    """Drop single units with one of two probabilities, by the magnitude of their response.

    Args:
        p_strong: probability to drop a unit of the stronger group, in [0, 1].
        p_weak: probability to drop one of the others, in [0, 1].
        share_strong: share of a sample's units that are in the stronger group, in [0, 1]; their number is rounded
            down.
        rescale: see :class:`~robustfdd.dropouts.base.Dropout`.
        active: see :class:`~robustfdd.dropouts.base.Dropout`.
        generator: see :class:`~robustfdd.dropouts.base.Dropout`.

    Raises:
        ConfigurationError: an option is out of its range, or ``p_strong`` is above ``p_weak``.
    """

    def __init__(
        self,
        p_strong: float = 0.4,
        p_weak: float = 0.6,
        share_strong: float = 0.5,
        *,
        rescale: Rescale = "inverted",
        active: Active = "train",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(rescale=rescale, active=active, generator=generator)
        for option, value in (("p_strong", p_strong), ("p_weak", p_weak), ("share_strong", share_strong)):
            check_probability(option, value)
        if p_strong > p_weak:
            raise ConfigurationError(
                f"p_strong must be at most p_weak, not {p_strong!r} above {p_weak!r}: strong units are dropped less"
            )
        self.p_strong = p_strong
        self.p_weak = p_weak
        self.share_strong = share_strong

    def drop_probability(self, x: Tensor) -> Tensor:
        """``p_strong`` for the units of each sample with the largest absolute values, ``p_weak`` for the others.

        Args:
            x: shape (N, C) or (N, C, ...); all units of a sample are ranked together.

        Returns:
            Shape of x, float32.
        """
        magnitude = x.detach().abs().flatten(1)
        # The slack is for products such as 0.29 * 100, which rounding puts below 29.
        n_strong = int(self.share_strong * magnitude.shape[1] + 1e-9)
        strongest = magnitude.argsort(dim=1, descending=True, stable=True)[:, :n_strong]
        p = torch.full_like(magnitude, self.p_weak, dtype=torch.float32)
        return p.scatter_(1, strongest, self.p_strong).view(x.shape)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        groups = f"p_strong={self.p_strong}, p_weak={self.p_weak}, share_strong={self.share_strong}"
        return f"{groups}, {super().extra_repr()}"


register(
    DropoutSpec(
        name="biased",
        title="Biased",
        build=BiasedDropout,
        site="features",
        placements=("last", "stages"),
        source="Poernomo & Kang 2018, Biased Dropout and Crossmap Dropout, Neural Networks 104",
        summary="Units are dropped independently, the more strongly responding half less often.",
        order=20,
        strategy="Activation magnitudes",
        adaptive=True,
        hyperparameters="Two drop probabilities",
        cost="Division into two groups",
    )
)
