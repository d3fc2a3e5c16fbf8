"""How many images are attacked at once: chosen to fit memory, and halved when it runs out all the same.

No result depends on it, so it may be chosen by what a machine has. A model whose forward is random draws for a whole
batch, so its results do depend on it; for such a one the size is fixed and memory that runs out is an error.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

import torch
from torch import Tensor, nn

from robustfdd.classifier import frozen
from robustfdd.errors import UnitError, is_out_of_memory
from robustfdd.randomness import GlobalRandomness

T = TypeVar("T")

#: The most that is chosen. On a CPU, larger batches leave the caches and are slower; on a GPU, larger ones than this
#: keep it no busier.
LARGEST = {"cpu": 64, "cuda": 1024}
#: For a model whose forward is random, whatever the machine.
FIXED = 128
#: Memory for an input gradient, in bytes that autograd keeps for it: besides those, the gradients on their way back,
#: the workspaces of convolutions and the fragments of an allocator.
OVERHEAD = 3.0
#: Share of the free memory that is planned with.
SHARE = 0.5
#: What is taken to be free where the system does not say.
UNKNOWN = 2**31


class BatchSize:
    """How many images are attacked at once, over all attacks on one model.

    Args:
        given: from the user; chosen by :meth:`choose` when None.
    """

    def __init__(self, given: int | None = None) -> None:
        self._size = given

    def choose(self, model: nn.Module, x: Tensor, *, random: bool = False) -> int:
        """Decide, if that was not done yet, by what an input gradient of the model takes.

        Args:
            model: what is asked for gradients.
            x: one image or more, shape (N, C, H, W), on the model's device.
            random: whether the model's forward is random in evaluation.

        Returns:
            A power of two, at most :data:`LARGEST`, or what was given or decided before.
        """
        if self._size is None:
            if random:
                self._size = FIXED
            else:
                most = SHARE * free_memory(x.device) / max(OVERHEAD * gradient_bytes(model, x[:1]), 1.0)
                self._size = _power_of_two(min(most, LARGEST.get(x.device.type, LARGEST["cpu"])))
        return self._size

    def fitting(self, call: Callable[[int], T], *, fixed: str = "") -> T:
        """What ``call`` returns for the size, halved as often as memory runs out.

        Args:
            call: takes a size. It is called again from its beginning, so what it draws at random is drawn again.
            fixed: why the size may not change, for the message; it may when empty.

        Raises:
            UnitError: memory runs out for a single image, or for a size that is fixed.
        """
        assert self._size is not None
        while True:
            try:
                return call(self._size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                # Python's own MemoryError says nothing.
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
            # Outside the handler, whose traceback holds the tensors of all frames; an error raised inside would too.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if fixed or self._size == 1:
                reason = fixed or "a single image at a time"
                raise UnitError(f"out of memory, with {reason}: {said}")
            self._size //= 2


def _power_of_two(most: float) -> int:
    return 1 << max(int(most), 1).bit_length() - 1


def gradient_bytes(model: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps between the passes of an input gradient of a frozen model, its own tensors left out.

    Args:
        model: any classifier.
        x: images, shape (N, C, H, W), on the model's device.
    """
    tensors = (*model.parameters(), *model.buffers())
    own = {storage.data_ptr() for storage in map(_storage, tensors) if storage is not None}
    # Kept alive, so that no address is counted for two of them.
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage is not None and storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        # Without its history: a result that its own graph keeps would hold the graph, and neither were ever freed.
        return tensor.detach()

    with (
        frozen(model),
        GlobalRandomness(0),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(x.clone().requires_grad_())
    return sum(storage.nbytes() for storage in kept.values())


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """The memory of a tensor; None for one that has not one piece of it, as sparse tensors have not."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device now, as far as the system says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What the allocator of torch keeps for itself is free too.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = _cgroup_room(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    return min([*_available(Path("/proc/meminfo")), *room], default=_physical())


def _available(meminfo: Path) -> list[int]:
    """What Linux estimates can be allocated without swapping."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
    return [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]


def _cgroup_room(root: Path, membership: Path) -> list[int]:
    """What the limits of a container or a cluster's job leave, of cgroups of version 2 and 1.

    Args:
        root: where the hierarchies are mounted.
        membership: says which group the process is in; the limits of all groups above hold too. In a container the
            path may be the host's and lead nowhere, and the top is the container's own group.
    """
    groups = {"": "/", "memory": "/"}  # by controller; version 2 names none
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        groups.update((controller, path) for controller in controllers.split(",") if controller in groups)
    room = []
    for top, path, limit, used, total in (
        (root, groups[""], "memory.max", "memory.current", ""),
        (root / "memory", groups["memory"], "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        group = PurePosixPath(path.lstrip("/"))
        for folder in (top / group, *(top / above for above in group.parents)):
            try:
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
            except (OSError, ValueError):  # no such limit, or "max"
                continue
            room.append(max(left + _cached(folder / "memory.stat", total), 0))
    return room


def _cached(stat: Path, total: str) -> int:
    """Bytes of files that a cgroup keeps in memory: counted as used, and given up when memory is asked for."""
    try:
        fields = dict(line.split() for line in stat.read_text().splitlines())
    except OSError:
        return 0
    return sum(int(fields.get(f"{total}{list_}_file", 0)) for list_ in ("active", "inactive"))


def _physical() -> int:
    """Half of the machine's memory where the system tells that much."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return UNKNOWN
