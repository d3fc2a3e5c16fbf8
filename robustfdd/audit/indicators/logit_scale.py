"""Indicator 15: does the figure hang on the scale of the logits?"""

from __future__ import annotations

import torch

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """Losses free of scale, and the cross-entropy of logits divided by five temperatures, on what it left by itself."""
    left = evidence.reference
    if nothing := nothing_left(left, "The gradient of the cross-entropy"):
        return nothing
    attempts = {**evidence.scale_free, **{f"logits / {t:g}": found for t, found in evidence.tempered.items()}}
    more = torch.zeros_like(left)
    for attempt in attempts.values():
        more |= attempt.broken & left
    plain = evidence.accuracy(evidence.tempered[1.0])
    lowest = min(evidence.tempered.items(), key=lambda item: (evidence.accuracy(item[1]), item[0]))
    text = (
        "Losses of another scale break {points} points of images that the cross-entropy left. In "
        f"{evidence.few_steps} steps accuracy falls to {plain:.1f} % on the logits as they are, and to "
        f"{evidence.accuracy(lowest[1]):.1f} % on logits divided by {lowest[0]:g}."
    )
    return evidence.found_more(more, text)


register(
    Indicator(
        number=15,
        name="logit-scale",
        title="The scale of the logits hides gradients",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point; alarm: more than {ALARM_POINTS:g}",
        source="Carlini & Wagner 2016, Defensive Distillation Is Not Robust; Croce & Hein 2020 (DLR); the thresholds "
        "are ours",
        advice="Attack the margin or DLR (apgd-margin, apgd-dlr): the cross-entropy of large logits has no gradient.",
        compute=compute,
        cost=120,
    )
)
