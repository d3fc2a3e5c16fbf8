"""Indicator 16: how far is the figure from the worst case over all attacks?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, graded, positions, register
from robustfdd.audit.evidence import Evidence


def compute(evidence: Evidence) -> Finding:
    """The minimum over attacks, image by image, against the audited attack and all along its gradient."""
    left = evidence.worst
    hidden = evidence.points(evidence.reference & ~left)
    gap = evidence.points(evidence.survivors & ~left)
    audited, worst = evidence.points(evidence.survivors), evidence.points(left & evidence.survivors)
    return Finding(
        "alarm" if hidden > ALARM_POINTS else graded(gap, warning=WARNING_POINTS, least=evidence.one_image),
        gap,
        f"The audited attack leaves {audited:.1f} %, all attacks together {worst:.1f} %: {gap:.1f} points less, "
        f"{hidden:.1f} of them out of reach of the gradient of the cross-entropy.",
        positions(evidence.survivors & ~left),
    )


register(
    Indicator(
        number=16,
        name="worst-case",
        title="The worst case over attacks is lower",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point below the audited figure; alarm: more than "
        f"{ALARM_POINTS:g} points that no attack along the gradient of the cross-entropy finds",
        source="Croce & Hein 2020; Carlini et al. 2019; the thresholds are ours",
        advice="Quote the worst case over attacks, image by image.",
        compute=compute,
    )
)
