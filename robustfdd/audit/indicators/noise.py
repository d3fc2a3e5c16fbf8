"""Indicator 13: does random noise find what the attack did not?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, graded, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """Many draws inside the ball and on its corners, on the survivors of the audited attack."""
    found = evidence.noise
    points = evidence.points(found.broken)
    return Finding(
        graded(points, warning=WARNING_POINTS, alarm=ALARM_POINTS, least=evidence.one_image),
        points,
        f"Random noise, the worst of 100 draws, breaks {points:.1f} points of images that the audited attack left.",
        tuple(found.broken.nonzero().squeeze(1).tolist()),
    )


register(
    Indicator(
        number=13,
        name="noise",
        title="Random noise finds more",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point; alarm: more than {ALARM_POINTS:g}",
        source="Carlini et al. 2019, On Evaluating Adversarial Robustness, section 5; the thresholds are ours",
        advice="The attack is worse than chance: its figure is no robustness.",
        compute=compute,
        cost=40,
    )
)
