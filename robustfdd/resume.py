"""What a training needs to go on after it was cut off: written after every epoch, read when the same training begins.

A snapshot holds weights, momentum, schedule, history and every random state. It is used by the training of the same
key alone, and only if it is whole; any other is passed over, and training begins at its beginning.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustfdd import files
from robustfdd.classifier import tensor_digest
from robustfdd.dropouts import Dropout
from robustfdd.randomness import RandomState, get_state, set_state
from robustfdd.records import write_atomically

_HEADER = "robustfdd.snapshot"


def snapshot_path(checkpoint: Path) -> Path:
    """Where the snapshot of a training lies, beside the checkpoint that it will come to."""
    return checkpoint.with_suffix(".partial.safetensors")


def training_key(*depends_on: object) -> str:
    """A hash of everything that the weights of a training depend on; what JSON can hold."""
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Position:
    """How far a training was when it was cut off.

    Attributes:
        epochs: one mapping for each epoch that is done.
        seconds: that it took so far.
        resumed_after: see :class:`Snapshots`.
    """

    epochs: list[dict[str, Any]]
    seconds: float
    resumed_after: list[int]


class TrainingState:
    """All state that a training changes as it goes; the global random state is that of Python, NumPy and torch.

    Args:
        model: that is trained.
        optimizer: of its parameters.
        scheduler: of the optimiser.
        generator: of order, augmentation and random starts.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        generator: torch.Generator,
    ) -> None:
        self._model, self._optimizer, self._scheduler = model, optimizer, scheduler
        own = [m.generator for m in model.modules() if isinstance(m, Dropout) and m.generator is not None]
        self._generators, self._device = [generator, *own], generator.device

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model/{name}": tensor for name, tensor in self._model.state_dict().items()}
        for index, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in state.items() if value is not None}
        tensors |= {f"generator/{k}": generator.get_state() for k, generator in enumerate(self._generators)}
        tensors["random/numpy"] = torch.from_numpy(get_state().numpy[1].astype(np.int64))
        tensors["random/cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self._device)
        return dict(sorted(tensors.items()))

    def save(self, path: Path, key: str, position: Position) -> None:
        """Write a snapshot, atomically.

        Args:
            path: the file.
            key: see :func:`training_key`.
            position: how far the training is.

        Raises:
            OSError: it cannot be written.
        """
        # Copies, because a file may not hold one piece of memory under two names.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self._tensors().items()}
        now = get_state()
        kind, _, *rest = now.numpy
        header = {
            "key": key,
            "tensors": tensor_digest(tensors),
            "groups": self._optimizer.state_dict()["param_groups"],
            "schedule": self._scheduler.state_dict(),
            "numpy": [kind, *rest],
            "python": now.python,
            **vars(position),
        }
        text = json.dumps(header, sort_keys=True)
        metadata = {_HEADER: text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    def restore(self, path: Path, key: str) -> Position | None:
        """Go back to a snapshot; None, and nothing is changed, if there is none, or none whole and of this key."""
        found = _read(path, key)
        if found is None:
            return None
        header, tensors = found
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, what = name.split("/")
                state.setdefault(int(index), {})[what] = tensor
        self._model.load_state_dict(_below("model/", tensors))
        self._optimizer.load_state_dict({"state": state, "param_groups": header["groups"]})
        self._scheduler.load_state_dict(header["schedule"])
        for k, generator in enumerate(self._generators):
            generator.set_state(tensors[f"generator/{k}"])
        kind, *rest = header["numpy"]
        version, internal, gauss_next = header["python"]
        # Of the CUDA devices the one that trains, which may have another number than before.
        set_state(
            RandomState(
                (version, tuple(internal), gauss_next),
                (kind, tensors["random/numpy"].numpy().astype(np.uint32), *rest),
                tensors["random/cpu"],
            )
        )
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], self._device)
        return Position(header["epochs"], header["seconds"], header["resumed_after"])


class Snapshots:
    """The snapshots of one training, each in place of the one before.

    Args:
        checkpoint: that the training will come to.
        key: see :func:`training_key`.

    Attributes:
        resumed_after: after which epochs the training was taken up again; twice after the same one counts once.
    """

    def __init__(self, checkpoint: Path, key: str) -> None:
        self._path, self._key = snapshot_path(checkpoint), key
        self._began, self._before = time.perf_counter(), 0.0
        self.resumed_after: list[int] = []

    @property
    def seconds(self) -> float:
        """Wall time of the training so far, without that between the interruptions."""
        return self._before + time.perf_counter() - self._began

    def begin(self, state: TrainingState) -> list[dict[str, Any]]:
        """Go to where the training was cut off; the epochs that are done, none if it begins at the beginning."""
        position = state.restore(self._path, self._key)
        if position is None:
            return []
        self._before = position.seconds
        self.resumed_after = [*position.resumed_after, len(position.epochs)]
        return position.epochs

    def take(self, state: TrainingState, epochs: list[dict[str, Any]]) -> None:
        """Write where the training is, after some epochs.

        Raises:
            OSError: it cannot be written; the snapshot before it is still there.
        """
        state.save(self._path, self._key, Position(epochs, self.seconds, self.resumed_after))

    def remove(self) -> None:
        """Remove the snapshot, which nobody needs any more."""
        self._path.unlink(missing_ok=True)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The header and the tensors of a snapshot of a key; None if it is missing, damaged or of another key."""
    try:
        files.check(path, files.WEIGHTS)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata.get(_HEADER, "")
            if hashlib.sha256(text.encode()).hexdigest() != metadata.get("sha256"):
                return None
            header: dict[str, Any] = json.loads(text)
            if header["key"] != key:
                return None
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (SafetensorError, OSError, ValueError):
        return None
    return (header, tensors) if tensor_digest(tensors) == header["tensors"] else None
