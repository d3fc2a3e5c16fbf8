"""The global random generators of Python, NumPy and torch: seeded for a while, and given back as they were."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class RandomState(NamedTuple):
    """The state of the global generators.

    Attributes:
        python: of Python's module ``random``, as ``random.getstate`` gives it.
        numpy: of NumPy's, as ``numpy.random.get_state`` gives it.
        cpu: of torch's on the CPU; uint8.
        cuda: of torch's on each CUDA device; uint8.
    """

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor] = []  # noqa: RUF012 - never changed


def get_state() -> RandomState:
    """The state that the global generators are in."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy = np.random.get_state()  # noqa: NPY002 - what the libraries use
    return RandomState(random.getstate(), numpy, torch.get_rng_state(), cuda)


def set_state(state: RandomState) -> None:
    """Put the global generators into a state."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)  # noqa: NPY002 - as above
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)


class GlobalRandomness:
    """A state of the global generators, those of all devices too, that is swapped in by ``with`` and out after it.

    The caller's random state stays untouched, and the draws inside go on from one ``with`` block to the next whatever
    else draws in between.

    Args:
        seed: of all of them.
    """

    def __init__(self, seed: int) -> None:
        before = get_state()
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - as above
        torch.manual_seed(seed)
        self._inside = get_state()
        set_state(before)

    def __enter__(self) -> None:
        self._outside = get_state()
        set_state(self._inside)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._inside = get_state()
        set_state(self._outside)
