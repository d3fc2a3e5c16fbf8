"""What a piece of work takes: wall time, CPU time of all threads, and memory at its peak."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Usage(Generic[T]):
    """What a piece of work took, and what came of it.

    Attributes:
        seconds: wall time, until the device has finished.
        cpu_seconds: of all threads of the process.
        peak_bytes: by how much the memory at its highest was above that before the work: memory of tensors on a CUDA
            device, resident memory of the process elsewhere; None where the system does not say.
        result: what the work returned.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int | None
    result: T


def mib(n_bytes: int | None) -> float:
    """Mebibytes; NaN for None."""
    return float("nan") if n_bytes is None else n_bytes / 2**20


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given; a GPU is only told what to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(field: str) -> int | None:
    """``VmRSS`` or ``VmHWM`` of this process in bytes; None where there is no such thing."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _settle() -> None:
    """Give back what was freed, so that a peak is not hidden in what the work before has left behind."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a system without glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _memory_before(device: torch.device) -> int | None:
    _settle()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        _CLEAR.write_text("5", encoding="ascii")  # sets VmHWM back to VmRSS
    except OSError:
        return None
    return _resident("VmRSS")


def measured(work: Callable[[], T], device: torch.device) -> Usage[T]:
    """Do the work and say what it took."""
    before = _memory_before(device)
    wait_for(device)
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    wait_for(device)
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")
    peak = None if before is None or after is None else max(after - before, 0)
    return Usage(seconds, cpu_seconds, peak, result)
