"""Indicator 5: does an attack that may change everything win?"""

from __future__ import annotations

from robustfdd.audit.base import WARNING_POINTS, Finding, Indicator, graded, positions, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """100 steps in the whole box, where every image of every class is in reach."""
    found = evidence.unbounded
    accuracy = evidence.accuracy(found)
    return Finding(
        graded(accuracy, warning=WARNING_POINTS, alarm=evidence.chance, least=evidence.one_image),
        accuracy,
        f"With an unbounded budget {accuracy:.1f} % of the images stay right; guessing comes to "
        f"{evidence.chance:.1f} %.",
        positions(~found.broken),
    )


register(
    Indicator(
        number=5,
        name="unbounded",
        title="An unbounded attack fails",
        unit="% accuracy",
        threshold=f"warning: accuracy above {WARNING_POINTS:g} %; alarm: above chance",
        source="Carlini et al. 2019, On Evaluating Adversarial Robustness, section 5; Athalye et al. 2018",
        advice="The attack fails on this model, so no figure of it bounds anything. Find out why its gradients vanish.",
        compute=compute,
        cost=60,
    )
)
