"""Indicator 1: does the model answer the same twice?"""

from __future__ import annotations

import torch

from robustfdd import ascent
from robustfdd.audit.base import Finding, Indicator, positions, register
from robustfdd.audit.evidence import Evidence
from robustfdd.classifier import batches
from robustfdd.randomness import GlobalRandomness

PASSES = 5
#: Largest difference of a logit between two passes, as a share of the norm of the logits.
TOLERANCE = 1e-4


def compute(evidence: Evidence) -> Finding:
    """Compare several passes over the clean images."""
    with GlobalRandomness(evidence.seed):
        passes = [
            torch.cat([ascent.forward(evidence.model, evidence.x[part]) for part in batches(len(evidence.x), 256)])
            for _ in range(PASSES)
        ]
    evidence.spend(0, PASSES * len(evidence.x))
    logits = torch.stack(passes)
    correct = (logits.argmax(2) == evidence.y).sum(1)
    scale = torch.linalg.vector_norm(logits[0]).clamp_min(1e-30)
    widest = float((torch.linalg.vector_norm((logits - logits[0]).flatten(1), dim=1) / scale).max())
    differs = len(correct.unique()) > 1 or widest > TOLERANCE
    changing = (logits.argmax(2) != logits.argmax(2)[0]).any(0)
    if not differs:
        return Finding("passed", widest, f"{PASSES} passes gave the same logits.")
    how = (
        f"the audited attack averages {evidence.eot_samples} passes for one gradient"
        if evidence.eot_samples > 1
        else "the audited attack takes the gradient of a single pass, which is noise to it"
    )
    return Finding(
        "warning",
        widest,
        f"The forward pass is random: over {PASSES} passes {int(correct.min())} to {int(correct.max())} of "
        f"{len(evidence.y)} images stay right; {how}.",
        positions(changing),
    )


register(
    Indicator(
        number=1,
        name="random-forward",
        title="The forward pass is random",
        unit="relative difference of logits",
        threshold=f"warning: {PASSES} passes differ in the number of correct images, or in the logits by more than "
        f"{TOLERANCE:g} of their norm",
        source="AutoAttack (Croce & Hein 2020), checks of its implementation",
        advice="Average the gradient over many passes (eot_samples), and read indicator 14.",
        compute=compute,
        cost=2,
    )
)
