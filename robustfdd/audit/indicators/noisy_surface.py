"""Indicator 11: is the loss smooth around the images?"""

from __future__ import annotations

import torch
from torch import Tensor

from robustfdd import ascent
from robustfdd.audit.base import Finding, Indicator, graded, positions, register
from robustfdd.audit.evidence import Evidence
from robustfdd.classifier import batches

#: Points on the line through each image.
POINTS = 33
#: How much longer the way up and down may be than the height between its ends.
WARNING = 4.0
#: Images that are looked at.
IMAGES = 100


def roughness(values: Tensor) -> Tensor:
    """Total variation over range of values along a line: 1 for a monotone one; shape (points, N) -> (N,)."""
    total = (values[1:] - values[:-1]).abs().sum(0)
    extent = values.amax(0) - values.amin(0)
    return torch.where(extent > 0, total / extent.clamp_min(1e-30), torch.zeros_like(total))


def compute(evidence: Evidence) -> Finding:
    """The margin along a random line through each image, from one side of the ball to the other."""
    x, y = evidence.x[:IMAGES], evidence.y[:IMAGES]
    delta = evidence.border(50, len(x))
    values = []
    for at in torch.linspace(-1, 1, POINTS).tolist():
        moved = (x + at * delta).clamp(0, 1)
        parts = [ascent.forward(evidence.model, moved[part]) for part in batches(len(x), evidence.batch_size)]
        values.append(ascent.margin(torch.cat(parts), y))
        evidence.spend(0, len(x))
    rough = roughness(torch.stack(values))
    median = float(rough.median())
    return Finding(
        graded(median, warning=WARNING),
        median,
        f"Along a random line through an image the margin goes up and down {median:.1f} times its range (median of "
        f"{len(x)} images; 1 is a slope).",
        positions(rough > WARNING),
    )


register(
    Indicator(
        number=11,
        name="noisy-surface",
        title="The loss surface is noisy",
        unit="variation over range",
        threshold=f"warning: the median over images is above {WARNING:g}",
        source="Pintor et al. 2022, Indicators of Attack Failure (noisy loss surface); measure and threshold are ours",
        advice="A gradient says little beyond its own point: average it over a neighbourhood, or attack without it.",
        compute=compute,
        cost=7,
    )
)
