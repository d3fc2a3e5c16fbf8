"""Indicator 7: does one step find what many do not?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """FGSM against the audited attack, image by image."""
    if nothing := nothing_left(evidence.survivors):
        return nothing
    only = evidence.one_step.broken & evidence.survivors
    return evidence.found_more(only, "FGSM breaks {points} points of images that the audited attack does not.")


register(
    Indicator(
        number=7,
        name="one-step",
        title="One step beats many",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point of images; alarm: more than {ALARM_POINTS:g}",
        source="Carlini et al. 2019, On Evaluating Adversarial Robustness, section 5; the thresholds are ours",
        advice="The many-step attack loses its way: give it more steps, its best iterate, another loss.",
        compute=compute,
        cost=2,
    )
)
