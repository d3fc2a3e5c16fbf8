"""Indicator 10: was an image adversarial on the way, and not at the end?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """The iterates of the audited attack on its survivors."""
    trace = evidence.audited.ascent
    assert trace is not None
    if evidence.random:
        return Finding("not applicable", None, "Single passes of a random forward decide nothing.")
    if nothing := nothing_left(evidence.survivors):
        return nothing
    silent = (trace.margins > 0).any(0) & evidence.survivors
    text = "{points} points of images were adversarial at some step and not at the one that counts."
    return evidence.found_more(silent, text)


register(
    Indicator(
        number=10,
        name="silent-success",
        title="Adversarial on the way, not at the end",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point; alarm: more than {ALARM_POINTS:g}",
        source="Pintor et al. 2022, Indicators of Attack Failure (silent success); the thresholds are ours",
        advice="Let the best iterate count (protocol strong), not the last.",
        compute=compute,
    )
)
