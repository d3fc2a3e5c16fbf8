"""The pictures of an audit: what a reader looks at before believing a number."""

from __future__ import annotations

import torch

from robustfdd import ascent
from robustfdd.audit.base import Line
from robustfdd.audit.evidence import Evidence
from robustfdd.classifier import batches

#: Points of the loss surface in each direction.
SURFACE = 21
#: How far the surface reaches, in units of the radius.
REACH = 2.0


def lines(evidence: Evidence) -> list[Line]:
    """Every line of every picture of one model."""
    if not len(evidence.y):  # nothing was attacked, so there is nothing to see
        return []
    return [
        *_loss_along_attack(evidence),
        *_loss_surface(evidence),
        _unbounded(evidence),
        _steps(evidence),
        _logit_scale(evidence),
    ]


def _loss_along_attack(evidence: Evidence) -> list[Line]:
    trace = evidence.audited.ascent
    assert trace is not None
    steps = [float(step) for step in range(len(trace.losses))]
    found = []
    for name, images in (("survivors", evidence.survivors), ("broken", ~evidence.survivors)):
        if bool(images.any()):
            mean = trace.losses[:, images].double().mean(1)
            found.append(
                Line(
                    "loss-along-attack",
                    name,
                    steps,
                    mean.tolist(),
                    "Step",
                    "Cross-entropy (mean)",
                    "The loss along the audited attack",
                )
            )
    return found


def _loss_surface(evidence: Evidence) -> list[Line]:
    """The margin over the direction of the gradient and a random one, around the first survivor (or first image)."""
    chosen = evidence.survivors.nonzero().squeeze(1) if bool(evidence.survivors.any()) else torch.arange(1)
    at = chosen[:1].to(evidence.x.device)
    x, y = evidence.x[at], evidence.y[at]
    *_, gradient = ascent.input_gradient(evidence.surrogate(evidence.eot_samples or 1), x, y, ascent.margin)
    along = evidence.threat.eps * ascent.direction(gradient, evidence.threat.norm)
    across = evidence.border(60, 1)
    axis = torch.linspace(-REACH, REACH, SURFACE, device=x.device)
    grid = torch.cat([x + a * along + b * across for b in axis for a in axis]).clamp(0, 1)
    labels = y.expand(len(grid))
    parts = [
        ascent.margin(ascent.forward(evidence.model, grid[part]), labels[part])
        for part in batches(len(grid), evidence.batch_size)
    ]
    evidence.spend(1, len(grid))
    return [
        Line(
            "loss-surface",
            "margin",
            axis.tolist(),
            axis.tolist(),
            "Along the gradient (ε)",
            "Random direction (ε)",
            "The margin around one image; above 0 it is misclassified",
            z=torch.cat(parts).double().tolist(),
        )
    ]


def _unbounded(evidence: Evidence) -> Line:
    accuracy = {0.0: evidence.clean_accuracy, **{eps: evidence.accuracy(a) for eps, a in evidence.curve.items()}}
    return Line(
        "unbounded",
        f"PGD, {evidence.few_steps} steps",
        list(accuracy),
        list(accuracy.values()),
        "ε (pixel)",
        "Accuracy (%)",
        "Accuracy up to an unbounded ε",
    )


def _steps(evidence: Evidence) -> Line:
    accuracy = {0.0: evidence.clean_accuracy, **{float(n): evidence.accuracy(a) for n, a in evidence.by_steps.items()}}
    return Line(
        "steps", "PGD", list(accuracy), list(accuracy.values()), "Steps", "Accuracy (%)", "Accuracy against steps"
    )


def _logit_scale(evidence: Evidence) -> Line:
    accuracy = {t: evidence.accuracy(attempt) for t, attempt in evidence.tempered.items()}
    return Line(
        "logit-scale",
        f"PGD, {evidence.few_steps} steps",
        list(accuracy),
        list(accuracy.values()),
        "Logits divided by",
        "Accuracy (%)",
        "Accuracy against the scale of the logits",
    )
