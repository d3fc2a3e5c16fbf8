"""Anybody's torch classifier: held to its contract, frozen while it is attacked, asked for predictions.

The contract: pixels in [0, 1] of shape (N, C, H, W) in, one finite logit per class of shape (N, K) out, the
normalisation inside the model.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustfdd.datasets.base import to_pixels
from robustfdd.errors import ModelContractError, RobustFDDError, UnitError, is_out_of_memory
from robustfdd.randomness import GlobalRandomness
from robustfdd.text import reason, shortened

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
            dense = value.detach().cpu()
            if dense.is_quantized:
                digest.update(f"{dense.qscheme()}".encode())
                dense = torch.cat([dense.dequantize().flatten().double(), dense.int_repr().flatten().double()])
            elif dense.layout != torch.strided:
                digest.update(f"{dense.layout}".encode())
                dense = dense.to_dense()
            digest.update(dense.resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """A hash of the model's parameters and buffers, with their names."""
    return tensor_digest(model.state_dict())


def _in_mode(model: nn.Module, training: bool) -> None:
    """Have a model and all in it be in a mode, without relying on what its own ``train`` and ``eval`` return or are.

    Both are ordinary names: a class may use ``train`` for its fitting routine, or forget to return itself, and models
    that come out of ``torch.export`` refuse both. One that takes a ``mode``, as torch's does, is called, since it may
    do more than set flags: it may merge low-rank weights, for instance.
    """
    for module in model.modules():
        own = "train" in vars(module) or type(module).train is not nn.Module.train
        if own and "mode" in inspect.signature(module.train).parameters:
            with suppress(Exception):  # then the flags alone tell
                module.train(training)


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Put the model into evaluation mode with no gradient for its parameters, and everything back afterwards.

    Restored, for every submodule and parameter: ``training``, ``requires_grad`` and ``grad``. Without parameter
    gradients an input gradient costs about two thirds. On a GPU, convolutions are meanwhile deterministic and in full
    single precision: TF32, torch's default, rounds to 10 bits, which is no finer than a small epsilon.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    _in_mode(model, False)
    for module, _ in modes:
        module.training = False
    for parameter, _, _ in parameters:
        parameter.requires_grad_(False)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield model
    finally:
        if any(training for _, training in modes):
            _in_mode(model, True)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


class Asked(nn.Module):
    """Anybody's model as everything here asks it: its own code is run in this one place.

    A model that writes into its input writes into a copy, and one that raises, or returns something else than one row
    of logits an image, ends in an error that says so.

    Args:
        model: any torch module. Its mode is left alone, also by what switches the mode of this wrapper.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model.model if isinstance(model, Asked) else model
        self.training = False

    def train(self, mode: bool = True) -> Asked:  # noqa: ARG002 - see the class
        """Nothing: the libraries switch modes at every call, and ``train`` is a fitting routine in some classes."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W).

        Raises:
            ModelContractError: the model raises, or returns what is no tensor of that shape.
        """
        try:
            logits = self.model(x.clone())
        except (Exception, SystemExit) as error:  # whatever somebody's code raises, the answer is the same
            if isinstance(error, (RobustFDDError, UnitError)) or is_out_of_memory(error):
                raise
            raise ModelContractError(f"the model fails on {_images(x)}: {reason(error)}") from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != x.shape[0]:
            got = (
                f"a tensor of shape {tuple(logits.shape)}"
                if isinstance(logits, Tensor)
                else f"a {type(logits).__name__}"
            )
            raise ModelContractError(
                f"the model must return logits of shape ({len(x)}, K) for {_images(x)}, not {got}"
                + _advice(logits, len(x))
            )
        return logits


def _images(x: Tensor) -> str:
    """A batch in words."""
    shape = f"of shape {tuple(x.shape[1:])}"
    return f"a single image {shape}" if len(x) == 1 else f"a batch of {len(x)} images {shape}"


def _advice(returned: object, n: int) -> str:
    """What to look for in a model that returns no rows of logits."""
    if n == 1 and isinstance(returned, Tensor) and returned.ndim == 1:
        return ". Look for squeeze() without a dimension, which takes a batch of one image apart too"
    if isinstance(returned, (tuple, list, Mapping)):
        return ". Wrap it in a module that returns the logits alone"
    return ""


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

    The passes are separate ones. Copies of an image in one pass need not have draws of their own: a model may draw once
    for a whole batch, as one that resizes it at random does, and a mean over such copies is one draw.

    Args:
        model: a classifier.
        n_samples: passes that are averaged, at least 1.
    """

    def __init__(self, model: nn.Module, n_samples: int) -> None:
        super().__init__()
        self.model = model
        self.n_samples = n_samples
        self.training = model.training  # of this wrapper only: the modes inside are the model's own

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        log_probabilities = torch.stack([self.model(x).log_softmax(1) for _ in range(self.n_samples)])
        return log_probabilities.logsumexp(0) - math.log(self.n_samples)


def _differ(first: Tensor, second: Tensor, of: Tensor | None = None) -> bool:
    """Whether two passes over the same images gave different logits, beyond the order of sums.

    ``of`` are the logits whose largest one sets the scale, the first ones when None.
    """
    scale = float((first if of is None else of).abs().max())
    return float((first - second).abs().max()) > RANDOM_FORWARD_RTOL * max(scale, 1e-12)


