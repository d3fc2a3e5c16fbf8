"""Indicator 13: does random noise find what the attack did not?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """Many draws inside the ball and on its corners, on the survivors of the audited attack."""
    if nothing := nothing_left(evidence.survivors):
        return nothing
    text = "Random noise, the worst of 100 draws, breaks {points} points of images that the audited attack left."
    return evidence.found_more(evidence.noise.broken, text)


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
