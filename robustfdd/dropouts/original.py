"""Original dropout: every unit of every sample is dropped by itself, all with the same probability.

Source: Hinton et al. 2012, "Improving neural networks by preventing co-adaptation of feature detectors"
(arXiv:1207.0580): x' = m * x with m ~ Bernoulli(1 - p), p = 0.5 for hidden units. It multiplies the weights by 1 - p
at test time; ``torch.nn.Dropout``, which later work means by "dropout", divides the kept units by 1 - p in training
instead, and that is the default here. Ke et al. 2020 state neither their p nor their rescaling for this baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustfdd.dropouts.base import Active, Dropout, DropoutSpec, Rescale, check_probability, register


class OriginalDropout(Dropout):
    """Drop each element of the input independently; with the defaults, the same as ``torch.nn.Dropout``.

    Args:
        p: probability to drop an element, in [0, 1].
        rescale: see :class:`~robustfdd.dropouts.base.Dropout`.
        active: see :class:`~robustfdd.dropouts.base.Dropout`.
        generator: see :class:`~robustfdd.dropouts.base.Dropout`.

    Raises:
        ConfigurationError: p is outside [0, 1], or an option is not one of the allowed words.
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        rescale: Rescale = "inverted",
        active: Active = "train",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(rescale=rescale, active=active, generator=generator)
        check_probability("p", p)
        self.p = p

    def drop_probability(self, x: Tensor) -> Tensor:
        """The constant p, in the shape of x, which may be any."""
        return torch.full((), self.p, device=x.device, dtype=torch.float32).expand(x.shape)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"p={self.p}, {super().extra_repr()}"


register(
    DropoutSpec(
        name="original",
        title="Original",
        build=OriginalDropout,
        site="features",
        placements=("last", "stages"),
        source=(
            "Hinton et al. 2012, Improving neural networks by preventing co-adaptation of feature detectors, "
            "arXiv:1207.0580"
        ),
        summary="Every unit is dropped independently, with the same probability.",
        order=10,
    )
)
