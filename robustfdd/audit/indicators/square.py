"""Indicator 4: does an attack without gradients find more than those with them?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import Evidence

WARNING = 0.2


def compute(evidence: Evidence) -> Finding:
    """Square on what the gradient of the cross-entropy left."""
    if nothing := nothing_left(evidence.reference, "The gradient of the cross-entropy"):
        return nothing
    found = evidence.square
    text = f"{found.name} breaks {{points}} points of images that attacks along the gradient left."
    return evidence.found_more(found.broken, text, warning=WARNING)


register(
    Indicator(
        number=4,
        name="black-box",
        title="A black-box attack finds more",
        unit="points",
        threshold=f"warning: more than {WARNING} points; alarm: more than {ALARM_POINTS:g}",
        source="AutoAttack (Croce & Hein 2020), checks of its implementation; the alarm is ours",
        advice="The gradients mislead: report the worst case over attacks, one without gradients among them.",
        compute=compute,
        cost=200,
    )
)
