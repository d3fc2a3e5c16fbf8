"""What a model is, as a hash: its weights, what it answers, and the gradients that it shows.

Weights alone do not tell two models apart that differ in their code, and logits do not tell two apart that differ in
their backward pass alone, as with a straight-through estimator: to a gradient attack they are different models.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfdd.classifier import batches, frozen, tensor_digest, weights_digest
from robustfdd.datasets.base import to_pixels
from robustfdd.measure import CleanOutcome
from robustfdd.randomness import GlobalRandomness

#: Test images that the model is asked about, as they are and perturbed.
N_IMAGES = 32
#: How many go at once, for the memory of large networks.
_BATCH = 16
#: The largest change of a pixel in a perturbed image: the first image has the least, the last the most.
NOISE = (1 / 255, 0.5)


def function_digest(model: nn.Module, clean: CleanOutcome) -> str:
    """A hash of what the model is: its weights, and its logits and input gradients for a few fixed images.

    Asked about are images spread over the test set, the same ones with noise, where attacks will go, and the first one
    by itself. Of each the gradients of a generic combination of all logits count, in which a backward pass that is
    another for any logit shows; of a millionth of it, since a backward pass may lose what is small; and of the
    cross-entropy, which attacks climb. A model that is random in evaluation is asked under a fixed seed.

    The answers count bit by bit where a second time gives the same bits. Where it does not, as with some operations on
    a GPU that add up in any order, projections of them are rounded to about one hundredth, so that rounding seldom
    makes another model of the same one, which would only cost time.

    Args:
        model: a classifier, with whatever hooks it has.
        clean: the test images with their labels.
    """
    n = len(clean.images)
    with torch.inference_mode(False), frozen(model):
        chosen = torch.arange(min(N_IMAGES, n), device=clean.images.device) * n // max(min(N_IMAGES, n), 1)
        x, y = to_pixels(clean.images[chosen]), clean.labels[chosen]
        x, y = torch.cat((x, _perturbed(x))), torch.cat((y, y))
        first, second = _answers(model, x, y, clean.n_classes), _answers(model, x, y, clean.n_classes)
    answers = tensor_digest(first)
    if answers != tensor_digest(second):
        answers = tensor_digest({name: _coarse(value) for name, value in first.items()})
    return hashlib.sha256((weights_digest(model) + answers).encode()).hexdigest()


def _generic(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Numbers without structure, uniform in [-1, 1]; the same everywhere, whatever the version of NumPy."""
    raw = np.random.PCG64(0).random_raw(int(np.prod(shape))) >> 40
    numbers = raw.astype(np.float64) / 2**23 - 1
    return torch.from_numpy(numbers).reshape(shape).to(like)


def _perturbed(x: Tensor) -> Tensor:
    """The images with noise, each with more of it than the one before."""
    least, most = NOISE
    steps = torch.arange(len(x), device=x.device, dtype=x.dtype) / max(len(x) - 1, 1)
    size = least * (most / least) ** steps
    return (x + size.view(-1, 1, 1, 1) * _generic(tuple(x.shape), x)).clamp(0, 1)


def _answers(model: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> dict[str, object]:
    """Logits and gradients; in the place of what the model does not give, the kind of its error."""
    found: dict[str, object] = {}
    with GlobalRandomness(0):
        for part in (*batches(len(x), _BATCH), slice(0, 1)):
            answers = _asked(model, x[part], y[part], n_classes)
            found |= {f"{what} of {part.start} to {part.stop}": value for what, value in answers}
    return found


def _asked(model: nn.Module, x: Tensor, y: Tensor, n_classes: int) -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    try:
        with torch.no_grad():
            found.append(("logits", model(x.clone())))
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            logits = model(leaf.clone())  # a copy, which a model may write into
            found.append(("logits with a gradient", logits))
            combination = (logits * _generic((len(x), n_classes), logits)).sum()
            loss = F.cross_entropy(logits, y, reduction="sum")
            for name, value in (("large", combination), ("small", 1e-6 * combination), ("cross-entropy", loss)):
                found.append((name, torch.autograd.grad(value, leaf, retain_graph=True)[0]))
    except Exception as error:  # what is wrong with it is told where it is attacked
        found.append(("error", type(error).__name__))
    return found


def _coarse(value: object) -> object:
    """Of a batch one projection an image, rounded to a hundredth of the largest."""
    if not isinstance(value, Tensor):
        return value
    rows = value.detach().double().flatten(1)
    projected = rows @ _generic((rows.shape[1],), rows)
    scaled = projected / projected.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return (scaled * 100).nan_to_num(nan=1000.0).round().to(torch.int64)
