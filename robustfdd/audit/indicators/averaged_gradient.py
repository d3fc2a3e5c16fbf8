"""Indicator 14: does averaging the gradient of a random model find more?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, graded, register
from robustfdd.audit.evidence import EOT_PASSES, Evidence


def compute(evidence: Evidence) -> Finding:
    """Expectation over transformation, on the survivors of the audited attack."""
    found = evidence.averaged
    if found is None:
        return Finding("not applicable", None, "The forward pass is deterministic.")
    points = evidence.points(found.broken)
    return Finding(
        graded(points, warning=WARNING_POINTS, alarm=ALARM_POINTS, least=evidence.one_image),
        points,
        f"Gradients averaged over {EOT_PASSES} passes instead of {max(evidence.eot_samples, 1)} break {points:.1f} "
        "points more.",
        tuple(found.broken.nonzero().squeeze(1).tolist()),
    )


register(
    Indicator(
        number=14,
        name="averaged-gradient",
        title="Averaged gradients find more",
        unit="points",
        threshold=f"warning: more than {WARNING_POINTS:g} point; alarm: more than {ALARM_POINTS:g}",
        source="Athalye, Carlini & Wagner 2018, Obfuscated Gradients; AutoAttack's version for random models",
        advice="Raise eot_samples until the figure stops falling.",
        compute=compute,
        cost=100,
    )
)
