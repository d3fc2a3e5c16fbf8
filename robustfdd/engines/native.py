"""Attacks of our own: FGSM, BIM, PGD and APGD, on several losses, and Square; each image by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustfdd.ascent import LOSSES, Differentiated, apgd, ascend, pgd
from robustfdd.engines.base import FirstGradient, Perturb, check_arguments, random_start
from robustfdd.errors import ConfigurationError
from robustfdd.specs import AttackSpec, EngineName
from robustfdd.square import square
from robustfdd.text import shown
from robustfdd.threat import Threat


def _check(loss: str, steps: int, restarts: int, least_steps: int) -> None:
    if loss not in LOSSES:
        raise ConfigurationError(f"loss {loss!r}; allowed: {', '.join(LOSSES)}")
    for name, value, least in (("steps", steps, least_steps), ("restarts", restarts, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigurationError(f"{name} must be a whole number from {least}, not {value!r}")


def _check_kinds(cls: type[Any], arguments: Mapping[str, Any]) -> None:
    """Make sure that what a file spells is of the kind that the class takes; whole numbers and losses are its own."""
    for field in fields(cls):
        value = arguments[field.name]
        if field.type == "float" and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ConfigurationError(f"{field.name} must be a number, not {shown(value)}")
        if field.type == "bool" and not isinstance(value, bool):
            raise ConfigurationError(f"{field.name} must be true or false, not {shown(value)}")


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent; see :func:`robustfdd.ascent.pgd`.

    Attributes:
        loss: ``"ce"``, ``"margin"`` or ``"dlr"``.
        steps: input gradients for each image and restart.
        relative_step: length of a step, in units of the radius.
        restarts: how often to begin anew with the images that are not broken yet.
        random_start: whether to begin at a random point of the ball; the first restart too.
        best_iterate: whether the iterate of the largest margin counts, or the last one.
    """

    loss: str
    steps: int
    relative_step: float
    restarts: int
    random_start: bool
    best_iterate: bool

    def __post_init__(self) -> None:
        _check(self.loss, self.steps, self.restarts, 1)
        if self.restarts > 1 and not self.random_start:
            raise ConfigurationError("restarts without random_start repeat the same attack; allowed: restarts = 1")

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        start: Tensor | None,
        first: Differentiated | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One restart: the perturbed images and their margins; None where another restart does not need them."""
        if not self.best_iterate and self.restarts == 1:
            last = ascend(
                model,
                x,
                y,
                threat,
                steps=self.steps,
                relative_step=self.relative_step,
                loss=LOSSES[self.loss],
                start=start,
                first=first,
            )
            return last, None
        found = pgd(
            model,
            x,
            y,
            threat,
            steps=self.steps,
            relative_step=self.relative_step,
            loss=LOSSES[self.loss],
            start=start,
            best_iterate=self.best_iterate,
            stop=self.best_iterate,
            first=first,
        )
        return found.x_adv, found.margin


@dataclass(frozen=True)
class APGD:
    """Auto-PGD; see :func:`robustfdd.ascent.apgd`.

    Attributes:
        loss: ``"ce"``, ``"margin"`` or ``"dlr"``.
        steps: input gradients for each image and restart, at least 2.
        restarts: how often to begin anew, at another random point, with the images that are not broken yet.
    """

    loss: str
    steps: int
    restarts: int
    random_start = True

    def __post_init__(self) -> None:
        _check(self.loss, self.steps, self.restarts, 2)

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        start: Tensor | None,
        first: Differentiated | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One restart: the perturbed images and their margins."""
        assert first is None  # it begins at random
        found = apgd(model, x, y, threat, steps=self.steps, loss=LOSSES[self.loss], start=start, stop=True)
        return found.x_adv, found.margin


@dataclass(frozen=True)
class Square:
    """Random search on the logits; see :func:`robustfdd.square.square`.

    Attributes:
        steps: proposals for each image and restart.
        restarts: how often to begin anew with the images that are not broken yet.
        p_init: share of the pixels in the first square, in (0, 1].
    """

    steps: int
    restarts: int
    p_init: float

    def __post_init__(self) -> None:
        _check("margin", self.steps, self.restarts, 1)
        if not 0 < self.p_init <= 1:
            raise ConfigurationError(f"p_init must be above 0 and at most 1, not {self.p_init!r}")


