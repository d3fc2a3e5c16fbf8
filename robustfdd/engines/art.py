"""The Adversarial Robustness Toolbox (ART) as an engine; the only module that imports it."""

from __future__ import annotations

import importlib.util
import inspect
import math
import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import art.attacks
import art.attacks.evasion
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from robustfdd.ascent import LOSS_SCALE, LOSSES, Loss, project
from robustfdd.classifier import device_of
from robustfdd.engines.base import FirstGradient, Perturb, attack_class, check_arguments, refused_by
from robustfdd.errors import ConfigurationError
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import AttackSpec, EngineName, LossName, Spelled
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


class _ScaledLoss(nn.CrossEntropyLoss):
    """A sum of a loss over the images, on another scale.

    Of a subclass of the cross-entropy ART knows that labels are class numbers, and how to ask for the loss of each
    image.
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__(reduction="sum")
        self._of_each = loss

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        values = self._of_each(input, target) * LOSS_SCALE
        return {"none": values, "sum": values.sum(), "mean": values.mean()}[self.reduction]


class _Constant(nn.Module):
    """Stands for a model where an attack is built only to see whether it can be."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self._n_classes = n_classes

    def forward(self, x: Tensor) -> Tensor:
        return x.new_full((len(x), self._n_classes), -1.0)


def _check_defined(
    attack: AttackSpec, cls: type[Any], arguments: Mapping[str, Any], n_classes: int, image_shape: tuple[int, ...]
) -> None:
    """Make sure that the library's attack is defined for so many classes and images of this shape.

    Raises:
        ConfigurationError: it is not; the message says what to use instead.
    """
    if arguments.get("loss_type") == "difference_logits_ratio" and n_classes < 3:
        raise ConfigurationError(
            f"attack {attack.name!r}: the difference of logits ratio of ART is not defined for {n_classes} classes; "
            'use another loss_type, or loss_type = "$none" with loss = "margin" beside the arguments'
        )
    if issubclass(cls, art.attacks.evasion.SquareAttack):
        _, height, width = image_shape
        share = arguments["p_init"]
        known = isinstance(share, (int, float)) and 0 <= share <= 1  # else the constructor says so
        side = max(round(math.sqrt(share * height * width)), 1) if known else 0
        if arguments["norm"] == 2:  # an odd one, from 3
            side = max(side, 3) + 1 - max(side, 3) % 2
        if side >= min(height, width):
            others = [engine for engine in attack.engines if engine != "art"]
            use = (
                f"use engine {' or '.join(map(repr, others))}"
                if others
                else "use attack 'square' through engine 'native', and the other attacks of this one by themselves"
            )
            raise ConfigurationError(
                f"attack {attack.name!r} through art: ART's Square takes no images of {height} x {width} pixels, "
                f"since its first square has a side of {side}, which must be less than both; {use}"
            )


class ArtEngine:
    """Runs evasion attacks through ART on its ``PyTorchClassifier``."""

    name: EngineName = "art"
    keeps_best = False

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...], loss: LossName = "ce") -> Any:
        """The model as an ``art.estimators.classification.PyTorchClassifier`` for pixels in [0, 1].

        The loss is the sum over the images, not the mean: the gradient of an image then does not depend on how many
        images share its batch. For its scale see :data:`robustfdd.ascent.LOSS_SCALE`.

        Args:
            model: a classifier; ART puts it into evaluation mode at every call.
            n_classes: number of logits.
            image_shape: (C, H, W).
            loss: what attacks climb that take the loss of the classifier.
        """
        device = device_of(model)
        with _current(device):
            return PyTorchClassifier(
                model=_Opaque(model),
                loss=_ScaledLoss(LOSSES[loss]),
                input_shape=image_shape,
                nb_classes=n_classes,
                clip_values=(np.float32(0), np.float32(1)),
                preprocessing=None,
                device_type="cpu" if device.type == "cpu" else "gpu",
            )

    def check(self, attack: AttackSpec, threat: Threat, *, n_classes: int, image_shape: tuple[int, ...]) -> None:
        """See :meth:`robustfdd.engines.base.Engine.check`."""
        spelled = attack.spelled(self.name, threat, batch_size=1)
        with GlobalRandomness(0):  # APGD asks for a prediction, for which torch's data loader draws a seed
            self._built(attack, spelled, _Constant(n_classes), n_classes, image_shape)

    def _built(
        self, attack: AttackSpec, spelled: Spelled, model: nn.Module, n_classes: int, image_shape: tuple[int, ...]
    ) -> Any:
        """The attack of the library on a model, with its components."""
        cls = attack_class(attack, art.attacks.evasion, spelled.class_name, art.attacks.EvasionAttack)
        check_arguments(attack, cls, spelled.arguments, given={"estimator", "classifier", *_WORKERS})
        _check_defined(attack, cls, spelled.arguments, n_classes, image_shape)
        arguments = {
            key: [self._built(attack, part, model, n_classes, image_shape) for part in value]
            if isinstance(value, list)
            else value
            for key, value in spelled.arguments.items()
        }
        workers = {key: value for key, value in _WORKERS.items() if key in inspect.signature(cls).parameters}
        classifier = self.wrap(model, n_classes=n_classes, image_shape=image_shape, loss=spelled.loss)
        with refused_by("ART", attack, cls):
            return cls(classifier, **arguments, **workers)

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
        spelled = attack.spelled(self.name, threat, batch_size)
        with _current(device_of(model)), GlobalRandomness(seed):  # see check
            instance = self._built(attack, spelled, model, n_classes, image_shape)
        randomness = GlobalRandomness(seed)
        ensemble = isinstance(instance, art.attacks.evasion.AutoAttack)

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
