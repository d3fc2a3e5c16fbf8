"""The executors: the same records from each, and what the death of a worker or of the coordinator does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import STUDY, make_dataset
from PIL import Image
from test_cli import invoke, refused

from robustfdd import records
from robustfdd.classifier import weights_digest
from robustfdd.evaluation import run_evaluation
from robustfdd.executors import Event, Executor, Finished, Inline, Processes, Started
from robustfdd.executors.processes import _cause
from robustfdd.executors.ray import Ray
from robustfdd.journal import read_journal
from robustfdd.locking import is_held
from robustfdd.models import load_model
from robustfdd.tasks import Context, Done, Job, Task, worker_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose data another process can load, from images in a folder."""
    top = tmp_path_factory.mktemp("images")
    data = make_dataset(n_train=80, n_test=40)
    for name, split in (("train", data.train), ("test", data.test)):
        for position, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = top / "data" / name / f"quarter{int(label)}" / f"{position:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(path)
    (top / "s.toml").write_text(STUDY.replace('"quarters"', f'"folder:{top / "data"}"'))
    return top


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    """What one process after the other makes of it."""
    return run_evaluation(folder / "s.toml", out=folder / "reference")


def assert_same(run: Path, other: Path) -> None:
    found, expected = records.load_run(run), records.load_run(other)
    assert found.failures == []
    keys = ["unit", "eps_pixel"]
    cells, wanted = found.cells.sort_values(keys), expected.cells.sort_values(keys)
    assert cells.unit.tolist() == wanted.unit.tolist()
    for column in ("outcome", "prediction", "distance", "clean_prediction"):
        for mine, theirs in zip(cells[column], wanted[column], strict=True):
            assert np.array_equal(mine, theirs)
    for path in sorted(other.glob("models/*.safetensors")):
        assert weights_digest(load_model(run / "models" / path.name)) == weights_digest(load_model(path))