def is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether the forward pass is random in evaluation mode; False for a model that does not keep the contract.

    Args:
        model: any torch module.
        x: images, shape (N, C, H, W), pixels in [0, 1], at least one.
    """
    asked = Asked(model)
    try:
        _check_initialised(model)
        with frozen(asked), torch.no_grad(), GlobalRandomness(0):
            first, second = asked(x).detach(), asked(x).detach()
    except ModelContractError:  # check_classifier says it
        return False
    alike = first.shape == second.shape
    return alike and first.numel() > 0 and bool(torch.isfinite(first).all()) and _differ(first, second)


#: Images that :func:`check_classifier` asks the model about one by one.
_SINGLE_IMAGES = 8


def check_classifier(model: nn.Module, x: Tensor, n_classes: int | None = None, *, random: bool = False) -> int:
    """Hold a model to the contract on a few images: whole, in parts, in another order, and with a backward pass.

    Args:
        model: any torch module.
        x: images, shape (N, C, H, W), pixels in [0, 1], at least one.
        n_classes: how many logits are expected; whatever the model returns when None.
        random: whether the forward pass is said to be random in evaluation mode. Saying so of a model that is not is
            an error too.

    Returns:
        The number of classes.

    Raises:
        ModelContractError: the model fails on the images, returns another shape or type, NaN or infinite values, or
            probabilities instead of logits, is random in evaluation mode, mixes the images of a batch, or passes no
            gradient to them.
    """
    check_images(x)
    _check_initialised(model)
    asked = Asked(model)
    # The passes of a model that is random in evaluation must not move the caller's random state.
    with frozen(asked), torch.no_grad(), GlobalRandomness(0):
        # Detached, for a model that says that its logits have a gradient where none is taken.
        first, second = asked(x).detach(), asked(x).detach()
        parts = [(index, asked(x[index]).detach()) for index in _parts(len(x), x.device)]
    _check_logits(first, n_classes)
    differs = first.shape != second.shape or _differ(first, second)
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
    for index, logits in parts:
        wrong_shape = logits.shape[1:] != first.shape[1:]
        if wrong_shape or (not random and _differ(first[index], logits, of=first)):
            raise ModelContractError(
                "the model's logits for an image depend on the other images of the batch, so its accuracy would depend "
                "on the batch size. Make it treat every image by itself in evaluation mode (for batch norm: keep "
                "running statistics)"
            )
    _check_gradient(asked, x)
    return int(first.shape[1])


def _parts(n: int, device: torch.device) -> Iterator[Tensor]:
    """Choices of the positions from 0 to n - 1: all in another order, the halves, and some alone."""
    every = torch.arange(n, device=device)
    if n > 1:
        yield every.flip(0).roll(1)
        yield every[: (n + 1) // 2]
        yield every[(n + 1) // 2 :]
    n_single = min(n, _SINGLE_IMAGES)
    yield from torch.linspace(0, n - 1, n_single, device=device).round().long()[:, None]


def _check_initialised(model: nn.Module) -> None:
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ModelContractError(
            f"the model has parameters without values ({shortened(', '.join(lazy))}), as torch's lazy layers do before "
            "they are used: load its weights, or train it, before it is judged"
        )


def _check_logits(logits: Tensor, n_classes: int | None) -> None:
    """Hold the logits of a batch to the contract, but for what shows only when others are asked for."""
    if n_classes is not None and logits.shape[1] != n_classes:
        raise ModelContractError(
            f"the model must return {n_classes} logits an image, one for each class of the data set, "
            f"not {logits.shape[1]}"
        )
    if logits.shape[1] < 2:
        raise ModelContractError("the model must return at least two logits an image")
    if logits.dtype != torch.float32:
        raise ModelContractError(
            f"the model must take float32 images and return float32 logits, not {logits.dtype}: in half precision the "
            "gradients of confident predictions vanish, which looks like robustness"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModelContractError("the model returns NaN or infinite logits")
    rows = logits.double()
    ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    if bool((rows >= 0).all()) and torch.allclose(rows.sum(1), ones, atol=1e-4):
        raise ModelContractError(
            "the model returns probabilities: every row is non-negative and sums to 1. "
            "Return the logits, without the softmax: on probabilities the cross-entropy has hardly any gradient"
        )


def _check_gradient(asked: Asked, x: Tensor) -> None:
    """Make sure that the logits can be differentiated with respect to the images; by going all the way back."""
    missing = (
        "the model's logits have no gradient with respect to the image, so a gradient attack cannot move it. "
        "Look for detach, no_grad, argmax, or a conversion to NumPy in its forward"
    )
    with frozen(asked), torch.inference_mode(False), torch.enable_grad(), GlobalRandomness(0):
        leaf = x.clone().requires_grad_()
        try:
            logits = asked(leaf)
        except ModelContractError as error:  # it did not fail without gradients
            raise ModelContractError(f"{missing}. Where gradients are taken, {error}") from error
        if not logits.requires_grad:
            raise ModelContractError(missing)
        try:
            (gradient,) = torch.autograd.grad(logits.sum(), leaf, allow_unused=True)
        except Exception as error:  # as in the forward pass, the code is somebody's own
            if is_out_of_memory(error):
                raise
            raise ModelContractError(f"{missing}. The backward pass fails: {reason(error)}") from error
        if gradient is None:
            raise ModelContractError(missing)


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
        ModelContractError: a logit is NaN, so that no class can be named, or the model fails.
    """
    out = torch.empty(len(x), dtype=torch.int64, device=x.device)
    asked = Asked(model)
    with frozen(asked), torch.no_grad():
        for part in batches(len(x), batch_size):
            pixels = to_pixels(x[part]) if x.dtype == torch.uint8 else x[part]
            logits = asked(pixels)
            if bool(torch.isnan(logits).any()):
                raise ModelContractError("the model returns NaN logits")
            out[part] = logits.argmax(1)
    return out
