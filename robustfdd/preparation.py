"""A classifier made ready for attack: a copy that gives the same logits for less.

An attack asks a network that does not change for thousands of passes. What does not change need not be computed again:
the affine map of batch norm in evaluation mode is part of the convolution before it, and no parameter needs a gradient.
Attacks are crafted on the copy; what became of an image is still asked of the model itself (:mod:`robustfdd.measure`),
so rounding in the copy can make an attack miss by a hair, and never makes a survivor of a broken image or the reverse.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustfdd.classifier import Asked, frozen
from robustfdd.dropouts import Dropout
from robustfdd.errors import ConfigurationError
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import Precision

#: The logits of the copy differ from those of the model by no more than this, relative to the largest logit of the
#: images they are compared on; of folded networks of dozens of layers they differ by some 1e-6 in single precision. A
#: copy that differs by more is not used.
LOGIT_RTOL = 1e-4
#: The same for the gradient of an image, relative to its length: where an activation is within rounding of 0, the copy
#: may take the other side of a ReLU, which changes the gradient of a small network by a few percent at most.
GRADIENT_RTOL = 0.05
#: Gradients shorter than this share of the longest one of the batch are compared on its scale.
_SHORT = 1e-3
#: Share of noise in the images that copy and model are compared on.
_NOISE = 0.3

_PAIRS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


class _HalfPrecision(nn.Module):
    """A classifier whose convolutions and products are in bfloat16, and whose logits are in single precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = self.model(x)
        return logits.float()


def prepare(model: nn.Module, x: Tensor, *, compile: bool = False, precision: Precision = "fp32") -> Asked:
    """A copy of a classifier for attacks: the same function of the image to rounding, and cheaper.

    The copy is in evaluation mode, without gradients for its parameters, with its convolutions in channels-last
    layout, and with each batch norm folded into the convolution before it where that is exact: where the convolution's
    output goes nowhere else, both modules are used once, and neither has a hook or a parametrisation. Which ones those
    are is read off a symbolic trace of the model; what runs is the model's own code with the modules exchanged. A model
    that cannot be traced keeps its batch norm.

    The copy is used only if it is shown to be the model: on images that neither has seen, asked before the model is, in
    batches of several sizes, it has the same logits and the same input gradients. A model that remembers something, in
    a hook or a buffer, has a copy that answers from the memory of another. Whatever cannot be shown, or fails in any
    other way, leaves the model to be attacked as it is.

    Args:
        model: any torch classifier that keeps the contract; it is left as it was.
        x: a few images to compare on, shape (N, C, H, W), on the model's device.
        compile: whether to pass the copy through ``torch.compile``, which takes up to minutes at its first call and
            pays where many passes follow. If that fails, or gives another function, a warning says so and the copy is
            used as it is.
        precision: ``"bf16"`` for convolutions and products in bfloat16 (autocast); the logits come in float32.

    Returns:
        The copy, or the model itself, asked through :class:`robustfdd.classifier.Asked`.

    Raises:
        ConfigurationError: ``compile`` without what it needs.
    """
    if compile:
        check_compiler(x.device)
    # Whatever the caller has switched off: tensors of inference mode could not be differentiated through.
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone()
        prepared = next((quick for quick in _copies(model) if is_same_function(model, quick, x)), model)
        if precision == "bf16":
            prepared = _HalfPrecision(prepared)
        if compile:
            prepared = _compiled(prepared, x)
    return Asked(prepared)


def _compiled(model: nn.Module, x: Tensor) -> nn.Module:
    """The model through ``torch.compile``, if that is the same function; else a warning and the model."""
    why = "the compiled model gives other logits or gradients"
    try:
        # Batches of other sizes (the last one, what is left of one) must not be compiled for anew each.
        compiled = cast("nn.Module", torch.compile(model, dynamic=None))
        with frozen(compiled), torch.no_grad():
            compiled(x)
        if is_same_function(model, compiled, x):
            return compiled
    except Exception as error:  # the compiler has a hundred ways to fail
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    said = f"--compile: attacks go on without torch.compile, which does not take this model ({why})"
    warnings.warn(said, stacklevel=3)
    return model


