"""What an engine is: one library that runs an attack specification against a classifier."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustfdd.specs import AttackSpec, EngineName
from robustfdd.threat import Threat

#: Takes a batch of images (N, C, H, W) and their true labels (N,), gives the perturbed images. Called for consecutive
#: batches of a cell, whose images together always see the same random draws, however they are cut into batches.
Perturb: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Engine(Protocol):
    """A library that runs attacks. It decides nothing: whether an attack succeeded is measured elsewhere."""

    name: EngineName

    def wrap(self, model: nn.Module, *, n_classes: int, image_shape: tuple[int, ...]) -> Any:
        """The model as the library's own classifier object, for pixels in [0, 1]."""

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
        """An attack ready to be called on consecutive batches of at most ``batch_size`` images.

        Args:
            model: a frozen classifier (:func:`robustfdd.classifier.frozen`).
            attack: what to run.
            threat: norm and radius, in pixel units, above 0.
            n_classes: number of logits.
            image_shape: (C, H, W).
            batch_size: the largest batch that will come.
            seed: of everything random in the attack.

        Raises:
            ConfigurationError: the engine does not offer this attack in this norm.
        """


_State: TypeAlias = tuple[Any, Tensor, list[Tensor]]


def _get_state() -> _State:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002 - the generator that the libraries use


def _set_state(state: _State) -> None:
    np.random.set_state(state[0])  # noqa: NPY002 - as above
    torch.set_rng_state(state[1])
    if state[2]:
        torch.cuda.set_rng_state_all(state[2])


class GlobalRandomness:
    """A state of NumPy's and torch's global generators that is swapped in while a library runs, and out after it.

    Both libraries draw from global generators. Swapping keeps the caller's random state untouched and lets the draws
    of one cell go on from batch to batch whatever else draws in between.
    """

    def __init__(self, seed: int) -> None:
        before = _get_state()
        np.random.seed(seed)  # noqa: NPY002 - as above
        torch.manual_seed(seed)
        self._inside = _get_state()
        _set_state(before)

    def __enter__(self) -> None:
        self._outside = _get_state()
        _set_state(self._inside)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._inside = _get_state()
        _set_state(self._outside)


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
