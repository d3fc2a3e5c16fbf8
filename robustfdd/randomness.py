"""The global random generators of NumPy and torch: seeded for a while, and given back as they were."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

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
    """A state of NumPy's and torch's global generators, all devices, that is swapped in by ``with`` and out after it.

    The caller's random state stays untouched, and the draws inside go on from one ``with`` block to the next whatever
    else draws in between.

    Args:
        seed: of all of them.
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
