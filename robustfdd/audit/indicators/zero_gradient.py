"""Indicator 3: has the attack a gradient to follow?"""

from __future__ import annotations

import torch

from robustfdd import ascent
from robustfdd.audit.base import Finding, Indicator, graded, positions, register
from robustfdd.audit.evidence import Evidence
from robustfdd.classifier import batches

#: Entries below this are lost to much that is computed in float32.
SMALL = 1e-8
#: Share of images without a gradient beyond which the attack was blind.
ALARM_SHARE = 0.5


def compute(evidence: Evidence) -> Finding:
    """The input gradient of the cross-entropy at the clean images, as the libraries compute it."""
    largest, model = [], evidence.surrogate(1)
    for part in batches(len(evidence.y), evidence.batch_size):
        *_, gradient = ascent.input_gradient(model, evidence.x[part], evidence.y[part], ascent.cross_entropy)
        largest.append(gradient.flatten(1).abs().amax(1) / ascent.LOSS_SCALE)
    evidence.spend(len(evidence.y), 0)
    found = torch.cat(largest) if largest else torch.zeros(0)
    zero, small = found == 0, found < SMALL
    share = float(zero.double().mean()) if len(found) else 0.0
    return Finding(
        graded(share, warning=0.0, alarm=ALARM_SHARE),
        share,
        f"The gradient is exactly zero for {int(zero.sum())} of {len(found)} images, and below {SMALL:g} in every "
        f"pixel for {int(small.sum())}.",
        positions(zero),
    )


register(
    Indicator(
        number=3,
        name="zero-gradient",
        title="Images have no gradient",
        unit="share of images",
        threshold=f"warning: the gradient of the cross-entropy is exactly zero for an image; alarm: for more than "
        f"{100 * ALARM_SHARE:.0f} % of them",
        source="AutoAttack (Croce & Hein 2020), checks of its implementation; the alarm is ours",
        advice="Attack a loss that does not vanish (apgd-margin, apgd-dlr), or without gradients (square).",
        compute=compute,
        cost=1,
    )
)
