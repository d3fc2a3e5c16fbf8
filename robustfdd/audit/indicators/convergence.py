"""Indicator 9: was the loss still rising when the attack stopped?"""

from __future__ import annotations

import torch

from robustfdd.audit.base import Finding, Indicator, graded, nothing_left, positions, register
from robustfdd.audit.evidence import Evidence

#: Survivors below which their mean says nothing.
FEW = 5
#: The last steps that are looked at, and what the best loss may still gain in them, as a share of all it gained.
LAST = 10
WARNING = 0.05


def compute(evidence: Evidence) -> Finding:
    """The best margin so far of each survivor, over the last steps of the audited attack."""
    trace = evidence.audited.ascent
    assert trace is not None
    if nothing := nothing_left(evidence.survivors):
        return nothing
    if evidence.attack.steps <= LAST:
        return Finding(
            "warning",
            1.0,
            f"The audited attack has {evidence.attack.steps} steps, too few for its loss to settle.",
            positions(evidence.survivors),
        )
    # The margin and not the cross-entropy, which grows the faster the nearer an image comes to the border.
    best = torch.cummax(trace.margins[:, evidence.survivors], 0).values
    if best.shape[1] < FEW:
        return Finding("not applicable", None, f"The audited attack left {best.shape[1]} images, too few for a mean.")
    gained = best[-1] - best[0]
    late = best[-1] - best[-1 - LAST]
    share = torch.where(gained > 0, late / gained.clamp_min(1e-30), torch.zeros_like(late))
    mean = float(share.mean())
    images = evidence.survivors.nonzero().squeeze(1)[share > WARNING]
    return Finding(
        graded(mean, warning=WARNING),
        mean,
        f"On the {best.shape[1]} survivors {100 * mean:.1f} % of what the margin gained came in the last {LAST} of "
        f"{evidence.attack.steps} steps.",
        tuple(images.tolist()),
    )


register(
    Indicator(
        number=9,
        name="convergence",
        title="The loss was still rising",
        unit="share of the gain",
        threshold=f"warning: the best margin gains more than {WARNING} of its whole gain in the last {LAST} steps, "
        "in the mean over survivors",
        source="Pintor et al. 2022, Indicators of Attack Failure (non-converging attack)",
        advice="Use more steps.",
        compute=compute,
        cost=40,
    )
)
