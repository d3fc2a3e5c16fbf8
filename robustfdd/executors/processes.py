"""The executor with several worker processes on this machine, for its cores or for one GPU that they share."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from robustfdd.ending import call_in_worker
from robustfdd.errors import ConfigurationError, WorkerDiedError
from robustfdd.executors.base import Advanced, Event, Executor, Finished, Listener, Started, Throttle
from robustfdd.tasks import Context, Job, Task, perform, worker_name
from robustfdd.units import failure_of

#: Seconds that a worker is given to end after it was asked or told to.
PATIENCE = 5.0


class _Worker:
    """One worker process, and what it is doing."""

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process, self.connection = process, connection
        self.task: Task | None = None
        self.model = ""  # that it has loaded


class Processes(Executor):
    """So many tasks at once, each in a process of its own, which keeps the data set and the model last used.

    A worker that dies fails the task that it was performing, and another takes its place.

    Args:
        n_workers: how many.

    Raises:
        ConfigurationError: none.
    """

    def __init__(self, n_workers: int) -> None:
        if n_workers < 1:
            raise ConfigurationError(f"--jobs {n_workers}: must be at least 1")
        self._n_workers = n_workers
        self._workers: list[_Worker] = []
        # A forked process could not use CUDA, and would inherit locks of threads that it does not have.
        self._multiprocessing = multiprocessing.get_context("spawn")
        self._job: Job | None = None

    def start(self, job: Job, context: Context) -> None:  # noqa: ARG002 - of the interface
        """See :class:`Executor`."""
        self._job = job

    def has_room(self) -> bool:
        """See :class:`Executor`."""
        return sum(worker.task is not None for worker in self._workers) < self._n_workers

    def choose(self, ready: Sequence[Task]) -> Task:
        """The first whose model an idle worker has loaded, or else the first that no worker has; see the base class."""
        idle = {worker.model for worker in self._workers if worker.task is None}
        loaded = {worker.model for worker in self._workers}
        for task in ready:
            if task.model in idle:
                return task
        return next((task for task in ready if task.model not in loaded), ready[0])

    def submit(self, task: Task) -> None:
        """See :class:`Executor`."""
        idle = [worker for worker in self._workers if worker.task is None]
        worker = next((w for w in idle if w.model == task.model), None)
        if worker is None:
            worker = self._new_worker() if len(self._workers) < self._n_workers else idle[0]
        worker.task, worker.model = task, task.model
        with suppress(OSError):  # one that died meanwhile is found by wait
            worker.connection.send(task)

    def _new_worker(self) -> _Worker:
        ours, theirs = self._multiprocessing.Pipe()
        n_threads = max(1, torch.get_num_threads() // self._n_workers)
        # What takes long to import comes by the connection, once the worker ends with this process.
        arguments = (f"{__name__}:{_work.__name__}", theirs, n_threads)
        process = self._multiprocessing.Process(target=call_in_worker, args=arguments, daemon=True)
        with _without_interruptions():
            process.start()
        theirs.close()  # so that the end of the process ends the connection
        worker = _Worker(process, ours)
        with suppress(OSError):  # one that died meanwhile is found by wait
            ours.send(self._job)
        self._workers.append(worker)
        return worker

    def wait(self, listen: Listener) -> None:
        """See :class:`Executor`."""
        ready = wait([worker.connection for worker in self._workers], timeout=1.0)
        for worker in list(self._workers):
            if worker.connection not in ready:
                continue
            try:
                event: Event = worker.connection.recv()
            except (EOFError, OSError):
                self._workers.remove(worker)
                self._bury(worker, listen)
                continue
            if isinstance(event, Finished):
                worker.task = None
            listen(event)

    @staticmethod
    def _bury(worker: _Worker, listen: Listener) -> None:
        worker.process.join(PATIENCE)
        worker.connection.close()
        task = worker.task
        if task is None:
            return
        error = WorkerDiedError(f"the worker process {_cause(worker.process.exitcode)}; the same command tries again")
        listen(Finished(task.name, failure_of(task.name, task.kind, task.method, task.seed, error, task.unit)))

    def stop(self, *, kill: bool) -> None:
        """See :class:`Executor`."""
        for worker in self._workers:
            if kill:
                worker.process.terminate()
            else:
                with suppress(OSError):
                    worker.connection.send(None)
        for worker in self._workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers = []


def _cause(exit_code: int | None) -> str:
    """Why a process ended, in words."""
    if exit_code is None or exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = {"SIGKILL": ", as the system does when memory runs out", "SIGSEGV": ", a fault in native code"}.get(name, "")
    return f"was killed by {name}{hint}"


@contextmanager
def _without_interruptions() -> Iterator[None]:
    """A context in which processes are started that never hear of SIGINT.

    Ctrl-C reaches all processes of a terminal; it is for the coordinator to end the workers.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(connection: Connection, n_threads: int) -> None:
    """What a worker process does: perform the tasks that come after the job they are of, until there are no more."""
    torch.set_num_threads(n_threads)
    context: Context | None = None
    while True:
        try:
            task: Job | Task | None = connection.recv()
        except (EOFError, OSError):
            return
        if task is None:
            return
        if isinstance(task, Job):
            context = Context(task)
            continue
        assert context is not None
        name = task.name
        connection.send(Started(name, worker_name()))
        report = Throttle(lambda cost, name=name: connection.send(Advanced(name, cost)))  # type: ignore[misc]
        connection.send(Finished(name, perform(task, context, report)))
