"""The Adversarial Robustness Toolbox (ART) as an engine; the only module that imports it."""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import art.attacks
import art.attacks.evasion
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from robustfdd.ascent import LOSS_SCALE, project
from robustfdd.classifier import device_of
from robustfdd.engines.base import FirstGradient, Perturb, attack_class, check_arguments
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import AttackSpec, EngineName
from robustfdd.threat import Threat

#: What AutoAttack's constructor calls its worker processes, by the version of ART; there are to be none.
_WORKERS = {"parallel": False, "parallel_pool_size": 0}


class _Opaque(nn.Module):
    """Hides an ``nn.Sequential`` from ART, which would call its children one by one and skip its own ``forward``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


class _ScaledCrossEntropy(nn.CrossEntropyLoss):
    """A sum of cross-entropies on another scale; a subclass, because ART goes by the class to know the labels' form."""

    def __init__(self) -> None:
        super().__init__(reduction="sum")

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) * LOSS_SCALE


class ArtEngine:
    """Runs evasion attacks through ART on its ``PyTorchClassifier``."""

    name: EngineName = "art"
    keeps_best = False

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...]) -> Any:
        """The model as an ``art.estimators.classification.PyTorchClassifier`` for pixels in [0, 1].

        The loss is the sum of the cross-entropies, not their mean: the gradient of an image then does not depend on
        how many images share its batch. For its scale see :data:`robustfdd.ascent.LOSS_SCALE`.

        Args:
            model: a classifier; ART puts it into evaluation mode at every call.
            n_classes: number of logits.
            image_shape: (C, H, W).
        """
        device = device_of(model)
        with _current(device):
            return PyTorchClassifier(
                model=_Opaque(model),
                loss=_ScaledCrossEntropy(),
                input_shape=image_shape,
                nb_classes=n_classes,
                clip_values=(np.float32(0), np.float32(1)),
                preprocessing=None,
                device_type="cpu" if device.type == "cpu" else "gpu",
            )

    def check(self, attack: AttackSpec, threat: Threat) -> None:
        """See :meth:`robustfdd.engines.base.Engine.check`."""
        self._resolve(attack, threat, batch_size=1)

    def _resolve(self, attack: AttackSpec, threat: Threat, batch_size: int) -> tuple[type[Any], dict[str, Any]]:
        return self._resolved(attack, *attack.spelled(self.name, threat, batch_size))

    def _resolved(
        self, attack: AttackSpec, class_name: str, arguments: dict[str, Any]
    ) -> tuple[type[Any], dict[str, Any]]:
        """The class and its arguments, components among them resolved likewise."""
        cls = attack_class(attack, art.attacks.evasion, class_name, art.attacks.EvasionAttack)
        check_arguments(attack, cls, arguments, given={"estimator", "classifier", *_WORKERS})
        return cls, {
            key: [self._resolved(attack, *component) for component in value] if isinstance(value, list) else value
            for key, value in arguments.items()
        }

    def _built(self, classifier: Any, cls: type[Any], arguments: dict[str, Any]) -> Any:
        """The attack of the library, with its components."""
        workers = {key: value for key, value in _WORKERS.items() if key in inspect.signature(cls).parameters}
        built = {
            key: [self._built(classifier, *component) for component in value] if isinstance(value, list) else value
            for key, value in arguments.items()
        }
        return cls(classifier, **built, **workers)

    def prepare(
        self,
        model: nn.Module,
        attack: AttackSpec,
        threat: Threat,
        *,
        n_classes: int,
        image_shape: tuple[int, ...],
        batch_size: int,
        seed: int,
        best_iterate: bool = False,  # noqa: ARG002 - not given, see keeps_best
        first_gradient: FirstGradient | None = None,  # noqa: ARG002 - likewise
    ) -> Perturb:
        """See :meth:`robustfdd.engines.base.Engine.prepare`."""
        cls, arguments = self._resolve(attack, threat, batch_size)
        # APGD makes a classifier of its own, and asks it for a prediction, for which torch's data loader draws a seed.
        with _current(device_of(model)), GlobalRandomness(seed):
            instance = self._built(self.wrap(model, n_classes=n_classes, image_shape=image_shape), cls, arguments)
        randomness = GlobalRandomness(seed)
        ensemble = issubclass(cls, art.attacks.evasion.AutoAttack)

        def perturb(x: Tensor, y: Tensor) -> Tensor:
            with randomness, _multiprocess() if ensemble else nullcontext():
                result = torch.from_numpy(instance.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)
            if ensemble:  # its own tolerance for the radius is 1e-4
                outside = ~threat.within(x, result)
                result[outside] = project(x[outside], result[outside], threat)
            return result

        return perturb


def _current(device: torch.device) -> AbstractContextManager[object]:
    """ART always takes the current CUDA device, and moves the model to it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _multiprocess() -> Iterator[None]:
    """Let AutoAttack import ``multiprocess``, which ART does not declare, and without worker processes does not use.

    Where it is not installed, the standard library's module, of which it is a copy, stands for it meanwhile.
    """
    if importlib.util.find_spec("multiprocess") is not None:
        yield
        return
    sys.modules["multiprocess"] = multiprocessing
    try:
        yield
    finally:
        del sys.modules["multiprocess"]
