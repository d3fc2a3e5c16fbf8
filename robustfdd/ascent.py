"""Gradient ascent on a loss inside a threat's ball, watched step by step.

The libraries return where an attack ended. Whether its end can be believed shows on the way there: how the loss rose,
whether an image was adversarial in between, what another loss or another step would have found. Nothing here draws at
random or cuts into batches, so the result for an image depends on the image alone. :func:`ascend` alone does not watch:
it goes the same way as :func:`pgd` in no more passes than it needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfdd.errors import ModelContractError
from robustfdd.threat import Norm, Threat

#: Takes logits (N, K) and labels (N,), gives one value an image; the larger, the closer to a wrong class.
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: Logits (N, K), loss (N,) and the gradient of the scaled loss with respect to the images, in their shape.
Differentiated: TypeAlias = tuple[Tensor, Tensor, Tensor]

#: A loss is multiplied by this before it is differentiated, here and in the libraries. No attack depends on the scale
#: of its loss, but float32 does: gradients of confident models are as small as 1e-14 and less, and Foolbox normalises
#: one of a length below 1e-12 as if it had that length, so that it hardly moves the image. A power of two adds no
#: rounding.
LOSS_SCALE = 2.0**30

#: An ascent that stops at what is adversarial goes on while the margin is below this share of the largest logit: what
#: another copy of the model, or another batch, rounds differently must not be left half way.
CLEAR_MARGIN = 1e-5


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy of each image; shape (N,)."""
    return F.cross_entropy(logits, y, reduction="none")


