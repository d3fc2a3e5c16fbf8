"""Stochastic activation pruning (SAP): after training, activations are kept by chance in proportion to their magnitude.

Source: Dhillon et al. 2018, "Stochastic Activation Pruning for Robust Adversarial Defense" (ICLR). In a network trained
without it, the activations a of one sample and layer are drawn r times with replacement, a_i with the probability
p_i = |a_i| / sum |a|. What was drawn at least once is kept and divided by the probability of that,
1 - (1 - p_i)^r; the rest is set to 0. So it does nothing in training and makes the forward pass random in evaluation:
attacks need the mean of many gradients (expectation over transformation; Athalye, Carlini & Wagner 2018, ICML).

What the source or Ke et al. 2020, who compare with it, leave open, and what is done here:

* *Which layers.* The placement of the model: after each stage of the network (``"stages"``) or on the last feature maps
  (``"last"``). The source prunes after every activation and shows results for other choices too.
* *How many draws.* ``share = 1.0``: as many as the sample has activations in that layer (the source's SAP-100).
* *The gradient.* None passes through the probabilities; the mask and its divisor count as constants.
* *A sample of zeros only* has no probabilities, and nothing to prune; it stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustfdd.dropouts.base import Active, Dropout, DropoutSpec, Rescale, check_number, register
from robustfdd.errors import ConfigurationError


class StochasticActivationPruning(Dropout):
    """Keep the activations that a draw in proportion to their magnitude hits at least once.

    Args:
        share: number of draws r over the number of activations of a sample, above 0; r is rounded, and at least 1.
        rescale: ``"inverted"``, the source's: divide what is kept by the probability that it is kept; ``"none"``.
        active: ``"test"``, the source's: in evaluation only; or as in :class:`~robustfdd.dropouts.base.Dropout`.
        generator: see :class:`~robustfdd.dropouts.base.Dropout`.

    Raises:
        ConfigurationError: an option is out of its range.
    """

    def __init__(
        self,
        share: float = 1.0,
        *,
        rescale: Rescale = "inverted",
        active: Active = "test",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(rescale=rescale, active=active, generator=generator)
        if rescale == "test":
            raise ConfigurationError("rescale must be one of none, inverted, not 'test': SAP itself acts at test time")
        check_number("share", share)
        if not 0 < share < float("inf"):
            raise ConfigurationError(f"share must be a finite number above 0, not {share!r}")
        self.share = share

    def _n_draws(self, n_activations: int) -> int:
        return max(1, round(self.share * n_activations))

    def drop_probability(self, x: Tensor) -> Tensor:
        """The probability (1 - p_i)^r that an activation is never drawn.

        Args:
            x: activations, shape (N, C) or (N, C, ...); those of a sample are one population.

        Returns:
            Shape of x, float32; 1 for an activation of 0, and 0 throughout a sample of zeros.
        """
        return (1 - self._keep_probability(self._shares(x))).float().view(x.shape)

    def _keep_probability(self, share: Tensor) -> Tensor:
        """1 - (1 - p_i)^r, shape of ``share``, float64; 1 throughout a sample of zeros."""
        # Neither 1 - p nor one minus its power may be formed: p is often below the resolution of a float near 1.
        keep = -torch.expm1(self._n_draws(share.shape[1]) * torch.log1p(-share.clamp(max=1.0)))
        return torch.where(share.sum(1, keepdim=True) > 0, keep, torch.ones_like(keep))

    @staticmethod
    def _shares(x: Tensor) -> Tensor:
        """p_i, shape (N, number of activations), float64; 0 throughout a sample of zeros."""
        magnitude = x.detach().flatten(1).double().abs()
        total = magnitude.sum(1, keepdim=True)
        return magnitude / torch.where(total > 0, total, torch.ones_like(total))

    def multiplier(self, x: Tensor) -> Tensor:
        """Draw with replacement; 0 for what was never drawn, 1 or 1 / (1 - (1 - p_i)^r) for the rest. Shape of x."""
        share = self._shares(x)
        edges = share.cumsum(1)
        total = edges[:, -1:]
        draws = self.draw_uniform((len(share), self._n_draws(share.shape[1])), x.device).double()
        # An activation of 0 takes up nothing between its edges, so that no draw can fall on it.
        hit = torch.searchsorted(edges, draws * total, right=True).clamp_max(share.shape[1] - 1)
        kept = torch.zeros_like(share, dtype=torch.bool).scatter_(1, hit, value=True)
        kept = kept | (total <= 0)
        if self.rescale != "inverted":
            return kept.view(x.shape)
        # Nothing of probability 0 is kept, so no division by it is chosen.
        return torch.where(kept, 1 / self._keep_probability(share), torch.zeros_like(share)).view(x.shape)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"share={self.share}, {super().extra_repr()}"


register(
    DropoutSpec(
        name="sap",
        title="SAP",
        build=StochasticActivationPruning,
        site="maps",
        placements=("last", "stages"),
        source="Dhillon et al. 2018, Stochastic Activation Pruning for Robust Adversarial Defense, ICLR",
        summary="At test time, activations are kept by chance in proportion to their magnitude.",
        order=60,
        strategy="Neuron magnitudes",
        adaptive=True,
        dynamic=False,
        hyperparameters="Layers; number of draws",
        cost="Sampling from the distribution of magnitudes, in every evaluation",
    )
)
