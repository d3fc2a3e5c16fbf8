"""Crossmap dropout: one mask over the positions, the same for all feature maps of a sample.

Source: Poernomo & Kang 2018, "Biased Dropout and Crossmap Dropout" (Neural Networks 104): units at the same coordinate
of different maps are dropped or kept together, to break up the correlation between the maps. It is the counterpart of
spatial dropout, which drops all positions of one map together.

What the source or Ke et al. 2020, who compare with it, leave open: the probability (``p = 0.5`` here, that of original
dropout), and the rescaling (``"inverted"`` here, as torch's dropout does).
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustfdd.dropouts.base import ConstantDropout, DropoutSpec, register
from robustfdd.errors import ConfigurationError


class CrossmapDropout(ConstantDropout):
    """Drop positions of all feature maps together, independently for every sample and position.

    Its arguments are those of :class:`~robustfdd.dropouts.base.ConstantDropout`.
    """

    def drop_probability(self, x: Tensor) -> Tensor:
        """The constant p, one entry a position.

        Args:
            x: feature maps, shape (N, C, H, W), or with any other number of spatial dimensions from 1.

        Returns:
            Shape (N, 1, H, W).

        Raises:
            ConfigurationError: x has fewer than three dimensions.
        """
        if x.ndim < 3:
            raise ConfigurationError(f"crossmap dropout needs feature maps, (N, C, H, W), not shape {tuple(x.shape)}")
        return self.constant(torch.Size((x.shape[0], 1, *x.shape[2:])), x.device)


register(
    DropoutSpec(
        name="crossmap",
        title="Crossmap",
        build=CrossmapDropout,
        site="maps",
        placements=("last", "stages"),
        source="Poernomo & Kang 2018, Biased Dropout and Crossmap Dropout, Neural Networks 104",
        summary="Positions are dropped in all feature maps together, all with the same probability.",
        order=40,
        strategy="Same positions across feature maps, random",
        hyperparameters="Drop probability",
    )
)