def check_compiler(device: torch.device) -> None:
    """Make sure that ``torch.compile`` has what it needs.

    Raises:
        ConfigurationError: on the CPU, there is no C++ compiler.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        raise ConfigurationError(
            "--compile: torch.compile needs a C++ compiler (g++) on the CPU; install one, or leave it out"
        )


def _copies(model: nn.Module) -> Iterator[nn.Module]:
    """Cheaper copies of a model to be tried one after the other, the cheapest first; none where there can be none."""
    for change in (_folded, _in_channels_last):
        try:
            quick = copy.deepcopy(model)
            if not _are_apart(model, quick):  # it says itself how it is copied
                return
            quick.requires_grad_(False)
            with frozen(quick):
                change(quick)
        except Exception:  # whatever a model holds that cannot be copied, traced or laid out anew
            continue
        yield quick


def _are_apart(model: nn.Module, quick: nn.Module) -> bool:
    """Whether two models share neither a module nor a parameter nor a buffer, so that one can be changed."""
    mine, its = ({id(part) for part in (*m.modules(), *m.parameters(), *m.buffers())} for m in (model, quick))
    return not mine & its


def _folded(model: nn.Module) -> None:
    if not _fold_batch_norms(model):
        raise ValueError("nothing to fold")
    _in_channels_last(model)


def _in_channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)


def is_same_function(model: nn.Module, quick: nn.Module, x: Tensor) -> bool:
    """Whether two models have the same logits and input gradients to rounding; of random ones, from the same draws.

    Args:
        model: the model that counts.
        quick: asked first, on images that neither has seen.
        x: what those images are made of, shape (N, C, H, W), pixels in [0, 1].
    """
    generator = torch.Generator().manual_seed(0)
    # The size of a batch changes from one to the next, as it does in an attack.
    for size in (len(x), 1, min(len(x), 3)):
        noise = torch.rand(size, *x.shape[1:], generator=generator, dtype=torch.float64).to(x)
        probe = (1 - _NOISE) * x[:size] + _NOISE * noise
        try:
            if not _agree(*(_answer(module, probe) for module in (quick, model))):
                return False
        except Exception:  # code of the model that looks at what was exchanged
            return False
    return True


def _answer(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits for images, and the gradient of a sum of them, each with a weight of its own."""
    asked = Asked(model)
    with frozen(asked), GlobalRandomness(0):
        leaf = x.clone().requires_grad_()
        logits = asked(leaf)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(logits)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf)
    return logits.detach(), gradient.detach()


def _agree(got: tuple[Tensor, Tensor], given: tuple[Tensor, Tensor]) -> bool:
    """Whether logits and gradients are those given, to rounding."""
    logits, gradient = got
    wanted, direction = given
    if logits.shape != wanted.shape or logits.dtype != wanted.dtype or not bool(torch.isfinite(logits).all()):
        return False
    if float((logits - wanted).abs().max()) > LOGIT_RTOL * max(float(wanted.abs().max()), 1e-12):
        return False
    # Where the gradient of the model is no number, that of the copy must be none either.
    if not torch.equal(torch.isfinite(gradient), torch.isfinite(direction)):
        return False
    gradient, direction = (torch.nan_to_num(g.double().flatten(1), 0, 0, 0) for g in (gradient, direction))
    length = torch.linalg.vector_norm(direction, dim=1)
    apart = torch.linalg.vector_norm(gradient - direction, dim=1)
    return bool((apart <= GRADIENT_RTOL * length.clamp_min(_SHORT * float(length.max()))).all())


class _Tracer(fx.Tracer):
    """Looks into containers and blocks, and takes torch's own layers and our dropouts for what they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Dropout) or super().is_leaf_module(m, module_qualified_name)


def _fold_batch_norms(model: nn.Module) -> int:
    """Fold what can be folded, in place; how many were."""
    pairs = _foldable(model)
    for conv_name, norm_name in pairs:
        conv: Any = model.get_submodule(conv_name)
        norm: Any = model.get_submodule(norm_name)
        dtype = next(conv.parameters()).dtype
        # In double precision, so that a folded weight is rounded once.
        fused = fuse_conv_bn_eval(conv.double(), norm.double())
        _exchange(model, conv_name, fused.to(dtype).eval().requires_grad_(False))
        _exchange(model, norm_name, nn.Identity().eval())
    return len(pairs)


def _exchange(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _foldable(model: nn.Module) -> Sequence[tuple[str, str]]:
    """Names of convolutions and of the batch norms that can be folded into them."""
    try:
        with GlobalRandomness(0):  # code of the model runs
            graph = _Tracer().trace(model)
    except Exception:  # control flow that depends on the images, code that is not torch, ...
        return []
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {id(module): name for name, module in model.named_modules()}
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        if (
            _PAIRS.get(type(conv)) is type(norm)
            and calls[id(conv)] == calls[id(norm)] == 1
            and getattr(norm, "running_mean", None) is not None
            and _is_plain(conv)
            and _is_plain(norm)
        ):
            pairs.append((names[id(conv)], names[id(norm)]))
    return pairs


def _is_plain(module: nn.Module) -> bool:
    """Whether the module is no more than its class says: no hooks, no parametrisation, no weight that is shared."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and not hasattr(module, "parametrizations")
