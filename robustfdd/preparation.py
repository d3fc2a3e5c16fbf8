"""A classifier made ready for attack: a copy that gives the same logits for less.

An attack asks a network that does not change for thousands of passes. What does not change need not be computed again:
the affine map of batch norm in evaluation mode is part of the convolution before it, and no parameter needs a gradient.
Attacks are crafted on the copy; what became of an image is still asked of the model itself (:mod:`robustfdd.measure`),
so rounding in the copy can make an attack miss by a hair, and never makes a survivor of a broken image or the reverse.
"""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from robustfdd.classifier import frozen
from robustfdd.dropouts import Dropout
from robustfdd.errors import ConfigurationError
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import Precision

#: The logits of the copy differ from those of the model by no more than this, relative to the largest logit of the
#: images they are compared on; of folded networks of dozens of layers they differ by some 1e-6 in single precision. A
#: copy that differs by more is not used.
LOGIT_RTOL = 1e-4

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


def prepare(model: nn.Module, x: Tensor, *, compile: bool = False, precision: Precision = "fp32") -> nn.Module:
    """A copy of a classifier for attacks: the same function of the image to rounding, and cheaper.

    The copy is in evaluation mode, without gradients for its parameters, with its convolutions in channels-last
    layout, and with each batch norm folded into the convolution before it where that is exact: where the convolution's
    output goes nowhere else, both modules are used once, and neither has a hook or a parametrisation. Which ones those
    are is read off a symbolic trace of the model; what runs is the model's own code with the modules exchanged. A model
    that cannot be traced keeps its batch norm. One that cannot be copied, or whose copy gives other logits, is used as
    it is.

    Args:
        model: any torch classifier that keeps the contract; it is left as it was.
        x: a few images to compare on, shape (N, C, H, W), on the model's device.
        compile: whether to pass the copy through ``torch.compile``, which takes up to minutes at its first call and
            pays where many passes follow. A copy that this fails for raises at that first call.
        precision: ``"bf16"`` for convolutions and products in bfloat16 (autocast); the logits come in float32.

    Returns:
        The copy, or ``model`` itself.

    Raises:
        ConfigurationError: ``compile`` without what it needs.
    """
    if compile:
        check_compiler(x.device)
    # Whatever the caller has switched off: tensors of inference mode could not be differentiated through.
    with torch.inference_mode(False), torch.enable_grad():
        prepared = _quick_copy(model, x.clone())
    if prepared is None:
        prepared = model
    if precision == "bf16":
        prepared = _HalfPrecision(prepared)
    if compile and prepared is not model:
        # Batches of other sizes (the last one, what is left of one) must not be compiled for anew each.
        prepared.compile(dynamic=None)
    return prepared


def check_compiler(device: torch.device) -> None:
    """Make sure that ``torch.compile`` has what it needs.

    Raises:
        ConfigurationError: on the CPU, there is no C++ compiler.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        raise ConfigurationError(
            "--compile: torch.compile needs a C++ compiler (g++) on the CPU; install one, or leave it out"
        )


def _quick_copy(model: nn.Module, x: Tensor) -> nn.Module | None:
    """The copy; None where there can be none of the same function."""
    try:
        quick = copy.deepcopy(model)
    except Exception:  # whatever a model holds that cannot be copied
        return None
    quick.eval().requires_grad_(False)
    folded = _fold_batch_norms(quick)
    quick.to(memory_format=torch.channels_last)
    if _same_logits(model, quick, x):
        return quick
    if not folded:
        return None
    plain = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return plain if _same_logits(model, plain, x) else None


def _same_logits(model: nn.Module, quick: nn.Module, x: Tensor) -> bool:
    """Whether both give the same logits to rounding; of a random forward, from the same draws."""
    logits = []
    for module in (model, quick):
        with frozen(module), torch.no_grad(), GlobalRandomness(0):
            try:
                logits.append(module(x.clone()))
            except Exception:  # code of the model that looks at what was exchanged
                return False
    given, got = logits
    if got.shape != given.shape or not bool(torch.isfinite(got).all()):
        return False
    return float((got - given).abs().max()) <= LOGIT_RTOL * max(float(given.abs().max()), 1e-12)


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
