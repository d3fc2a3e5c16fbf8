"""Spatial dropout: whole feature maps are dropped, all with the same probability.

Source: Tompson et al. 2015, "Efficient Object Localization Using Convolutional Networks" (CVPR): one Bernoulli draw
for each map of each sample, extended over all its positions. It leaves the rescaling open; the default here is that
of ``torch.nn.Dropout2d``, which implements the same paper. Ke et al. 2020 state neither p nor the rescaling of this
baseline.

On the last feature maps, with global average pooling after it, this layer is original dropout on the pooled
features: the mean of a map that is multiplied by m is m times its mean.
"""

from __future__ import annotations

from torch import Tensor

from robustfdd.dropouts.base import ConstantDropout, DropoutSpec, register
from robustfdd.errors import ConfigurationError


class SpatialDropout(ConstantDropout):
    """Drop whole channels; with the defaults, the same as ``torch.nn.Dropout2d``.

    Its arguments are those of :class:`~robustfdd.dropouts.base.ConstantDropout`.
    """

    def drop_probability(self, x: Tensor) -> Tensor:
        """The constant p, one entry a map.

        Args:
            x: feature maps, shape (N, C, H, W), or with any other number of spatial dimensions from 1.

        Returns:
            Shape (N, C).

        Raises:
            ConfigurationError: x has fewer than three dimensions.
        """
        if x.ndim < 3:
            raise ConfigurationError(f"spatial dropout needs feature maps, (N, C, H, W), not shape {tuple(x.shape)}")
        return self.constant(x.shape[:2], x.device)


register(
    DropoutSpec(
        name="spatial",
        title="Spatial",
        build=SpatialDropout,
        site="maps",
        placements=("last", "stages"),
        source="Tompson et al. 2015, Efficient Object Localization Using Convolutional Networks, CVPR",
        summary="Whole feature maps are dropped, all with the same probability.",
        order=30,
        strategy="Entire feature map, random",
        hyperparameters="Drop probability",
    )
)