ALGORITHMS: dict[str, type[PGD] | type[APGD] | type[Square]] = {"PGD": PGD, "APGD": APGD, "Square": Square}


class NativeEngine:
    """Runs the attacks of :mod:`robustfdd.ascent`."""

    name: EngineName = "native"
    keeps_best = True

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...]) -> Any:  # noqa: ARG002
        """The model itself: these attacks take any torch classifier as it is."""
        return model

    def check(self, attack: AttackSpec, threat: Threat, *, n_classes: int, image_shape: tuple[int, ...]) -> None:  # noqa: ARG002
        """See :meth:`robustfdd.engines.base.Engine.check`."""
        self._resolve(attack, threat)

    def _resolve(self, attack: AttackSpec, threat: Threat) -> PGD | APGD | Square:
        spelled = attack.spelled(self.name, threat, batch_size=1)
        cls, arguments = ALGORITHMS.get(spelled.class_name), spelled.arguments
        if cls is None:
            raise ConfigurationError(
                f"attack {attack.name!r}: engine native has no class {spelled.class_name!r}; "
                f"allowed: {', '.join(ALGORITHMS)}"
            )
        check_arguments(attack, cls, arguments, given=set())
        try:
            _check_kinds(cls, arguments)
            return cls(**arguments)
        except ConfigurationError as error:
            raise ConfigurationError(f"attack {attack.name!r}: {error}") from None

    def prepare(
        self,
        model: nn.Module,
        attack: AttackSpec,
        threat: Threat,
        *,
        n_classes: int,  # noqa: ARG002 - the logits tell
        image_shape: tuple[int, ...],
        batch_size: int,  # noqa: ARG002 - whatever batch is given
        seed: int,
        best_iterate: bool = False,
        first_gradient: FirstGradient | None = None,
    ) -> Perturb:
        """See :meth:`robustfdd.engines.base.Engine.prepare`."""
        algorithm = self._resolve(attack, threat)
        if isinstance(algorithm, Square):
            return _searching(model, algorithm, threat, seed)
        if isinstance(algorithm, PGD):
            algorithm = replace(algorithm, best_iterate=algorithm.best_iterate or best_iterate)
        # One stream a restart, used image by image: which images share a batch then does not matter.
        streams = [np.random.default_rng([seed, restart]) for restart in range(algorithm.restarts)]

        def perturb(x: Tensor, y: Tensor) -> Tensor:
            if not algorithm.random_start:
                first = first_gradient(x, y, LOSSES[algorithm.loss]) if first_gradient else None
                return algorithm.run(model, x, y, threat, None, first)[0]
            result = x.clone()
            left = torch.arange(len(x), device=x.device)
            for stream in streams:
                start = torch.from_numpy(random_start(stream, len(x), image_shape, threat)).to(x.device)[left]
                if not len(left):
                    continue
                result[left], margins = algorithm.run(model, x[left], y[left], threat, start)
                if margins is not None:
                    left = left[margins <= 0]
            return result

        return perturb


def _searching(model: nn.Module, algorithm: Square, threat: Threat, seed: int) -> Perturb:
    """Square with its restarts; every image of the cell has a stream of its own in each of them."""
    done = 0

    def perturb(x: Tensor, y: Tensor) -> Tensor:
        nonlocal done
        result = x.clone()
        left = torch.arange(len(x), device=x.device)
        for restart in range(algorithm.restarts):
            if not len(left):
                break
            streams = [np.random.default_rng([seed, restart, done + i]) for i in left.tolist()]
            found, margins, _ = square(
                model, x[left], y[left], threat, queries=algorithm.steps, p_init=algorithm.p_init, streams=streams
            )
            result[left] = found
            left = left[margins <= 0]
        done += len(x)
        return result

    return perturb
