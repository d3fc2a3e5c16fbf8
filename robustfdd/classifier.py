"""Anybody's torch classifier: held to its contract, frozen while it is attacked, asked for predictions.

The contract: pixels in [0, 1] of shape (N, C, H, W) in, one finite logit per class of shape (N, K) out, the
normalisation inside the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustfdd.datasets.base import to_pixels
from robustfdd.errors import ModelContractError
from robustfdd.randomness import GlobalRandomness

#: Two forward passes of a deterministic model on the same batch differ by no more than this, relative to the largest
#: logit. Threads may sum in another order; a mask drawn at random changes logits by far more.
RANDOM_FORWARD_RTOL = 1e-4


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU for a model that has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def tensor_digest(tensors: Mapping[str, object]) -> str:
    """A hash of named tensors: names, types, shapes and bytes. Anything else is taken by its ``repr``."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """A hash of the model's parameters and buffers, with their names."""
    return tensor_digest(model.state_dict())


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode with no gradient for its parameters, and everything back afterwards.

    Restored, for every submodule and parameter: ``training``, ``requires_grad`` and ``grad``. Without parameter
    gradients an input gradient costs about two thirds. On a GPU, convolutions are meanwhile deterministic and in full
    single precision: TF32, torch's default, rounds to 10 bits, which is no finer than a small epsilon.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _, _ in parameters:
        parameter.requires_grad_(False)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


def check_images(x: Tensor) -> None:
    """Hold a batch of images to the contract.

    Raises:
        ModelContractError: it is not a float32 tensor of shape (N, C, H, W) with all pixels in [0, 1].
    """
    if x.dtype != torch.float32 or x.ndim != 4:
        raise ModelContractError(
            f"images must be a float32 tensor of shape (N, C, H, W) with pixels in [0, 1], "
            f"not {x.dtype} of shape {tuple(x.shape)}"
        )
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        low, high = float(x.min()), float(x.max())
        raise ModelContractError(
            f"images must have pixels in [0, 1]; these reach from {low:.4g} to {high:.4g}. "
            "Divide 8-bit images by 255, and put the normalisation inside the model"
        )


def check_labels(y: Tensor, n_images: int, n_classes: int) -> None:
    """Hold labels to the contract.

    Raises:
        ModelContractError: they are not an integer tensor of shape (N,) with values from 0 to K - 1.
    """
    if torch.is_floating_point(y) or y.shape != (n_images,):
        raise ModelContractError(
            f"labels must be an integer tensor of shape ({n_images},), not {y.dtype} of shape {tuple(y.shape)}"
        )
    if y.numel() and not (int(y.min()) >= 0 and int(y.max()) < n_classes):
        raise ModelContractError(
            f"labels must be from 0 to {n_classes - 1}; these reach from {int(y.min())} to {int(y.max())}"
        )


class ExpectedPrediction(nn.Module):
    """A model with a random forward pass as a model of its mean prediction, for attacks on it.

    The logits of an image are the logarithm of its class probabilities, averaged over several passes with fresh
    randomness. So an attack climbs the cross-entropy of the expected prediction. Expectation over transformation as
    Athalye, Carlini & Wagner 2018 (Obfuscated Gradients, ICML) use it against random defences averages the gradients
    of the passes' own cross-entropies; the two differ in the weight of a pass, which here is in proportion to the
    probability that it gives to the true class.

    Args:
        model: a classifier; it draws anew for every image of a batch.
        n_samples: passes that are averaged, at least 1; a batch is this many times as large inside.
    """

    def __init__(self, model: nn.Module, n_samples: int) -> None:
        super().__init__()
        self.model = model
        self.n_samples = n_samples
        self.training = model.training  # of this wrapper only: the modes inside are the model's own

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        repeated = x.repeat(self.n_samples, *(1,) * (x.ndim - 1))
        log_probabilities: Tensor = self.model(repeated).log_softmax(1).view(self.n_samples, len(x), -1)
        return log_probabilities.logsumexp(0) - math.log(self.n_samples)


