"""What an engine is: one library that runs an attack specification against a classifier."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from robustfdd.ascent import Differentiated, Loss
from robustfdd.errors import ConfigurationError
from robustfdd.specs import AttackSpec, EngineName
from robustfdd.text import shortened, shown
from robustfdd.threat import Threat

#: Takes a batch of images (N, C, H, W) and their true labels (N,), gives the perturbed images. Called for consecutive
#: batches of a cell, whose images together always see the same random draws, however they are cut into batches, or
#: which are always cut alike (:attr:`robustfdd.specs.AttackSpec.call_size`).
Perturb: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: Takes the images and labels that an attack was called with and a loss, gives what
#: :func:`robustfdd.ascent.input_gradient` does at these images, which several radii of a sweep share.
FirstGradient: TypeAlias = Callable[[Tensor, Tensor, Loss], Differentiated]


class Engine(Protocol):
    """A library that runs attacks. It decides nothing: whether an attack succeeded is measured elsewhere.

    Attributes:
        name: of the engine.
        keeps_best: whether ``best_iterate`` and ``first_gradient`` of :meth:`prepare` are heeded. Otherwise neither is
            given, and what the attack asks the model is watched from outside.
    """

    name: EngineName
    keeps_best: bool

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...]) -> Any:
        """The model as the library's own classifier object, for pixels in [0, 1]."""

    def check(self, attack: AttackSpec, threat: Threat, *, n_classes: int, image_shape: tuple[int, ...]) -> None:
        """Make sure that the library has the attack as its file spells it, for such a model, without running it.

        Args:
            attack: what would be run.
            threat: norm and radius, in pixel units, above 0.
            n_classes: number of logits.
            image_shape: (C, H, W).

        Raises:
            ConfigurationError: the attack is not offered in this norm, names no attack class of the library, does not
                name all arguments of its constructor, has one that the library refuses, or is not defined for so few
                classes or for images of this shape.
        """

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
        best_iterate: bool = False,
        first_gradient: FirstGradient | None = None,
    ) -> Perturb:
        """An attack ready to be called on consecutive batches of at most ``batch_size`` images.

        Args:
            model: a frozen classifier (:func:`robustfdd.classifier.frozen`).
            attack: what to run.
            threat: norm and radius, in pixel units, above 0; for a minimum-norm attack a radius that reaches
                everything.
            n_classes: number of logits.
            image_shape: (C, H, W).
            batch_size: the largest batch that will come.
            seed: of everything random in the attack.
            best_iterate: whether the iterate of the largest margin counts, in the place of what the attack's file says,
                and an image is left alone once it is adversarial.
            first_gradient: gives the gradient at the images themselves, for attacks that begin there.

        Raises:
            ConfigurationError: as :meth:`check`.
        """


#: Arguments by which an attack of the libraries writes files; a file of ours may only say that it does not.
_WRITING = ("summary_writer", "tensorboard")


def attack_class(attack: AttackSpec, library: ModuleType, class_name: str, base: type[Any]) -> type[Any]:
    """The class that an attack file names: an attack that the library defines, and nothing else that it can reach.

    Args:
        attack: the attack.
        library: the module that the library offers its attacks in.
        class_name: as the file spells it.
        base: what every attack of the library is derived from.

    Raises:
        ConfigurationError: there is no such attack in it.
    """
    cls = vars(library).get(class_name)
    own = base.__module__.partition(".")[0]
    if (
        not isinstance(cls, type)
        or not issubclass(cls, base)
        or cls.__module__.partition(".")[0] != own
        or inspect.isabstract(cls)
    ):
        raise ConfigurationError(f"attack {attack.name!r}: {library.__name__} has no attack class {shown(class_name)}")
    return cls


def check_arguments(attack: AttackSpec, cls: type[Any], arguments: Mapping[str, Any], *, given: set[str]) -> None:
    """Hold an attack file to naming every argument of the library's constructor, so that no default is in play.

    Args:
        attack: the attack.
        cls: its class, or that of one of its components, in the library.
        arguments: as the file spells them.
        given: parameters that the engine itself gives.

    Raises:
        ConfigurationError: naming what is missing or unknown.
    """
    expected = set(inspect.signature(cls).parameters) - given
    missing, unknown = sorted(expected - set(arguments)), sorted(set(arguments) - expected)
    if missing or unknown:
        problems = [
            f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names
        ]
        raise ConfigurationError(
            f"attack {attack.name!r}: the arguments of {cls.__name__} must all be named, and no others "
            f"({shortened('; '.join(problems))}); allowed: {', '.join(sorted(expected))}"
        )
    for name in _WRITING:
        if arguments.get(name, False) is not False:
            raise ConfigurationError(f"attack {attack.name!r}: {name} would write files; allowed: false")


@contextmanager
def refused_by(library: str, attack: AttackSpec, cls: type[Any]) -> Iterator[None]:
    """Say in words of ours what a library's constructor refuses.

    Raises:
        ConfigurationError: whatever it raised.
    """
    try:
        yield
    except (ValueError, TypeError, AssertionError, NotImplementedError) as error:
        raise ConfigurationError(
            f"attack {attack.name!r}: {cls.__name__} of {library} refuses an argument of its file: "
            f"{shortened(str(error)) or type(error).__name__}"
        ) from error


def random_start(rng: np.random.Generator, n: int, image_shape: tuple[int, ...], threat: Threat) -> npt.NDArray[Any]:
    """Points drawn uniformly from the ball of the threat, as float32 of shape (n, *image_shape).

    The generator is used image by image, so the draws of an image do not depend on the batch it is in, nor on the
    device. In L2 the first d coordinates of a uniform point on the unit sphere of d + 2 dimensions are uniform in the
    unit ball (Voelker, Gosmann & Stewart 2017).
    """
    d = int(np.prod(image_shape))
    if threat.norm == "linf":
        points = rng.uniform(-threat.eps, threat.eps, (n, d))
    else:
        gauss = rng.standard_normal((n, d + 2))
        points = threat.eps * gauss[:, :d] / np.linalg.norm(gauss, axis=1, keepdims=True)
    return points.astype(np.float32).reshape(n, *image_shape)
