"""Guided dropout, its variant DR: units of the active region are dropped at random, those of the inactive one never.

Source: Keshari, Singh & Vatsa 2019, "Guided Dropout" (AAAI). Every unit has a strength t that is learned with the
weights and multiplies its response, in training and afterwards. A histogram of the relative strengths over 100 bins
finds the inactive region, the bin that holds the most units; the units outside it, the active region, are dropped
with a probability that falls in the course of training: 0.2, then 0.15, then 0.1. The idea is that the weak units,
which crowd in the fullest bin, have to learn.

What the source or Ke et al. 2020, who compare with it, leave open, and what is done here:

* *The relative strength* is |t| / max |t|, in [0, 1]; its maximum belongs to the last bin, and of equally full
  bins the one of the lowest strength is the inactive region.
* *The stages of training* are three equal parts of it (``p_first``, ``p_second``, ``p_third``), as told by
  :attr:`~robustfdd.dropouts.base.Dropout.progress`; without a training loop that sets it, ``p_first`` stays.
* *The first strengths*: ``start="ones"``, so that the network begins as one without the layer: all units share a bin,
  and none is dropped before the strengths move apart. After a short training the fullest bin is then one in the middle
  and most units are active, so that the layer is close to plain dropout with these rates. ``"uniform"`` draws the
  strengths from [0, 1).
* *Weight decay* acts on the strengths as on all parameters.
* *Rescaling.* ``rescale="inverted"``, as torch's dropout does.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from robustfdd.dropouts.base import (
    Active,
    Dropout,
    DropoutSpec,
    Rescale,
    check_choice,
    check_count,
    check_probability,
    register,
)
from robustfdd.errors import ConfigurationError

Start = Literal["ones", "uniform"]


class GuidedDropout(Dropout):
    """Multiply units by learned strengths, and drop those of the active region.

    The strengths multiply in every mode, ``active="never"`` too: a network that learned them needs them.

    Args:
        n_units: number C of features or feature maps, at least 1.
        p_first: probability to drop a unit of the active region in the first third of training, in [0, 1].
        p_second: the same for the second third.
        p_third: the same for the last third.
        n_bins: bins of the histogram over the relative strength, at least 1; with 1 nothing is dropped.
        start: the strengths before training: ``"ones"`` or ``"uniform"`` on [0, 1).
        rescale: see :class:`~robustfdd.dropouts.base.Dropout`.
        active: see :class:`~robustfdd.dropouts.base.Dropout`.
        generator: see :class:`~robustfdd.dropouts.base.Dropout`; also of ``start="uniform"``.

    Attributes:
        strength: the learned t, shape (C,).

    Raises:
        ConfigurationError: an option is out of its range.
    """

    _rate: Tensor

    def __init__(
        self,
        n_units: int,
        p_first: float = 0.2,
        p_second: float = 0.15,
        p_third: float = 0.1,
        n_bins: int = 100,
        start: Start = "ones",
        *,
        rescale: Rescale = "inverted",
        active: Active = "train",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(rescale=rescale, active=active, generator=generator)
        for option, value in (("p_first", p_first), ("p_second", p_second), ("p_third", p_third)):
            check_probability(option, value)
        for option, count in (("n_units", n_units), ("n_bins", n_bins)):
            check_count(option, count)
        check_choice("start", start, get_args(Start))
        self.rates = (p_first, p_second, p_third)
        self._progress = 0.0
        # What the rate is now, where torch.compile takes it for data: a number would be compiled into the graph.
        self.register_buffer("_rate", torch.tensor(p_first, dtype=torch.float32), persistent=False)
        self.n_bins = n_bins
        self.start = start
        values = torch.ones(n_units)
        if start == "uniform":
            values = self.draw_uniform((n_units,), torch.device("cpu"))
        self.strength = nn.Parameter(values)

    @property
    def progress(self) -> float:
        """See :class:`~robustfdd.dropouts.base.Dropout`."""
        return self._progress

    @progress.setter
    def progress(self, value: float) -> None:
        self._progress = value
        self._rate.fill_(self.rate)

    @property
    def rate(self) -> float:
        """The probability to drop a unit of the active region now."""
        return self.rates[min(int(3 * self._progress), 2)]

    def active_region(self) -> Tensor:
        """Which units are in the active region; boolean, shape (C,)."""
        magnitude = self.strength.detach().abs()
        relative = magnitude / magnitude.amax().clamp_min(torch.finfo(magnitude.dtype).tiny)
        bins = (relative * self.n_bins).long().clamp(0, self.n_bins - 1)
        counts = torch.zeros(self.n_bins, dtype=torch.long, device=bins.device)
        counts.scatter_add_(0, bins, torch.ones_like(bins))
        # Not argmax, which may return any of several equal ones: the fullest bin of the lowest strength.
        fullest = (counts == counts.amax()).long().cumsum(0).eq(0).sum()
        return bins != fullest

    def drop_probability(self, x: Tensor) -> Tensor:
        """The present rate for units of the active region, 0 for the others.

        Args:
            x: features, shape (N, C), or feature maps, shape (N, C, H, W).

        Returns:
            Shape (N, C), float32.
        """
        return (self.active_region().float() * self._rate).expand(x.shape[0], -1)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the strengths, then drop.

        Args:
            x: features, shape (N, C), or feature maps, shape (N, C, H, W).

        Raises:
            ConfigurationError: x has another number of units than the layer.
        """
        if x.ndim < 2 or x.shape[1] != len(self.strength):
            raise ConfigurationError(
                f"guided dropout was built for {len(self.strength)} units; x has the shape {tuple(x.shape)}"
            )
        strength = self.strength.to(x.dtype)
        return super().forward(x * strength.view(-1, *(1,) * (x.ndim - 2)))

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        first, second, third = self.rates
        rates = f"p_first={first}, p_second={second}, p_third={third}"
        return f"{len(self.strength)}, {rates}, n_bins={self.n_bins}, start={self.start!r}, {super().extra_repr()}"


register(
    DropoutSpec(
        name="guided",
        title="Guided (DR)",
        build=GuidedDropout,
        site="features",
        placements=("last", "stages"),
        source="Keshari, Singh & Vatsa 2019, Guided Dropout, AAAI",
        summary="Units have a learned strength; those outside the commonest range of strengths are dropped.",
        order=50,
        strategy="Active region of learned strengths",
        adaptive=True,
        hyperparameters="Drop probabilities of three stages of training",
        cost="Histogram of the strengths",
    )
)
