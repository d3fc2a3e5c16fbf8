"""Indicator 4: does an attack without gradients find more than those with them?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, Finding, Indicator, graded, register
from robustfdd.audit.evidence import Evidence

WARNING = 0.2


def compute(evidence: Evidence) -> Finding:
    """Square on what the gradient of the cross-entropy left."""
    found = evidence.square
    points = evidence.points(found.broken)
    return Finding(
        graded(points, warning=WARNING, alarm=ALARM_POINTS, least=evidence.one_image),
        points,
        f"{found.name} breaks {points:.1f} points of images that attacks along the gradient left.",
        tuple(found.broken.nonzero().squeeze(1).tolist()),
    )


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