def tempered_cross_entropy(temperature: float) -> Loss:
    """The cross-entropy on logits divided by a temperature above 0.

    A model whose logits are multiplied by a constant keeps its predictions and loses its gradients (Carlini & Wagner
    2016, Defensive Distillation Is Not Robust); dividing them brings the gradients back.
    """
    return lambda logits, y: F.cross_entropy(logits / temperature, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The largest logit of another class minus that of the true one; shape (N,), above 0 where misclassified.

    Minus the untargeted f6 of Carlini & Wagner 2017 (Towards Evaluating the Robustness of Neural Networks), unclipped.
    """
    true = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(1) - true


def difference_of_logits_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """DLR, equation 6 of Croce & Hein 2020 (Reliable Evaluation of Adversarial Robustness): the margin, free of scale.

    The margin divided by the distance of the largest from the third largest logit. Where the second and the third are
    one value, that quotient is -1 whatever the image, and has no gradient: the next smaller value stands for the third
    then. Where there is none (two classes, a last layer that cuts many logits off at 0), the logits have no scale to be
    free of, and the loss is the margin itself. Where the true class is the third, the quotient is 1 and has no gradient
    but that of rounding; there it is differentiated as if the divisor were a constant.

    Args:
        logits: shape (N, K), K at least 2.
        y: true labels, shape (N,).

    Returns:
        Shape (N,), above 0 where misclassified.
    """
    ordered = logits.sort(1, descending=True).values
    # By more than rounding: logits that are one value are not always summed in one order.
    apart = ordered < (ordered[:, 1] - CLEAR_MARGIN * logits.detach().abs().amax(1))[:, None]
    third = torch.where(apart, ordered, -math.inf).amax(1)
    scale = torch.where(apart.any(1), ordered[:, 0] - third, 1.0)
    value = margin(logits, y)
    return value / torch.where(value == scale, scale.detach(), scale)


LOSSES: Mapping[str, Loss] = MappingProxyType(
    {"ce": cross_entropy, "margin": margin, "dlr": difference_of_logits_ratio}
)


@dataclass(frozen=True)
class Ascent:
    """What an ascent found, image by image.

    Attributes:
        x_adv: the iterate that was asked for, inside budget and box; shape of the images.
        margin: of ``x_adv``, see :func:`margin`; above 0 where the image is adversarial; shape (N,).
        losses: the loss of every iterate, the start first; shape (steps + 1, N).
        margins: the margin of every iterate; shape (steps + 1, N).
        gradient_passes: images times input gradients.
        forward_passes: images times further forward passes.
    """

    x_adv: Tensor
    margin: Tensor
    losses: Tensor
    margins: Tensor
    gradient_passes: int
    forward_passes: int


def project(x: Tensor, candidate: Tensor, threat: Threat) -> Tensor:
    """The nearest image inside the ball, then put into the box, which leads no farther away from ``x``.

    Args:
        x: images in [0, 1], shape (N, ...).
        candidate: of the same shape.
        threat: the ball, in pixel units.
    """
    delta = candidate - x
    if threat.norm == "linf":
        delta = delta.clamp(-threat.eps, threat.eps)
    else:
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-30)
        delta = delta * _column((threat.eps / length).clamp_max(1.0), delta)
    return (x + delta).clamp(0, 1)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The steepest ascent of unit length in a norm; 0 where the gradient is 0.

    Args:
        gradient: shape (N, ...).
        norm: of the step.
    """
    if norm == "linf":
        return gradient.sign()
    # By its largest entry first: the square of an entry below 1e-19 is 0 in float32.
    largest = gradient.flatten(1).abs().amax(1).clamp_min(1e-38)
    scaled = gradient / _column(largest, gradient)
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1).clamp_min(1e-30)
    return scaled / _column(length, scaled)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value an image, in a shape that broadcasts over the image."""
    return values.view(-1, *(1,) * (like.ndim - 1))


_UNDEFINED = "the model returns NaN logits for a perturbed image"
_NO_DIRECTION = (
    "the gradient of the loss with respect to an image is NaN or infinite, so that it has no direction. Look for a "
    "square root, a norm or a logarithm at 0 in the model's forward"
)


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """Logits without a gradient.

    Raises:
        ModelContractError: a logit is NaN.
    """
    with torch.no_grad():
        return _checked(model(x))


def _checked(logits: Tensor) -> Tensor:
    if bool(torch.isnan(logits).any()):
        raise ModelContractError(_UNDEFINED)
    return logits


def input_gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Differentiated:
    """Logits (N, K), loss (N,) and the gradient of the scaled loss (:data:`LOSS_SCALE`) with respect to the images.

    Args:
        model: a frozen classifier.
        x: images, shape (N, C, H, W).
        y: true labels, shape (N,).
        loss: what is differentiated.

    Raises:
        ModelContractError: a logit is NaN, or a gradient is not finite. A model in
            :class:`robustfdd.watched_gradient.WatchedGradient` has finite gradients only.
    """
    logits, values, gradient = _differentiated(model, x, y, loss)
    if not bool(torch.isfinite(gradient).all()):
        raise ModelContractError(_NO_DIRECTION)
    return _checked(logits), values, gradient


def _differentiated(model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> Differentiated:
    """As :func:`input_gradient`, without a look at what it gives, for which a GPU would have to be waited for."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        logits: Tensor = model(leaf)
        values = loss(logits, y)
        (gradient,) = torch.autograd.grad((values * LOSS_SCALE).sum(), leaf)
    return logits.detach(), values.detach(), gradient.detach()


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int,
    relative_step: float,
    loss: Loss = cross_entropy,
    start: Tensor | None = None,
    first: Differentiated | None = None,
) -> Tensor:
    """The last iterate of :func:`pgd`, in as many passes as there are steps, without waiting for a GPU on the way.

    Args:
        model: a frozen classifier.
        x: images, float32 in [0, 1], shape (N, C, H, W).
        y: true labels, shape (N,).
        threat: norm and radius, above 0, in pixel units.
        steps: how many.
        relative_step: their length, in units of the radius.
        loss: what is climbed.
        start: where to begin, as perturbations; the images themselves when None.
        first: what :func:`input_gradient` gives at the first iterate, where it is known.

    Raises:
        ModelContractError: a logit was NaN on the way, or a gradient not finite.
    """
    current = x if start is None else project(x, x + start, threat)
    undefined, no_direction = (torch.zeros((), dtype=torch.bool, device=x.device) for _ in range(2))
    for step in range(steps):
        if step == 0 and first is not None:
            gradient = first[2]
        else:
            logits, _, gradient = _differentiated(model, current, y, loss)
            undefined |= torch.isnan(logits).any()
            no_direction |= ~torch.isfinite(gradient).all()
        moved = current + relative_step * threat.eps * direction(gradient, threat.norm)
        current = project(x, moved, threat)
    if bool(undefined):
        raise ModelContractError(_UNDEFINED)
    if bool(no_direction):
        raise ModelContractError(_NO_DIRECTION)
    return current