def _differ(first: Tensor, second: Tensor) -> bool:
    """Whether two passes over the same images gave different logits, beyond the order of sums."""
    scale = float(first.abs().max())
    return float((first - second).abs().max()) > RANDOM_FORWARD_RTOL * max(scale, 1e-12)


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether the forward pass is random in evaluation mode; False for a model that does not keep the contract.

    Args:
        model: any torch module.
        x: images, shape (N, C, H, W), pixels in [0, 1], at least one.
    """
    with frozen(model), torch.no_grad(), GlobalRandomness(0):
        try:
            first, second = model(x.clone()), model(x.clone())
        except Exception:  # what is wrong with it, check_classifier says
            return False
    alike = isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape
    return alike and first.numel() > 0 and bool(torch.isfinite(first).all()) and _differ(first, second)


def check_classifier(model: nn.Module, x: Tensor, n_classes: int | None = None, *, random: bool = False) -> int:
    """Hold a model to the contract on a few images.

    Args:
        model: any torch module.
        x: images, shape (N, C, H, W), pixels in [0, 1], at least one.
        n_classes: how many logits are expected; whatever the model returns when None.
        random: whether the forward pass is said to be random in evaluation mode, with every image's randomness its
            own. Saying so of a model that is not is an error too.

    Returns:
        The number of classes.

    Raises:
        ModelContractError: the model fails on the images, returns another shape or type, NaN or infinite values, or
            probabilities instead of logits, is random in evaluation mode, mixes the images of a batch, or passes no
            gradient to them.
    """
    check_images(x)
    # The passes of a model that is random in evaluation must not move the caller's random state.
    with frozen(model), torch.no_grad(), GlobalRandomness(0):
        try:
            # Copies, lest a model that writes into its input be taken for a random one.
            first, second = model(x.clone()), model(x.clone())
            fewer = model(x[: (len(x) + 1) // 2].clone())
        except Exception as error:  # whatever a user's model raises, the answer is the same
            raise ModelContractError(
                f"the model fails on images of shape {tuple(x.shape)}: {type(error).__name__}: {error}"
            ) from error
    if not isinstance(first, Tensor) or first.ndim != 2 or first.shape[0] != x.shape[0]:
        got = f"a tensor of shape {tuple(first.shape)}" if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise ModelContractError(
            f"the model must return logits of shape ({len(x)}, {n_classes or 'K'}) for {len(x)} images, not {got}"
        )
    if n_classes is not None and first.shape[1] != n_classes:
        raise ModelContractError(
            f"the model must return {n_classes} logits an image, one for each class of the data set, "
            f"not {first.shape[1]}"
        )
    if first.shape[1] < 2:
        raise ModelContractError("the model must return at least two logits an image")
    if first.dtype != torch.float32:
        raise ModelContractError(
            f"the model must take float32 images and return float32 logits, not {first.dtype}: in half precision the "
            "gradients of confident predictions vanish, which looks like robustness"
        )
    if not bool(torch.isfinite(first).all()):
        raise ModelContractError("the model returns NaN or infinite logits")
    rows = first.double()
    ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    if bool((rows >= 0).all()) and torch.allclose(rows.sum(1), ones, atol=1e-4):
        raise ModelContractError(
            "the model returns probabilities: every row is non-negative and sums to 1. "
            "Return the logits, without the softmax: on probabilities the cross-entropy has hardly any gradient"
        )
    scale = float(first.abs().max())
    differs = _differ(first, second)
    if random and not differs:
        raise ModelContractError(
            "eot_samples is given, but the model's forward is deterministic in evaluation mode: the same images gave "
            "the same logits twice, and there is nothing to average. Leave eot_samples out"
        )
    if differs and not random:
        raise ModelContractError(
            "the model's forward is random in evaluation mode: the same images gave different logits twice. Attacking "
            "it without averaging the gradient over many passes (expectation over transformation) would overstate its "
            "robustness, so it is refused. Make the forward deterministic in evaluation mode (for a dropout layer: "
            "active='train'), or state how many passes a gradient is to be averaged over: eot_samples, e.g. 16"
        )
    if not random and float((first[: len(fewer)] - fewer).abs().max()) > RANDOM_FORWARD_RTOL * max(scale, 1e-12):
        raise ModelContractError(
            "the model's logits for an image depend on the other images of the batch, so its accuracy would depend on "
            "the batch size. Make it treat every image by itself in evaluation mode (for batch norm: keep running "
            "statistics)"
        )
    with frozen(model), torch.inference_mode(False), torch.enable_grad(), GlobalRandomness(0):
        if not model(x.clone().requires_grad_()).requires_grad:
            raise ModelContractError(
                "the model's logits have no gradient with respect to the image, so a gradient attack cannot move it. "
                "Look for detach, no_grad, argmax, or a conversion to NumPy in its forward"
            )
    return int(first.shape[1])


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices that cover ``range(n)`` in order, each at most ``size`` long."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def predict(model: nn.Module, x: Tensor, *, batch_size: int = 256) -> Tensor:
    """The predicted class of each image.

    Args:
        model: a classifier in whatever mode; it is frozen meanwhile.
        x: images, shape (N, C, H, W): floats in [0, 1], or uint8 in 0 to 255, which are divided by 255 batch by batch.
        batch_size: images a forward pass.

    Returns:
        int64, shape (N,), on the device of ``x``.

    Raises:
        ModelContractError: a logit is NaN: no class can be named.
    """
    out = torch.empty(len(x), dtype=torch.int64, device=x.device)
    with frozen(model), torch.no_grad():
        for part in batches(len(x), batch_size):
            pixels = to_pixels(x[part]) if x.dtype == torch.uint8 else x[part]
            logits = model(pixels)
            if bool(torch.isnan(logits).any()):
                raise ModelContractError("the model returns NaN logits")
            out[part] = logits.argmax(1)
    return out
