"""Jumpout: a random rate in every step, made up for the share of inactive units, with a milder rescaling.

Source: Wang, Zhou & Bilmes 2019, "Jumpout: Improved Dropout for Deep Neural Networks with ReLUs" (ICML). Three changes
to original dropout: the rate is drawn anew in every step from the right half of a Gaussian, so that small rates are the
most frequent; it is divided by the share of units that are active (above 0), so that layers with few active units lose
as many of them as layers with many: the rate is then the share of all units that are active *and* dropped; and what is
kept is multiplied by (1 - p)^-0.75, a compromise between keeping the mean and keeping the variance, which batch
normalisation would need.

What the source or Ke et al. 2020 leave open, and what is done here:

* *The Gaussian.* p = p_min + |n|, n ~ N(0, sigma), at most p_max. Its width is a matter of tuning; here
  ``sigma = 0.05``, ``p_min = 0.01`` and ``p_max = 0.6``, small rates that suit a network with batch normalisation.
* *The share of active units* is taken over the whole batch; the rate, after division by it, is at most ``p_max`` again.
* *Which units.* Single elements of the last feature maps, which a ReLU has just made; on the pooled features the share
  of active units is 1 almost always, and the second change would do nothing.
* *At evaluation* nothing is done; ``rescale="test"`` is refused, since the rate is random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustfdd.dropouts.base import Active, Dropout, DropoutSpec, Rescale, check_number, check_probability, register
from robustfdd.errors import ConfigurationError


class Jumpout(Dropout):
    """Drop single units with a rate that is drawn from half a Gaussian in every call.

    Args:
        sigma: standard deviation of the Gaussian before it is folded, at least 0.
        p_min: the smallest rate, in [0, 1].
        p_max: the largest rate, before and after normalisation, from ``p_min`` to below 1.
        exponent: of the rescaling, at least 0: what is kept is multiplied by (1 - p)^-exponent; 1 keeps the mean.
        rescale: ``"inverted"``, the source's, or ``"none"``.
        active: see :class:`~robustfdd.dropouts.base.Dropout`.
        generator: see :class:`~robustfdd.dropouts.base.Dropout`; also of the rate.

    Raises:
        ConfigurationError: an option is out of its range.
    """

    def __init__(
        self,
        sigma: float = 0.05,
        p_min: float = 0.01,
        p_max: float = 0.6,
        exponent: float = 0.75,
        *,
        rescale: Rescale = "inverted",
        active: Active = "train",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(rescale=rescale, active=active, generator=generator)
        if rescale == "test":
            raise ConfigurationError("rescale must be one of none, inverted, not 'test': the rate of jumpout is random")
        for option, value in (("sigma", sigma), ("exponent", exponent)):
            check_number(option, value)
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"{option} must be a finite number from 0, not {value!r}")
        check_probability("p_min", p_min)
        check_probability("p_max", p_max)
        if not p_min <= p_max < 1:
            raise ConfigurationError(f"p_max must lie in [p_min, 1), not {p_max!r} (p_min {p_min!r})")
        self.sigma = sigma
        self.p_min = p_min
        self.p_max = p_max
        self.exponent = exponent

    def draw_rate(self, device: torch.device) -> Tensor:
        """A rate from the folded Gaussian, between ``p_min`` and ``p_max``; float32, shape ()."""
        # The inverse of the folded Gaussian's distribution function, of a uniform number below 1.
        folded = 2**0.5 * torch.erfinv(self.draw_uniform((), device))
        return (self.p_min + self.sigma * folded).clamp(max=self.p_max)

    def normalized(self, rate: Tensor, x: Tensor) -> Tensor:
        """The rate over the share of active units of the batch, at most ``p_max``; float32, shape ()."""
        active = (x.detach() > 0).float().mean()
        # A batch without active units has nothing to drop, whatever the rate.
        return torch.where(active > 0, rate / active, rate).clamp(max=self.p_max)

    def drop_probability(self, x: Tensor) -> Tensor:
        """A rate drawn for this call and normalised, the same for all units.

        Args:
            x: activations, of any shape (N, C) or (N, C, ...).

        Returns:
            Shape of x, float32; another value in each call.
        """
        return self.normalized(self.draw_rate(x.device), x).expand(x.shape)

    def multiplier(self, x: Tensor) -> Tensor:
        """Draw a rate, then the mask: 0 for dropped units, 1 or (1 - p)^-exponent for kept ones. Shape of x."""
        p = self.drop_probability(x)
        keep = self.draw_uniform(p.shape, p.device) >= p
        return keep * (1 - p) ** -self.exponent if self.rescale == "inverted" else keep

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        rate = f"sigma={self.sigma}, p_min={self.p_min}, p_max={self.p_max}, exponent={self.exponent}"
        return f"{rate}, {super().extra_repr()}"


register(
    DropoutSpec(
        name="jumpout",
        title="Jumpout",
        build=Jumpout,
        site="maps",
        placements=("last", "stages"),
        source="Wang, Zhou & Bilmes 2019, Jumpout: Improved Dropout for Deep Neural Networks with ReLUs, ICML",
        summary="Units are dropped with a random rate, made up for the share of units that are inactive.",
        order=70,
        strategy="Random, with a rate from half a Gaussian",
        adaptive=True,
        hyperparameters="Width and limits of the Gaussian; exponent of the rescaling",
        cost="Share of active units",
    )
)
