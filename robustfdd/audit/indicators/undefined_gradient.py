"""Indicator 17: is the gradient a number?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, Finding, Indicator, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """Survivors of the audited attack with a gradient on the way that is NaN or infinite."""
    undefined = evidence.audited.undefined
    assert undefined is not None
    text = (
        "The gradient was NaN or infinite at some step for {points} points of images, which therefore hardly moved "
        "and stayed right."
    )
    return evidence.found_more(undefined & evidence.survivors, text, warning=0.0, least=0.0)


register(
    Indicator(
        number=17,
        name="undefined-gradient",
        title="Images have a gradient that is no number",
        unit="points",
        threshold=f"warning: an image that the audited attack left had such a gradient; alarm: more than "
        f"{ALARM_POINTS:g} points of images",
        source="Ours: a fault of arithmetic must not be taken for robustness",
        advice="Find the square root, norm or logarithm at 0 in the model's forward, and keep it away from 0.",
        compute=compute,
    )
)