class _Watch:
    """Evaluates the iterates of an ascent and writes down their losses and margins.

    Args:
        model: a frozen classifier.
        y: true labels, shape (N,).
        loss: what is climbed.
        steps: how many steps there will be.
    """

    def __init__(self, model: nn.Module, y: Tensor, loss: Loss, steps: int) -> None:
        self._model, self._y, self._loss, self._steps = model, y, loss, steps
        self.losses, self.margins = (torch.zeros(steps + 1, len(y), device=y.device) for _ in range(2))
        self.gradient_passes = self.forward_passes = 0

    def at(
        self, step: int, x: Tensor, active: Tensor, known: Differentiated | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss, margin and gradient of the active images; no gradient after the last step."""
        labels = self._y[active]
        gradient: Tensor | None = None
        if known is not None and self._steps:
            logits, values, gradient = known
        elif step < self._steps:
            logits, values, gradient = input_gradient(self._model, x[active], labels, self._loss)
            self.gradient_passes += len(active)
        else:
            logits = forward(self._model, x[active])
            values = self._loss(logits, labels)
            self.forward_passes += len(active)
        now = margin(logits, labels)
        self.clearly_broken = now > CLEAR_MARGIN * logits.abs().amax(1)
        # From here on, so that what is left alone keeps its last value.
        self.losses[step:, active], self.margins[step:, active] = values, now
        return values, now, gradient

    def result(self, x_adv: Tensor, margins: Tensor) -> Ascent:
        """The ascent, when it is over."""
        return Ascent(x_adv, margins, self.losses, self.margins, self.gradient_passes, self.forward_passes)


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int,
    relative_step: float,
    loss: Loss = cross_entropy,
    start: Tensor | None = None,
    best_iterate: bool = False,
    stop: bool = False,
    first: Differentiated | None = None,
) -> Ascent:
    """Projected gradient ascent with steps of one length (Madry et al. 2018).

    Args:
        model: a frozen classifier.
        x: images, float32 in [0, 1], shape (N, C, H, W).
        y: true labels, shape (N,).
        threat: norm and radius, above 0, in pixel units.
        steps: how many.
        relative_step: their length, in units of the radius.
        loss: what is climbed.
        start: where to begin, as perturbations; the images themselves when None.
        best_iterate: whether to return the iterate of the largest margin and not the last one.
        stop: whether to leave an image alone once an iterate of it is adversarial, which then is what is returned of
            it; later entries of its losses and margins repeat.
        first: what :func:`input_gradient` gives at the first iterate, where it is known.

    Raises:
        ModelContractError: the model returns NaN for a perturbed image, or its gradient is not finite.
    """
    watch = _Watch(model, y, loss, steps)
    current = x if start is None else project(x, x + start, threat)
    best, best_margin = current.clone(), torch.full((len(x),), -math.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)
    for step in range(steps + 1):
        _, now, gradient = watch.at(step, current, active, first if step == 0 else None)
        better = now > best_margin[active] if best_iterate or stop else torch.ones_like(now, dtype=torch.bool)
        at = active[better]
        best[at], best_margin[at] = current[at], now[better]
        if gradient is None:
            break
        if stop:
            going = ~watch.clearly_broken
            active, gradient = active[going], gradient[going]
            if not len(active):
                break
        moved = current[active] + relative_step * threat.eps * direction(gradient, threat.norm)
        current = current.clone()
        current[active] = project(x[active], moved, threat)
    return watch.result(best, best_margin)


#: APGD's share of rises below which a step is halved, and its weight of the step against the momentum.
_RHO, _ALPHA = 0.75, 0.75


def _checkpoints(steps: int) -> list[int]:
    """When APGD looks back: section 3 of Croce & Hein 2020, p_1 = 0.22, periods that shrink by 0.03 down to 0.06."""
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    return sorted({math.ceil(value * steps) for value in p if value <= 1})


def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int,
    loss: Loss = cross_entropy,
    start: Tensor | None = None,
    stop: bool = False,
) -> Ascent:
    """Auto-PGD (Croce & Hein 2020, algorithm 1): momentum, and a step that halves when the loss stops rising.

    Every decision is made image by image. What is returned is the iterate of the largest loss, or one that is
    adversarial where there was one.

    Args:
        model: a frozen classifier.
        x: images, float32 in [0, 1], shape (N, C, H, W).
        y: true labels, shape (N,).
        threat: norm and radius, above 0, in pixel units.
        steps: input gradients for each image, at least 2.
        loss: what is climbed.
        start: where to begin, as perturbations; the images themselves when None.
        stop: whether to leave an image alone once an iterate of it is adversarial.

    Raises:
        ModelContractError: the model returns NaN for a perturbed image, or its gradient is not finite.
    """
    n, looks = len(x), _checkpoints(steps)[1:]
    watch = _Watch(model, y, loss, steps)
    active = torch.arange(n, device=x.device)
    found, found_margin = x.clone(), torch.full((n,), -math.inf, device=x.device)
    current = previous = x if start is None else project(x, x + start, threat)
    peak, peak_gradient, gradient = current.clone(), torch.zeros_like(x), torch.zeros_like(x)
    peak_loss = torch.full((n,), -math.inf, device=x.device)
    step_size = torch.full((n,), 2 * threat.eps, device=x.device)
    then = (0, peak_loss.clone(), step_size.clone())  # the step, the losses and the step sizes at the last look
    rises, before = torch.zeros(n, device=x.device), torch.full((n,), math.inf, device=x.device)

    for step in range(steps + 1):
        values, now, fresh = watch.at(step, current, active)
        # The loss and the margin can disagree; an adversarial image counts before a large loss.
        broken = found_margin[active] > 0
        takes = (now > 0) & (now > found_margin[active]) | ~broken & (values > peak_loss[active])
        at = active[takes]
        found[at], found_margin[at] = current[at], now[takes]
        if fresh is None:
            break
        gradient[active] = fresh
        at = active[values > peak_loss[active]]
        peak[at], peak_gradient[at] = current[at], gradient[at]
        peak_loss[active] = torch.maximum(peak_loss[active], values)
        rises[active] += (values > before[active]).float()
        before[active] = values
        if stop:
            active = active[~watch.clearly_broken]
            if not len(active):
                break
        if step in looks:
            stuck = (then[2] == step_size) & (then[1] == peak_loss)
            halve = (rises < _RHO * (step - then[0])) | stuck
            then = (step, peak_loss.clone(), step_size.clone())
            step_size = torch.where(halve, step_size / 2, step_size)
            current = torch.where(_column(halve, x), peak, current)
            gradient = torch.where(_column(halve, x), peak_gradient, gradient)
            rises = torch.zeros_like(rises)
        ahead = project(x, current + _column(step_size, x) * direction(gradient, threat.norm), threat)
        if step:
            ahead = project(x, current + _ALPHA * (ahead - current) + (1 - _ALPHA) * (current - previous), threat)
        previous, current = current, ahead
    return watch.result(found, found_margin)
