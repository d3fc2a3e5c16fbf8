"""Foolbox as an engine; the only module that imports it."""

from __future__ import annotations

import warnings
from typing import Any

import eagerpy
import foolbox
import numpy as np
import torch
from torch import Tensor, nn

from robustfdd.ascent import LOSS_SCALE
from robustfdd.classifier import device_of
from robustfdd.engines.base import FirstGradient, Perturb, attack_class, check_arguments, random_start, refused_by
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import AttackSpec, EngineName
from robustfdd.threat import Threat


class FoolboxEngine:
    """Runs attacks through Foolbox 3 on its ``PyTorchModel``."""

    name: EngineName = "foolbox"
    keeps_best = False

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...]) -> Any:  # noqa: ARG002
        """The model as a ``foolbox.PyTorchModel`` for pixels in [0, 1].

        Args:
            model: a classifier in evaluation mode; Foolbox warns otherwise.
            n_classes: not needed by Foolbox.
            image_shape: not needed by Foolbox.
        """
        return foolbox.PyTorchModel(model, bounds=(0, 1), device=device_of(model), preprocessing=None)

    def check(self, attack: AttackSpec, threat: Threat, *, n_classes: int, image_shape: tuple[int, ...]) -> None:  # noqa: ARG002
        """See :meth:`robustfdd.engines.base.Engine.check`."""
        cls, arguments = self._resolve(attack, threat)
        with refused_by("Foolbox", attack, cls):
            cls(**arguments)

    def _resolve(self, attack: AttackSpec, threat: Threat) -> tuple[type[Any], dict[str, Any]]:
        spelled = attack.spelled(self.name, threat, batch_size=1)  # Foolbox attacks have no batch size
        cls = attack_class(attack, foolbox.attacks, spelled.class_name, foolbox.attacks.base.Attack)
        check_arguments(attack, cls, spelled.arguments, given=set())
        return cls, spelled.arguments

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
        best_iterate: bool = False,  # noqa: ARG002 - not given, see keeps_best
        first_gradient: FirstGradient | None = None,  # noqa: ARG002 - likewise
    ) -> Perturb:
        """See :meth:`robustfdd.engines.base.Engine.prepare`."""
        cls, arguments = self._resolve(attack, threat)
        if issubclass(cls, foolbox.attacks.gradient_descent_base.BaseGradientDescent):
            cls = _adapted(cls, np.random.default_rng(seed), image_shape, threat)
        elif issubclass(cls, _NOISE):
            cls = _drawn_by_image(cls, seed)
        elif issubclass(cls, foolbox.attacks.HopSkipJumpAttack):
            cls = _from_what_is_adversarial(cls)
        with refused_by("Foolbox", attack, cls):
            instance = cls(**arguments)
        wrapped = self.wrap(model, n_classes=n_classes, image_shape=image_shape)
        randomness = GlobalRandomness(seed)
        # What looks for the nearest example is given no radius to stop at.
        radius = {} if issubclass(cls, foolbox.attacks.base.MinimizationAttack) else {"epsilon": threat.eps}

        def perturb(x: Tensor, y: Tensor) -> Tensor:
            with randomness:
                # `run` and not `__call__`: the latter adds a forward pass for a success that is not used.
                result = instance.run(wrapped, x, foolbox.criteria.Misclassification(y), **radius)
            assert isinstance(result, Tensor)
            return result.detach()

        return perturb


_NOISE = (
    foolbox.attacks.additive_noise.BaseAdditiveNoiseAttack,
    foolbox.attacks.additive_noise.BaseRepeatedAdditiveNoiseAttack,
)


def _adapted(cls: type[Any], rng: np.random.Generator, image_shape: tuple[int, ...], threat: Threat) -> type[Any]:
    """The attack with its random start drawn image by image, and its loss on another scale.

    Foolbox draws a whole batch from torch's generator, whose normal variates depend on how many are asked for at once:
    the result would depend on the batch size. For the scale see :data:`robustfdd.ascent.LOSS_SCALE`. Both are
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


def _drawn_by_image(cls: type[Any], seed: int) -> type[Any]:
    """The noise attack with a stream of draws for each image, by its position among all that are attacked.

    So the noise of an image depends on neither the batch it is in nor when the others of the batch are broken, which is
    when Foolbox stops drawing. In L-infinity the noise is scaled by its largest magnitude: Foolbox takes the largest
    entry, which leaves the ball wherever the smallest entry is larger in magnitude.
    """
    gaussian = issubclass(cls, foolbox.attacks.additive_noise.GaussianMixin)

    class DrawnByImage(cls):  # type: ignore[misc]  # as above
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.n_seen = 0

        def run(self, model: Any, inputs: Any, criterion: Any = None, **options: Any) -> Any:
            positions = range(self.n_seen, self.n_seen + len(inputs))
            self.streams = [np.random.default_rng([seed, position]) for position in positions]
            self.n_seen += len(inputs)
            return super().run(model, inputs, criterion, **options)

        def sample_noise(self, x: Any) -> Any:
            shape = x.shape[1:]
            draws = [rng.standard_normal(shape) if gaussian else rng.uniform(-1, 1, shape) for rng in self.streams]
            return eagerpy.astensor(torch.from_numpy(np.stack(draws).astype(np.float32)).to(x.raw.device))

        def get_epsilons(self, x: Any, p: Any, epsilon: float, min_: float, max_: float) -> Any:
            if self.distance is not foolbox.distances.linf:
                return super().get_epsilons(x, p, epsilon, min_=min_, max_=max_)
            return eagerpy.astensor(epsilon / p.raw.abs().amax(tuple(range(1, p.ndim)), keepdim=True))

    return DrawnByImage


def _from_what_is_adversarial(cls: type[Any]) -> type[Any]:
    """HopSkipJump, which begins where Foolbox would by itself, and leaves an image as it is that has no such start.

    Foolbox raises an error for a whole batch of which one image has none.
    """
    # What Foolbox takes when it is given no other; its defaults are pinned.
    beginning = foolbox.attacks.LinearSearchBlendedUniformNoiseAttack(distance=None, directions=1000, steps=50)

    class FromWhatIsAdversarial(cls):  # type: ignore[misc]  # as above
        def run(self, model: Any, inputs: Tensor, criterion: Any, **options: Any) -> Any:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*failed to draw sufficient random")
                start = beginning.run(model, inputs, criterion)
            labels = criterion.labels.raw
            with torch.no_grad():
                found = model(start).argmax(1) != labels
            result = inputs.clone()
            if bool(found.any()):
                result[found] = super().run(
                    model,
                    inputs[found],
                    foolbox.criteria.Misclassification(labels[found]),
                    starting_points=start[found],
                    **options,
                )
            return result

    return FromWhatIsAdversarial
