"""Adversarial training: the images that a model is trained on are perturbed against the model as it is at that step.

Sources: Madry, Makelov, Schmidt, Tsipras & Vladu 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks"
(ICLR), equation 2.1: the inner maximisation by PGD from a random start. Wong, Rice & Kolter 2020, "Fast is better than
free" (ICLR), algorithm 3: one FGSM step, longer than the radius, from a random start. Both minimise the cross-entropy
on the perturbed images alone.

What the sources leave open, or do differently, and what is done here:

* *The mode of the model.* The authors' code of both papers perturbs in training mode, so that every pass of the attack
  moves the running statistics of batch norm and draws a dropout mask. Here the model is in evaluation mode meanwhile,
  as in Engstrom et al. 2019 (the library ``robustness``): the statistics and the masks come from the training passes
  alone, and the attack is one on the network that will be tested. Pang et al. 2021 (Bag of Tricks for Adversarial
  Training, ICLR) compare the two for batch norm: robustness is about the same, and accuracy better in evaluation mode.
* *Layers of test time* (``active="test"``) rest: they have no part in training, and none in this one.
* *The start in L2*, which Madry et al. use in L-infinity only, is uniform in the ball.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfdd.ascent import direction, project
from robustfdd.classifier import frozen
from robustfdd.dropouts import Dropout
from robustfdd.layout import image_layout
from robustfdd.specs import Recipe
from robustfdd.threat import Threat


def random_start(x: Tensor, threat: Threat, generator: torch.Generator) -> Tensor:
    """A perturbation of each image, uniform in the ball; the box is not looked at.

    Args:
        x: images, shape (N, ...), on the device of the generator.
        threat: the ball, in pixel units.
        generator: of the draws: one uniform number a pixel in L-infinity, one normal number a pixel and one uniform
            number an image in L2.

    Returns:
        Shape of x.
    """
    if threat.norm == "linf":
        return torch.empty_like(x).uniform_(-threat.eps, threat.eps, generator=generator)
    pointing = direction(torch.empty_like(x).normal_(generator=generator), "l2")
    radius = torch.empty(len(x), device=x.device).uniform_(generator=generator) ** (1 / x[0].numel())
    return pointing * (threat.eps * radius).view(-1, *(1,) * (x.ndim - 1))


def craft(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Perturb a batch of training images against the model as it is.

    Args:
        model: in whatever mode; modes, parameters, their gradients and all statistics are left as they were.
        x: images, float32 in [0, 1], shape (N, C, H, W).
        y: true labels, int64, shape (N,).
        recipe: with ``adversarial``; its ``precision`` holds for these passes too.
        generator: of the random starts, on the device of the images.

    Returns:
        The last iterates, inside budget and box, shape of x.
    """
    adversarial = recipe.adversarial
    assert adversarial is not None
    threat = Threat(adversarial.norm, adversarial.eps)
    current = project(x, x + random_start(x, threat, generator), threat)
    with frozen(model):
        for module in model.modules():
            if isinstance(module, Dropout) and module.active == "test":
                module.train()
        for _ in range(adversarial.steps):
            moved = current + adversarial.relative_step * threat.eps * _ascent(model, current, y, recipe, threat)
            current = project(x, moved, threat)
    return current


def _ascent(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, threat: Threat) -> Tensor:
    """The direction in which the cross-entropy of each image rises most steeply; shape of x."""
    leaf = x.detach().contiguous(memory_format=image_layout(model)).requires_grad_()
    with torch.enable_grad():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits: Tensor = model(leaf)
        # The sum, so that an image's gradient does not depend on how many others there are.
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), y, reduction="sum"), leaf)
    return direction(gradient, threat.norm)
