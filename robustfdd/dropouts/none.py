"""No dropout: the baseline that every variant is compared with.

Source: the baseline "Non-dropout" of Ke et al. 2020 (AAAI), Table 2, which has batch normalisation alone. It leaves
nothing open.
"""

from __future__ import annotations

from torch import nn

from robustfdd.dropouts.base import DropoutSpec, register


class NoDropout(nn.Identity):
    """The identity; it has no options."""

    def __init__(self) -> None:
        super().__init__()


register(
    DropoutSpec(
        name="none",
        title="Non-dropout",
        build=NoDropout,
        site="features",
        placements=("last", "stages"),
        source="Ke et al. 2020, Group-Wise Dynamic Dropout Based on Latent Semantic Variations, AAAI",
        summary="No dropout: the baseline with batch normalisation alone.",
        order=0,
    )
)
