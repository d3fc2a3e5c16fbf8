"""Original dropout: every unit of every sample is dropped by itself, all with the same probability.

Source: Hinton et al. 2012, "Improving neural networks by preventing co-adaptation of feature detectors"
(arXiv:1207.0580): x' = m * x with m ~ Bernoulli(1 - p), p = 0.5 for hidden units. It multiplies the weights by 1 - p
at test time; ``torch.nn.Dropout``, which later work means by "dropout", divides the kept units by 1 - p in training
instead, and that is the default here. Ke et al. 2020 state neither their p nor their rescaling for this baseline.
"""

from __future__ import annotations

from torch import Tensor

from robustfdd.dropouts.base import ConstantDropout, DropoutSpec, register


class OriginalDropout(ConstantDropout):
    """Drop each element of the input independently; with the defaults, the same as ``torch.nn.Dropout``.

    Its arguments are those of :class:`~robustfdd.dropouts.base.ConstantDropout`.
    """

    def drop_probability(self, x: Tensor) -> Tensor:
        """The constant p, in the shape of x, which may be any."""
        return self.constant(x.shape, x.device)


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
        strategy="Random",
        hyperparameters="Drop probability",
    )
)
