"""Indicator 6: does accuracy fall to zero, and never rise, as the radius grows?"""

from __future__ import annotations

from robustfdd.audit.base import WARNING_POINTS, Finding, Indicator, graded, positions, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """PGD at radii doubled up to the whole box."""
    accuracy = {eps: evidence.accuracy(attempt) for eps, attempt in evidence.curve.items()}
    values = list(accuracy.values())
    end = values[-1]
    least, rise = values[0], 0.0
    for value in values:
        least = min(least, value)
        rise = max(rise, value - least)
    last = list(evidence.curve.values())[-1]
    worst = max(end, rise)
    return Finding(
        graded(worst, warning=WARNING_POINTS, alarm=evidence.chance, least=evidence.one_image),
        worst,
        f"Accuracy ends at {end:.1f} % where every image is in reach, and rises by up to {rise:.1f} points on the way.",
        positions(~last.broken),
    )


register(
    Indicator(
        number=6,
        name="curve",
        title="The curve does not fall to zero, or rises",
        unit="points",
        threshold=f"warning: ends above {WARNING_POINTS:g} %, or rises by more than {WARNING_POINTS:g} point; alarm: "
        "either by more than chance",
        source="Carlini et al. 2019, On Evaluating Adversarial Robustness, section 5; the thresholds are ours",
        advice="Draw the curve to the end before quoting a point of it; a plateau is the attack's, not the model's.",
        compute=compute,
        cost=60,
    )
)
