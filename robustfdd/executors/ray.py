"""The executor that submits tasks to Ray: a machine with many GPUs, or a cluster.

Ray decides where and when a task runs, and tries it again when its worker or node is lost. All nodes must see the run
directory under the same path, have this package and its dependencies installed in the same versions, and find the data
set. Ray is imported here alone, and only when it is used.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from robustfdd import plugins, provenance
from robustfdd.errors import ConfigurationError, UnitError, WorkerDiedError
from robustfdd.executors.base import Advanced, Event, Executor, Finished, Listener, Started, Throttle
from robustfdd.records import Failure
from robustfdd.tasks import Context, Done, Job, Task, perform, worker_name
from robustfdd.text import shortened
from robustfdd.units import failure_of

#: How often Ray tries a task again whose worker or node was lost.
MAX_RETRIES = 5
#: Seconds that a cluster has to answer at its address.
PATIENCE = 30.0
#: The variable of the environment by which Ray itself is told an address.
_VARIABLE = "RAY_ADDRESS"
#: With what a client greets a server of HTTP/2, which gRPC and so Ray is spoken over, and the kind of frame that the
#: server has to answer first, in the fourth byte (RFC 9113, sections 3.4 and 6.5).
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
#: Seconds between two looks at how the tasks go.
_POLL = 0.5


class Ray(Executor):
    """All tasks at once, as far as what they need is done; Ray queues them.

    Args:
        address: of a running cluster, as ``ray.init`` takes it (``"auto"``, ``"HOST:6379"``, ``"ray://HOST:10001"``);
            when None, the cluster that is there, or a new one of this machine alone.
        gpus_per_unit: share of a GPU that a task takes, e.g. 0.25 for four at once on each; more than 1 is of no use.
            0 for tasks on CPUs.
        say: is told which cluster is tried, for how long, and which one is used instead.

    Raises:
        ConfigurationError: Ray is not installed, or the share is not from 0 to 1.
    """

    local = False

    def __init__(
        self, address: str | None = None, gpus_per_unit: float = 0.0, say: Callable[[str], object] | None = None
    ) -> None:
        if not 0 <= gpus_per_unit <= 1:
            raise ConfigurationError(f"--gpus-per-unit {gpus_per_unit:g}: must be from 0 to 1")
        self._ray = _import_ray()
        self._address, self._gpus_per_unit = address, gpus_per_unit
        self._say = say or (lambda _: None)
        self._tasks: dict[Any, Task] = {}
        self._started_here = False

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        address, asked = self._choose_cluster()
        try:
            with _sigterm_kept():
                given = {"env_vars": plugins.environment()}
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=given)
        except Exception as error:  # another version, a cluster that is not ready, no room for one of our own
            raise ConfigurationError(f"{asked}: no Ray cluster to be used ({_in_one_line(error)})") from error
        self._started_here = True

    def _choose_cluster(self) -> tuple[str, str]:
        """The address to give to Ray, and what asked for it, in words.

        Ray itself would wait for minutes for a cluster that is gone.

        Raises:
            ConfigurationError: the cluster that was asked for does not answer.
        """
        given, asked = self._address, f"--address {self._address}"
        if given in (None, "auto") and os.environ.get(_VARIABLE):  # as Ray has it
            given = os.environ[_VARIABLE]
            asked = f"{_VARIABLE}={given}"
        address = given
        if given in (None, "auto"):
            try:
                address = _find_cluster(given)
            except ConnectionError as error:
                raise ConfigurationError(f"{asked}: no Ray cluster to be used ({_in_one_line(error)})") from error
        if address in (None, "local"):
            return "local", "--executor ray"
        assert address is not None
        self._say(f"Ray: trying the cluster at {address}, for at most {PATIENCE:.0f} s")
        why = _silent(address, PATIENCE)
        if why is None:
            return address, asked
        if given is not None:
            found = f", found at {address}," if given != address else ""
            raise ConfigurationError(
                f"{asked}: no Ray cluster to be used (the one{found} does not answer: {why}); start it, give the "
                "address of another one, or --address local for one of this machine alone"
            )
        self._say(
            f"Ray: the cluster at {address}, which an earlier `ray start` has left noted, does not answer ({why}); "
            "going on with one of this machine alone"
        )
        return "local", "--executor ray"

    def _remote(self, function: Callable[..., Any]) -> Any:
        """A function as a task of Ray that takes what a unit takes."""
        return self._ray.remote(max_retries=MAX_RETRIES, num_cpus=1, num_gpus=self._gpus_per_unit)(function)

    def hardware(self, device: torch.device) -> dict[str, Any]:
        """That of the node which Ray chooses first; see :class:`Executor`."""
        self._connect()
        found: dict[str, Any] = self._ray.get(self._remote(provenance.hardware).remote(device))
        return found

    def start(self, job: Job, context: Context) -> None:  # noqa: ARG002 - of the interface
        """See :class:`Executor`."""
        self._connect()
        ray = self._ray
        self._perform = self._remote(_perform)
        # On this node, which has to stay whatever happens to the others.
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        self._progress = ray.remote(num_cpus=0, scheduling_strategy=here)(_Progress).remote()
        self._job = ray.put((job, str(Path.cwd())))

    def has_room(self) -> bool:
        """See :class:`Executor`."""
        return True

    def submit(self, task: Task) -> None:
        """See :class:`Executor`."""
        self._tasks[self._perform.remote(task, self._job, self._progress)] = task

    def wait(self, listen: Listener) -> None:
        """See :class:`Executor`."""
        ray = self._ray
        ready, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_POLL)
        with suppress(ray.exceptions.RayError):  # progress that is lost is no result that is lost
            for event in ray.get(self._progress.take.remote(), timeout=30):
                listen(event)
        for reference in ready:
            listen(Finished(self._tasks[reference].name, self._outcome(reference)))
            del self._tasks[reference]

    def _outcome(self, reference: Any) -> Done | Failure:
        task = self._tasks[reference]
        try:
            outcome: Done | Failure = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            died = WorkerDiedError(
                f"lost with its worker or node, {MAX_RETRIES} further attempts included ({reason}); the same command "
                "tries again"
            )
            return failure_of(task.name, task.kind, task.method, task.seed, died, task.unit)
        return outcome

    def stop(self, *, kill: bool) -> None:
        """See :class:`Executor`."""
        ray = self._ray
        if not ray.is_initialized():
            return
        if kill:
            for reference in self._tasks:
                with suppress(Exception):  # of a cluster that may be gone
                    ray.cancel(reference, force=True)
        self._tasks = {}
        if self._started_here:
            ray.shutdown()
            self._started_here = False


def _in_one_line(error: Exception) -> str:
    return shortened(" ".join(str(error).split()) or type(error).__name__, 200)


def _find_cluster(given: str | None) -> str | None:
    """The address of a cluster that Ray finds noted on this machine, or running on it; None where there is none.

    Raises:
        ConnectionError: there is none, and ``given`` is ``"auto"``.
    """
    services = importlib.import_module("ray._private.services")
    found: str | None = services.get_ray_address_from_environment(given, None)
    return found


def _silent(address: str, seconds: float) -> str | None:
    """Why no cluster of Ray answers at an address, in words; None where one does.

    Args:
        address: ``HOST:PORT`` or ``ray://HOST:PORT``.
        seconds: how long to wait, for the name of the host as well.
    """
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return "it is not of the form HOST:PORT or ray://HOST:PORT"
    heard: list[str | None] = []

    def listen() -> None:
        try:
            heard.append(_greet(host.strip("[]"), int(port), seconds))
        except TimeoutError:
            return
        except (OSError, UnicodeError) as error:  # the second of a name that can be none
            heard.append(_in_one_line(error))

    # In a thread, since looking up a name has no limit of its own.
    asking = threading.Thread(target=listen, daemon=True)
    asking.start()
    asking.join(seconds)
    return heard[0] if heard else f"no answer within {seconds:g} s"


def _greet(host: str, port: int, seconds: float) -> str | None:
    with socket.create_connection((host, port), timeout=seconds) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):  # answers only to who has its certificate
            return None
        connection.sendall(_GREETING)
        answer = b""
        while len(answer) < 4:
            received = connection.recv(4 - len(answer))
            if not received:
                break
            answer += received
    return None if answer[3:] == bytes([_SETTINGS]) else "what answers there is no Ray cluster"


def _import_ray() -> Any:
    try:
        with _sigterm_kept():
            ray = importlib.import_module("ray")
            importlib.import_module("ray.util.scheduling_strategies")
    except ImportError as error:
        raise ConfigurationError(
            f"--executor ray: Ray is not installed ({error}); install it with: pip install 'robustfdd[ray]'"
        ) from error
    return ray


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep what the process does when it is asked to end, which Ray replaces, also behind Python's back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler if handler is not None else signal.SIG_DFL)


class _Progress:
    """What the tasks tell, until the coordinator takes it; an actor of Ray."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def tell(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        events, self._events = self._events, []
        return events


#: What a worker of Ray keeps between tasks, with the run that it is of.
_kept: tuple[Job, Context] | None = None


def _perform(task: Task, shared: tuple[Job, str], progress: Any) -> Done | Failure:
    """Perform a task in a worker of Ray."""
    global _kept  # noqa: PLW0603 - a worker is a process, and performs one task at a time
    job, folder = shared
    with suppress(OSError):
        os.chdir(folder)  # where relative paths of the study are meant from
    if _kept is None or _kept[0] != job:
        # Ray gives a worker its cores by this variable, which torch has read if nobody else has set it.
        torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS") or 1)))
        _kept = (job, Context(job))
    progress.tell.remote(Started(task.name, worker_name()))
    if not (job.run / "manifest.json").is_file():
        error = UnitError(f"{worker_name()} does not see {job.run}; it must be on a file system that all nodes share")
        return failure_of(task.name, task.kind, task.method, task.seed, error, task.unit)
    return perform(task, _kept[1], Throttle(lambda cost: progress.tell.remote(Advanced(task.name, cost))))
