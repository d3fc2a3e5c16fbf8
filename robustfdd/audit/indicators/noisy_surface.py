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
#: What single precision may make of one margin, as a share of the largest logit: a network's rounding is some 1e-6, and
#: goes up and down at each of the points.
ROUNDING = POINTS * 1e-6


def roughness(values: Tensor, least: Tensor | float = 0.0) -> Tensor:
    """Total variation over range of values along a line: 1 for a monotone one; shape (points, N) -> (N,).

    Args:
        values: along N lines.
        least: a range up to this is none, and has the roughness 0; a number, or shape (N,).
    """
    total = (values[1:] - values[:-1]).abs().sum(0)
    extent = values.amax(0) - values.amin(0)
    return torch.where(extent > least, total / extent.clamp_min(1e-30), torch.zeros_like(total))


def compute(evidence: Evidence) -> Finding:
    """The margin along a random line through each image, from one side of the ball to the other."""
    x, y = evidence.x[:IMAGES], evidence.y[:IMAGES]
    delta = evidence.border(50, len(x))
    values, largest = [], []
    for at in torch.linspace(-1, 1, POINTS).tolist():
        moved = (x + at * delta).clamp(0, 1)
        parts = [ascent.forward(evidence.model, moved[part]) for part in batches(len(x), evidence.batch_size)]
        logits = torch.cat(parts)
        values.append(ascent.margin(logits, y))
        largest.append(logits.abs().amax(1))
        evidence.spend(0, len(x))
    least = ROUNDING * torch.stack(largest).amax(0)
    margins = torch.stack(values)
    if not bool((margins.amax(0) - margins.amin(0) > least).any()):
        return Finding(
            "not applicable",
            None,
            "Along a random line through an image the margin changes by no more than rounding does.",
        )
    rough = roughness(margins, least)
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
