"""The Adversarial Robustness Toolbox (ART) as an engine; the only module that imports it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import art.attacks
import art.attacks.evasion
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from robustfdd.classifier import device_of
from robustfdd.engines.base import LOSS_SCALE, Perturb, check_arguments
from robustfdd.errors import ConfigurationError
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import AttackSpec, EngineName
from robustfdd.threat import Threat


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

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...]) -> Any:
        """The model as an ``art.estimators.classification.PyTorchClassifier`` for pixels in [0, 1].

        The loss is the sum of the cross-entropies, not their mean: the gradient of an image then does not depend on
        how many images share its batch. For its scale see :data:`robustfdd.engines.base.LOSS_SCALE`.

        Args:
            model: a classifier; ART puts it into evaluation mode at every call.
            n_classes: number of logits.
            image_shape: (C, H, W).
        """
        device = device_of(model)
        # ART always takes the current CUDA device, and moves the model to it.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
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
        class_name, arguments = attack.spelled(self.name, threat, batch_size)
        cls = getattr(art.attacks.evasion, class_name, None)
        if not isinstance(cls, type) or not issubclass(cls, art.attacks.EvasionAttack):
            raise ConfigurationError(f"attack {attack.name!r}: art.attacks.evasion has no attack class {class_name!r}")
        check_arguments(attack, cls, arguments, given={"estimator"})
        return cls, arguments

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
    ) -> Perturb:
        """See :meth:`robustfdd.engines.base.Engine.prepare`."""
        cls, arguments = self._resolve(attack, threat, batch_size)
        instance = cls(self.wrap(model, n_classes=n_classes, image_shape=image_shape), **arguments)
        randomness = GlobalRandomness(seed)

        def perturb(x: Tensor, y: Tensor) -> Tensor:
            with randomness:
                result = instance.generate(x.cpu().numpy(), y.cpu().numpy())
            return torch.from_numpy(result).to(x)

        return perturb
