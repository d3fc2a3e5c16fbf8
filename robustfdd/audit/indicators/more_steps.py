"""Indicator 8: was the attack long enough?"""

from __future__ import annotations

from robustfdd.audit.base import WARNING_POINTS, Finding, Indicator, graded, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """Twice the steps (at least 40) from another start, then APGD, on the survivors of the audited attack."""
    more = evidence.survivors & ~evidence.reference
    points = evidence.points(more)
    return Finding(
        graded(points, warning=WARNING_POINTS, least=evidence.one_image),
        points,
        f"{max(2 * evidence.attack.steps, 40)} steps from another start and 40 of APGD from a third break {points:.1f} "
        "points more, on the same loss.",
        tuple(more.nonzero().squeeze(1).tolist()),
    )


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
