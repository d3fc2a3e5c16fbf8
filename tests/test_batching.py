"""The batch size that is chosen by itself: what it is computed from, and that no result depends on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyNet
from torch import Tensor, nn

from robustfdd import batching, get_engine
from robustfdd.batching import FIXED, LARGEST, OVERHEAD, SHARE, BatchSize, gradient_bytes, is_out_of_memory
from robustfdd.catalogue import load_attack
from robustfdd.datasets.base import to_pixels
from robustfdd.errors import UnitError
from robustfdd.measure import attack, clean_outcome, measure_sweep
from robustfdd.specs import ENGINES
from robustfdd.threat import Threat


class Hungry(nn.Module):
    """Runs out of memory for more than so many images."""

    def __init__(self, model: nn.Module, most: int) -> None:
        super().__init__()
        self.model, self.most = model, most
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        self.largest = max(self.largest, len(x))
        logits: Tensor = self.model(x)
        return logits


def test_what_a_gradient_takes_by_hand() -> None:
    """A linear layer keeps nothing, as its weight needs no gradient; a tanh keeps its result, a square its input."""

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(12, 50), nn.Linear(50, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.outer(torch.tanh(self.inner(x.flatten(1)) ** 2))
            return logits

    x = torch.rand(5, 3, 2, 2)
    assert gradient_bytes(Squared(), x) == 5 * (50 + 50) * 4


def test_what_a_gradient_takes_is_in_proportion_to_the_images(tiny_net: TinyNet) -> None:
    x = torch.rand(6, 1, 10, 10)
    one, six = gradient_bytes(tiny_net, x[:1]), gradient_bytes(tiny_net, x)
    # Eight maps of 10 by 10 after the convolution, kept by what follows at least once.
    assert one >= 8 * 10 * 10 * 4
    assert six == pytest.approx(6 * one, rel=0.01)


def test_counting_keeps_nothing() -> None:
    """A tanh keeps its own result, which knows the tanh: a circle that would outlive the count."""
    results = []

    class Remembered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result = torch.tanh(x)
            results.append(weakref.ref(result))
            return result.flatten(1)

    x = torch.rand(2, 1, 4, 4)
    assert gradient_bytes(Remembered(), x) == x.numel() * 4
    assert results[0]() is None


@pytest.mark.parametrize("images_that_fit", [0.2, 1, 3, 4, 37, 63, 64, 1e9])
def test_the_largest_power_of_two_that_fits(
    images_that_fit: float, tiny_net: TinyNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(1, 1, 10, 10)
    needed = OVERHEAD * gradient_bytes(tiny_net, x) / SHARE
    monkeypatch.setattr(batching, "free_memory", lambda device: images_that_fit * needed)
    size = BatchSize().choose(tiny_net, x)
    assert size & (size - 1) == 0
    if images_that_fit >= LARGEST["cpu"]:
        assert size == LARGEST["cpu"]
    elif images_that_fit < 1:
        assert size == 1
    else:
        assert size <= images_that_fit < 2 * size


def test_given_or_random_is_not_chosen(tiny_net: TinyNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda device: 1)
    x = torch.rand(1, 1, 10, 10)
    assert BatchSize(77).choose(tiny_net, x) == 77
    assert BatchSize().choose(tiny_net, x, random=True) == FIXED
    decided = BatchSize()
    assert decided.choose(tiny_net, x) == 1
    monkeypatch.setattr(batching, "free_memory", lambda device: 2**40)
    assert decided.choose(tiny_net, x) == 1  # once


def test_free_memory_as_linux_tells_it(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:    3000 kB\n")
    assert batching._available(tmp_path / "meminfo") == [3000 * 1024]
    assert batching._available(tmp_path / "missing") == []


def test_room_that_a_container_leaves(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing"
    assert batching._cgroup_room(tmp_path, nowhere) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("100\n")
    assert batching._cgroup_room(tmp_path, nowhere) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert batching._cgroup_room(tmp_path, nowhere) == [900]
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("50\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text("60\n")
    assert batching._cgroup_room(tmp_path, nowhere) == [900, 0]


@pytest.mark.parametrize(
    ("membership", "top", "limit", "used", "total"),
    [
        ("0::/slurm/job_7\n", "", "memory.max", "memory.current", ""),
        (
            "9:name=systemd:/\n4:cpuacct,memory:/slurm/job_7\n0::/\n",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_room_that_a_job_of_a_cluster_leaves(
    membership: str, top: str, limit: str, used: str, total: str, tmp_path: Path
) -> None:
    """Limits of the own group and of one above it, none at the top; files kept in memory are not in the way."""
    (tmp_path / "membership").write_text(membership)
    for group, bytes_limit, bytes_used in (("slurm", 5000, 3000), ("slurm/job_7", 1000, 990)):
        folder = tmp_path / top / group
        folder.mkdir(parents=True)
        (folder / limit).write_text(f"{bytes_limit}\n")
        (folder / used).write_text(f"{bytes_used}\n")
    stat = f"anon 40\nfile 950\n{total}inactive_file 600\n{total}active_file 300\n"
    (tmp_path / top / "slurm/job_7/memory.stat").write_text(stat)
    assert sorted(batching._cgroup_room(tmp_path, tmp_path / "membership")) == [910, 2000]
    # Another group's limit is not the process's.
    (tmp_path / "membership").write_text(membership.replace("job_7", "job_8"))
    assert batching._cgroup_room(tmp_path, tmp_path / "membership") == [2000]


def test_free_memory_of_a_gpu_counts_what_torch_keeps_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert batching.free_memory(torch.device("cuda")) == 1200


def test_there_is_memory_on_this_machine() -> None:
    assert 2**20 < batching.free_memory(torch.device("cpu")) < 2**50
    assert batching._physical() > 2**20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), True),
        (RuntimeError("unable to mmap 100 bytes from file: Cannot allocate memory (12)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_out_of_memory_looks_like(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_halved_until_it_fits_and_remembered() -> None:
    sizes, asked = BatchSize(48), []

    def call(size: int) -> str:
        asked.append(size)
        if size > 10:
            raise MemoryError("that much is not there")
        return "done"

    assert sizes.fitting(call) == "done"
    assert asked == [48, 24, 12, 6]
    assert sizes.fitting(call) == "done"
    assert asked[4:] == [6]


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_memory_that_really_runs_out(allocate: Callable[..., object]) -> None:
    """More than any address space has, so that it fails on every machine, in the words of whoever allocates."""

    def call(size: int) -> int:
        allocate(2**60 if size > 4 else 1, dtype=torch.uint8 if allocate is torch.empty else np.uint8)
        return size

    assert BatchSize(16).fitting(call) == 4


def test_what_ran_out_is_let_go_of() -> None:
    """Neither the next try nor who handles the error has the tensors of the failed one in the way."""
    held: list[weakref.ref[Tensor]] = []

    def never(size: int) -> None:
        assert all(tensor() is None for tensor in held)
        tensor = torch.rand(size)
        held.append(weakref.ref(tensor))
        raise MemoryError

    with pytest.raises(UnitError, match=r"with a single image at a time: MemoryError$") as caught:
        BatchSize(4).fitting(never)
    assert len(held) == 3
    assert held[-1]() is None
    assert caught.value.__context__ is None


def test_what_cannot_be_halved_is_an_error() -> None:
    def never(size: int) -> None:
        raise MemoryError("that much is not there")

    with pytest.raises(UnitError, match="out of memory, with a single image at a time: that much is not there"):
        BatchSize(4).fitting(never)
    asked = []
    with pytest.raises(UnitError, match="out of memory, with 100 images at a time"):
        BatchSize(4).fitting(lambda size: asked.append(size) or never(size), fixed="100 images at a time")
    assert asked == [4]


def test_other_errors_pass() -> None:
    def wrong(size: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        BatchSize(4).fitting(wrong)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["bim", "pgd"])
def test_running_out_of_memory_changes_no_result(name: str, engine: str, tiny_net: TinyNet) -> None:
    images = torch.randint(0, 256, (30, 1, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = tiny_net(to_pixels(images)).argmax(1)
    clean = clean_outcome(tiny_net, images, labels, n_classes=4, batch_size=16)
    spec, threats = load_attack(name), [Threat("linf", 0.03), Threat("linf", 0.08)]
    hungry = Hungry(tiny_net, 5)
    wanted, got = (
        measure_sweep(tiny_net, clean, spec, threats, engine=get_engine(engine), seed=3, batch_size=16, prepared=model)
        for model in (tiny_net, hungry)
    )
    assert hungry.largest == 4
    for one, two in zip(wanted, got, strict=True):
        assert one.outcome.tolist() == two.outcome.tolist()
        assert one.distance == pytest.approx(two.distance, abs=1e-5)
        assert one.gradient_passes == two.gradient_passes


def test_a_batch_of_a_fixed_size_is_not_cut(tiny_net: TinyNet) -> None:
    images = torch.randint(0, 256, (30, 1, 10, 10), dtype=torch.uint8)
    labels = tiny_net(to_pixels(images)).argmax(1)
    clean = clean_outcome(tiny_net, images, labels, n_classes=4, batch_size=16)
    with pytest.raises(UnitError, match="out of memory, with 100 images at a time, which apgd-ce takes"):
        measure_sweep(
            tiny_net,
            clean,
            load_attack("apgd-ce"),
            [Threat("linf", 0.03)],
            engine=get_engine("native"),
            prepared=Hungry(tiny_net, 5),
        )


def test_attack_by_itself_fits_too(tiny_net: TinyNet, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(20, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 4
    wanted = attack(tiny_net, x, y, "pgd", Threat("l2", 0.5), engine="native", seed=1)
    monkeypatch.setattr("robustfdd.measure.prepare", lambda model, x, **_: Hungry(tiny_net, 3))
    got = attack(tiny_net, x, y, "pgd", Threat("l2", 0.5), engine="native", seed=1, batch_size=16)
    assert got.numpy() == pytest.approx(wanted.numpy(), abs=1e-5)
