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

import pytest
from conftest import assert_same
from test_cli import invoke, refused

from robustfdd import records
from robustfdd.evaluation import run_evaluation
from robustfdd.executors import Event, Executor, Finished, Inline, Processes, Started
from robustfdd.executors.processes import _cause
from robustfdd.executors.ray import Ray
from robustfdd.journal import read_journal
from robustfdd.locking import is_held
from robustfdd.tasks import Context, Done, Job, Task, worker_name


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
    folder: Path, reference: Path, tmp_path: Path, tally: Callable[[str, int, int], None]
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
    again = sum(path.stat().st_mtime_ns != written for path, written in before.items())
    tally("worker process killed", 1, again)
    assert again == 0
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


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_end_of_the_coordinator_ends_the_workers(
    folder: Path, tmp_path: Path, number: signal.Signals, code: int, tally: Callable[[str, int, int], None]
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
    failures = records.load_run(run).failures
    tally(f"coordinator of two workers ended ({number.name})", 1, len(failures))
    assert failures == []


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


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_ray_goes_on_when_a_node_is_lost(
    folder: Path, reference: Path, tmp_path: Path, tally: Callable[[str, int, int], None]
) -> None:
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
    tally("node of a Ray cluster lost", 1, len(list(run.glob("failures/*"))))
    assert_same(run, reference)