class Watched(Processes):
    """Two worker processes; tells each event to somebody before the coordinator."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        super().__init__(2)
        self.tell = tell

    def wait(self, listen: Callable[[Event], None]) -> None:
        def both(event: Event) -> None:
            self.tell(event)
            listen(event)

        super().wait(both)


def test_processes_give_the_same_and_a_killed_worker_fails_its_unit_alone(
    folder: Path, reference: Path, tmp_path: Path
) -> None:
    victim = "none--seed0--pgd--l2--art"
    workers: set[str] = set()

    def kill(event: Event) -> None:
        if isinstance(event, Started):
            workers.add(event.worker)
            if event.task == victim:
                os.kill(int(event.worker.rpartition(":")[2]), signal.SIGKILL)

    run = run_evaluation(folder / "s.toml", out=tmp_path / "run", executor=Watched(kill))
    assert worker_name() not in workers
    assert len(workers) >= 2
    (failure,) = records.load_run(run).failures
    assert (failure.unit, failure.error) == (victim, "WorkerDiedError")
    assert "killed by SIGKILL, as the system does when memory runs out" in failure.message
    assert victim not in set(records.load_run(run).cells.unit)
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/*--seed0*") if path.parent.name != "failures"}
    run_evaluation(folder / "s.toml", out=run)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same(run, reference)


def start(study: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """The command in a process of its own, once its workers have begun."""
    command = [sys.executable, "-m", "robustfdd", "run", str(study), "--out", str(run), "--jobs", "2", "--no-audit"]
    process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len([e for e in read_journal(run).tasks.values() if e.state == "running"]) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_end_of_the_coordinator_ends_the_workers(
    folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    process = start(folder / "s.toml", run, "--set", "recipe.epochs=5000")
    workers = [int(e.worker.rpartition(":")[2]) for e in read_journal(run).tasks.values() if e.state == "running"]
    assert is_held(run)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert ("the same command goes on" in said) == (number == signal.SIGTERM)
    assert "Traceback" not in said
    deadline = time.monotonic() + 60
    while not all(gone(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not is_held(run)
    assert records.load_run(run).failures == []


@pytest.mark.parametrize(
    ("code", "says"),
    [(-9, "killed by SIGKILL, as the system"), (-11, "killed by SIGSEGV, a fault"), (3, "ended with exit code 3")],
)
def test_why_a_worker_died(code: int, says: str) -> None:
    assert says in _cause(code)


class Backwards(Executor):
    """Performs the last of what can be done first, all of it in this process: the order must not matter."""

    def __init__(self) -> None:
        self.inner, self.tasks, self.order = Inline(), [], []

    def start(self, job: Job, context: Context) -> None:
        self.inner.start(job, context)

    def has_room(self) -> bool:
        return True

    def choose(self, ready: Sequence[Task]) -> Task:
        return ready[-1]

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def wait(self, listen: Callable[[Event], None]) -> None:
        task = self.tasks.pop(0)
        self.order.append(task.name)
        self.inner.submit(task)
        self.inner.wait(listen)

    def stop(self, *, kill: bool) -> None:
        self.inner.stop(kill=kill)


def test_any_order_that_keeps_the_needs_gives_the_same(folder: Path, reference: Path, tmp_path: Path) -> None:
    executor = Backwards()
    run = run_evaluation(folder / "s.toml", out=tmp_path / "run", executor=executor)
    assert executor.order != [e.name for e in read_journal(reference).tasks.values()]
    assert_same(run, reference)


def test_what_is_reported_after_the_end_of_a_task_is_ignored(folder: Path, reference: Path, tmp_path: Path) -> None:
    class Echo(Backwards):
        def wait(self, listen: Callable[[Event], None]) -> None:
            events: list[Event] = []
            super().wait(lambda event: (listen(event), events.append(event)))
            for event in events:
                listen(event)

    victim = shutil.copytree(reference, tmp_path / "run")
    next(victim.glob("results/*")).unlink()
    assert_same(run_evaluation(folder / "s.toml", out=victim, executor=Echo()), reference)
    assert [type(e) for e in (Started("x", "y"), Finished("x", Done()))] == [Started, Finished]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--jobs", "0"], ["--jobs"]),
        (["--address", "auto"], ["--executor ray"]),
        (["--executor", "ray", "--jobs", "2"], ["--jobs 2"]),
        (["--executor", "inline", "--jobs", "2"], ["--jobs 2"]),
        (["--executor", "slurm"], ["inline", "processes", "ray"]),
        (["--executor", "ray", "--gpus-per-unit", "0.5"], ["--device cuda"]),
        (["--executor", "ray", "--device", "cuda:1"], ["Ray chooses which GPU"]),
    ],
)
def test_senseless_options_are_refused(options: list[str], says: list[str]) -> None:
    refused(invoke("run", "quickstart", "--out", "r", *options), *says)
    assert not Path("r").exists()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(invoke("run", "quickstart", "--out", "r", "--executor", "ray"), "pip install 'robustfdd[ray]'")


@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_a_cluster_that_is_not_there_is_named() -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"  # free, once this is closed
    refused(
        invoke("run", "quickstart", "--out", "r", "--executor", "ray", "--address", address), f"--address {address}"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_ray_gives_the_same(folder: Path, reference: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        run = run_evaluation(folder / "s.toml", out=tmp_path / "run", executor=Ray())
    finally:
        ray.shutdown()
    assert_same(run, reference)
    workers = {entry.worker for entry in read_journal(run).tasks.values()}
    assert worker_name() not in workers
    assert len(workers) >= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_ray_goes_on_when_a_node_is_lost(folder: Path, reference: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster  # noqa: PLC0415

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    lost: list[str] = []

    class Losing(Ray):
        def wait(self, listen: Callable[[Event], None]) -> None:
            def watch(event: Event) -> None:
                listen(event)
                if isinstance(event, Finished) and not lost:
                    lost.append(event.task)
                    cluster.remove_node(second, allow_graceful=False)

            super().wait(watch)

    try:
        run = run_evaluation(folder / "s.toml", out=tmp_path / "run", executor=Losing())
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert lost
    assert_same(run, reference)
