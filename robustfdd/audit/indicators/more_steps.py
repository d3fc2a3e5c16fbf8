"""Indicator 8: was the attack long enough?"""

from __future__ import annotations

from robustfdd.audit.base import WARNING_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """Twice the steps (at least 40) from another start, then APGD, on the survivors of the audited attack."""
    if nothing := nothing_left(evidence.survivors):
        return nothing
    text = (
        f"{max(2 * evidence.attack.steps, 40)} steps from another start and 40 of APGD from a third break {{points}} "
        "points more, on the same loss."
    )
    return evidence.found_more(evidence.survivors & ~evidence.reference, text, alarm=None)


register(
    Indicator(
        number=8,
        name="more-steps",
        title="More steps find more",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point",
        source="Carlini et al. 2019, On Evaluating Adversarial Robustness, section 5; the threshold is ours",
        advice="The attack is too weak, whatever the model: use more steps or protocol strong.",
        compute=compute,
        cost=40,
    )
)
