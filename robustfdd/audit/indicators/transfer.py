"""Indicator 12: do adversarial examples of an undefended sibling find more than the model's own gradient?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """Examples crafted on the sibling, tried on what the model's own gradient left."""
    found = evidence.transfer
    if found is None:
        return Finding("not applicable", None, "There is no sibling: a model for the same data without the defence.")
    if nothing := nothing_left(evidence.reference, "The gradient of the cross-entropy"):
        return nothing
    text = "Examples of the sibling break {points} points of images that the model's own gradient left."
    return evidence.found_more(found.broken, text)


register(
    Indicator(
        number=12,
        name="transfer",
        title="Examples of a sibling find more",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point; alarm: more than {ALARM_POINTS:g}",
        source="Athalye et al. 2018; Carlini et al. 2019, section 5; the thresholds are ours",
        advice="The model's gradient hides what another's shows: count transferred examples in the worst case.",
        compute=compute,
        cost=20,
    )
)
