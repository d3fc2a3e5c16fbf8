"""Indicator 14: does averaging the gradient of a random model find more?"""

from __future__ import annotations

from robustfdd.audit.base import ALARM_POINTS, WARNING_POINTS, Finding, Indicator, nothing_left, register
from robustfdd.audit.evidence import EOT_PASSES, Evidence


def compute(evidence: Evidence) -> Finding:
    """Expectation over transformation, on the survivors of the audited attack."""
    found = evidence.averaged
    if found is None:
        return Finding("not applicable", None, "The forward pass is deterministic.")
    if nothing := nothing_left(evidence.survivors):
        return nothing
    text = (
        f"Gradients averaged over {EOT_PASSES} passes instead of {max(evidence.eot_samples, 1)} break {{points}} "
        "points more."
    )
    return evidence.found_more(found.broken, text)


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
