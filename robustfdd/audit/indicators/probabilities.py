"""Indicator 2: are the outputs logits?"""

from __future__ import annotations

import torch

from robustfdd import ascent
from robustfdd.audit.base import Finding, Indicator, register
from robustfdd.audit.evidence import Evidence

#: How far a sum may be from 1.
TOLERANCE = 1e-3


def compute(evidence: Evidence) -> Finding:
    """Look whether rows are non-negative and sum to the same, which the softmax makes of any logits."""
    logits = ascent.forward(evidence.model, evidence.x[:256])
    evidence.spend(0, len(logits))
    sums = logits.double().sum(1)
    of_one_sum = float((sums / sums[:1].clamp_min(1e-30) - 1).abs().max()) <= TOLERANCE
    non_negative = bool((logits >= 0).all())
    share = float(((logits >= 0).all(1) & ((sums - 1).abs() <= TOLERANCE)).double().mean())
    if non_negative and of_one_sum:
        images = tuple(range(len(logits)))
        return Finding(
            "alarm", share, "The outputs are non-negative and all sum to the same: probabilities, no logits.", images
        )
    low, high = torch.aminmax(logits)
    return Finding("passed", share, f"The outputs are logits, from {float(low):.3g} to {float(high):.3g}.")


register(
    Indicator(
        number=2,
        name="probabilities",
        title="The outputs are probabilities",
        unit="share of images",
        threshold=f"alarm: all outputs are non-negative and have one sum, within {TOLERANCE:g}",
        source="AutoAttack (Croce & Hein 2020), checks of its implementation",
        advice="Return the logits: the cross-entropy of probabilities has hardly any gradient.",
        compute=compute,
        cost=1,
    )
)
