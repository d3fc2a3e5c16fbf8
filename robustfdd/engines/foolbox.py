"""Foolbox as an engine; the only module that imports it."""

from __future__ import annotations

from typing import Any

import eagerpy
import foolbox
import numpy as np
import torch
from torch import Tensor, nn

from robustfdd.classifier import device_of
from robustfdd.engines.base import LOSS_SCALE, Perturb, check_arguments, random_start
from robustfdd.errors import ConfigurationError
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import AttackSpec, EngineName
from robustfdd.threat import Threat


class FoolboxEngine:
    """Runs attacks through Foolbox 3 on its ``PyTorchModel``."""

    name: EngineName = "foolbox"

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...]) -> Any:  # noqa: ARG002
        """The model as a ``foolbox.PyTorchModel`` for pixels in [0, 1].

        Args:
            model: a classifier in evaluation mode; Foolbox warns otherwise.
            n_classes: not needed by Foolbox.
            image_shape: not needed by Foolbox.
        """
        return foolbox.PyTorchModel(model, bounds=(0, 1), device=device_of(model), preprocessing=None)

    def check(self, attack: AttackSpec, threat: Threat) -> None:
        """See :meth:`robustfdd.engines.base.Engine.check`."""
        self._resolve(attack, threat)

    def _resolve(self, attack: AttackSpec, threat: Threat) -> tuple[type[Any], dict[str, Any]]:
        class_name, arguments = attack.spelled(self.name, threat, batch_size=1)  # Foolbox attacks have no batch size
        cls = getattr(foolbox.attacks, class_name, None)
        if not isinstance(cls, type) or not issubclass(cls, foolbox.attacks.base.Attack):
            raise ConfigurationError(f"attack {attack.name!r}: foolbox.attacks has no attack class {class_name!r}")
        check_arguments(attack, cls, arguments, given=set())
        return cls, arguments

    def prepare(
        self,
        model: nn.Module,
        attack: AttackSpec,
        threat: Threat,
        *,
        n_classes: int,
        image_shape: tuple[int, ...],
        batch_size: int,  # noqa: ARG002 - Foolbox attacks whatever batch it is given
        seed: int,
    ) -> Perturb:
        """See :meth:`robustfdd.engines.base.Engine.prepare`."""
        cls, arguments = self._resolve(attack, threat)
        if issubclass(cls, foolbox.attacks.gradient_descent_base.BaseGradientDescent):
            cls = _adapted(cls, np.random.default_rng(seed), image_shape, threat)
        instance = cls(**arguments)
        wrapped = self.wrap(model, n_classes=n_classes, image_shape=image_shape)
        randomness = GlobalRandomness(seed)

        def perturb(x: Tensor, y: Tensor) -> Tensor:
            with randomness:
                # `run` and not `__call__`: the latter adds a forward pass for a success that is not used.
                result = instance.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=threat.eps)
            assert isinstance(result, Tensor)
            return result.detach()

        return perturb


def _adapted(cls: type[Any], rng: np.random.Generator, image_shape: tuple[int, ...], threat: Threat) -> type[Any]:
    """The attack with its random start drawn image by image, and its loss on another scale.

    Foolbox draws a whole batch from torch's generator, whose normal variates depend on how many are asked for at once:
    the result would depend on the batch size. For the scale see :data:`robustfdd.engines.base.LOSS_SCALE`. Both are
    methods that Foolbox means to be replaced.
    """

    class Adapted(cls):  # type: ignore[misc]  # the base class is chosen by the attack file
        def get_random_start(self, x0: Any, epsilon: float) -> Any:  # noqa: ARG002
            start = random_start(rng, len(x0), image_shape, threat)
            return x0 + eagerpy.astensor(torch.from_numpy(start).to(x0.raw.device))

        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            loss = super().get_loss_fn(model, labels)
            return lambda inputs: loss(inputs) * LOSS_SCALE

    return Adapted
