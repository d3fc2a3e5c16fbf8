"""Indicator 2: are the outputs logits?"""

from __future__ import annotations

import torch

from robustfdd import ascent
from robustfdd.audit.base import Finding, Indicator, register
from robustfdd.audit.evidence import Evidence

#: How far a sum may be from 1.
TOLERANCE = 1e-3


def compute(evidence: Evidence) -> Finding:
    """Look whether rows are non-negative and sum to the same, which the softmax makes of any logits.

    Outputs that add up the image, as averages of its channels do, have one sum on images of one brightness, too. So the
    images are looked at again at half their brightness, where such a sum is another and that of a softmax is not.
    """
    x = evidence.x[:256]
    logits = torch.cat([ascent.forward(evidence.model, images) for images in (x, x / 2)])
    evidence.spend(0, len(logits))
    sums = logits.double().sum(1)
    share = float(((logits >= 0).all(1) & ((sums - 1).abs() <= TOLERANCE))[: len(x)].double().mean())
    low, high = torch.aminmax(logits[: len(x)])
    passed = Finding("passed", share, f"The outputs are logits, from {float(low):.3g} to {float(high):.3g}.")
    if not bool((logits >= 0).all()):
        return passed
    if len(x) < 2:
        return Finding(
            "not applicable", share, "A single image was attacked, and a single row has one sum whatever it is."
        )
    if not bool((logits != logits[0]).any()):
        return Finding("not applicable", share, "The outputs are the same for all images, so their sum is, too.")
    of_one_sum = float((sums / sums[:1].clamp_min(1e-30) - 1).abs().max()) <= TOLERANCE
    if not of_one_sum:
        return passed
    images = tuple(range(len(x)))
    text = "The outputs are non-negative and all sum to the same: probabilities, no logits."
    return Finding("alarm", share, text, images)


register(
    Indicator(
        number=2,
        name="probabilities",
        title="The outputs are probabilities",
        unit="share of images",
        threshold=f"alarm: all outputs are non-negative and have one sum, within {TOLERANCE:g}, at half the brightness "
        "too",
        source="AutoAttack (Croce & Hein 2020), checks of its implementation",
        advice="Return the logits: the cross-entropy of probabilities has hardly any gradient.",
        compute=compute,
        cost=1,
    )
)
