"""The executors: the same records from each, and what the death of a worker or of the coordinator does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import assert_same
from test_cli import invoke, refused

from robustfdd import records
from robustfdd.errors import ConfigurationError
from robustfdd.evaluation import run_evaluation
from robustfdd.executors import Event, Executor, Finished, Inline, Processes, Started
from robustfdd.executors import ray as ray_executor
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


def answering(answer: bytes | None) -> Iterator[str]:
    """The address of something that accepts connections, and answers that, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            kept = []
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def silent() -> Iterator[str]:
    """What listens where the head of a cluster was, and never says a word."""
    yield from answering(None)


@pytest.fixture
def other() -> Iterator[str]:
    """What listens there now is something else."""
    yield from answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def head() -> Iterator[str]:
    """What answers as a server of gRPC does: its settings, empty ones."""
    yield from answering(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))


@pytest.fixture
def dead() -> str:
    """The address of a cluster whose head is gone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


class Connecting(Ray):
    """Says to which cluster it would connect."""

    def __init__(self, address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        super().__init__(address, say=self.said.append)
        monkeypatch.setattr(ray_executor, "PATIENCE", 1.0)

    def connect(self) -> str:
        began = time.monotonic()
        try:
            return self._choose_cluster()[0]
        finally:
            assert time.monotonic() - began < 10


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Leaves an address noted, as `ray start` does and a crash never removes."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def note(address: str) -> None:
        (tmp_path / "ray").mkdir(exist_ok=True)
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)

    return note


@pytest.mark.parametrize("what", ["dead", "silent", "other"])
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_a_cluster_that_was_only_found_and_is_gone_is_named_and_done_without(
    what: str, noted: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(what)
    noted(address)
    executor = Connecting(None, monkeypatch)
    assert executor.connect() == "local"
    tries, goes_on = executor.said
    assert tries == f"Ray: trying the cluster at {address}, for at most 1 s"
    reason = {"dead": "Connection refused", "silent": "no answer within 1 s", "other": "is no Ray cluster"}[what]
    assert goes_on.startswith(f"Ray: the cluster at {address}, ")
    assert f"{reason}); going on with one of this machine alone" in goes_on


@pytest.mark.parametrize("asked", ["--address", "RAY_ADDRESS", "auto"])
@pytest.mark.parametrize("what", ["dead", "silent", "other", "nowhere", "client"])
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_a_cluster_that_was_asked_for_and_is_gone_ends_with_one_message(
    asked: str,
    what: str,
    noted: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    if asked == "auto" and what in ("nowhere", "client"):
        return  # never noted
    address = {"nowhere": "nowhere.invalid:6379", "client": f"ray://{request.getfixturevalue('silent')}"}.get(what)
    address = address or request.getfixturevalue(what)
    option = address
    if asked == "auto":
        noted(address)
        option = "auto"
    if asked == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", address)
        option = None
    executor = Connecting(option, monkeypatch)
    with pytest.raises(ConfigurationError, match="no Ray cluster to be used") as error:
        executor.connect()
    assert executor.said == [f"Ray: trying the cluster at {address}, for at most 1 s"]
    says = f"RAY_ADDRESS={address}: " if asked == "RAY_ADDRESS" else f"--address {option}: "
    assert str(error.value).startswith(says)
    assert address in str(error.value)
    assert "--address local" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_a_cluster_that_answers_is_used(
    head: str, dead: str, noted: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Connecting(head, monkeypatch).connect() == head
    assert Connecting(f"ray://{head}", monkeypatch).connect() == f"ray://{head}"
    noted(head)
    for found in (None, "auto"):
        assert Connecting(found, monkeypatch).connect() == head
    monkeypatch.setenv("RAY_ADDRESS", head)
    noted(dead)
    assert Connecting(None, monkeypatch).connect() == head
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert Connecting(None, monkeypatch).connect() == "local"
    assert Connecting("local", monkeypatch).connect() == "local"


@pytest.mark.parametrize("address", ["6379", "host:", "host:x", ":6379", "host:99999", "ray://host", "x" * 300])
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        Connecting(address, monkeypatch).connect()


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
