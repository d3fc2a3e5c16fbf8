"""Contenders in processes of their own, that work by turns: what one allocates or caches is not the others'."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Protocol

import torch

from benchmarks.progress import Bar
from benchmarks.usage import Usage, measured

#: Seconds that a worker is given to end by itself.
_PATIENCE = 10.0


class Job(Protocol):
    """What a worker holds: it is made once and run many times."""

    def run(self, task: Any) -> Any:
        """Do one task; the result is sent to the driver."""


def last_line(error: object) -> str:
    """What a traceback ends with: the error itself."""
    return str(error).strip().rpartition("\n")[2]


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a worker."""

    trace: str


class WorkerError(Exception):
    """A worker could not do what it was asked for; the message is the traceback in the worker."""


def _serve(connection: Connection, make: Callable[[], Job], device_name: str, threads: int) -> None:
    """The life of a worker: make the job, then one task after the other until the driver hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interruption is for the driver to act on
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    # The same arithmetic for all: some of the contenders ask for full single precision, others do not care.
    torch.backends.cudnn.allow_tf32 = False
    try:
        made = measured(make, device)
    except Exception:
        connection.send(_Failure(traceback.format_exc()))
        return
    job = made.result
    connection.send(made.seconds)
    with contextlib.suppress(EOFError):
        while True:
            task = connection.recv()
            try:
                answer: object = measured(partial(job.run, task), device)
            except Exception:
                answer = _Failure(traceback.format_exc())
            connection.send(answer)


class Worker:
    """A process with one job. Use it in ``with``.

    Args:
        make: makes the job, in the process; must be importable there.
        device: what the job computes on.
        threads: of torch.
    """

    def __init__(self, make: Callable[[], Job], *, device: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        # Not a daemon, which could have no processes of its own, as a data loader has.
        self._process = context.Process(target=_serve, args=(there, make, device, threads))
        self._process.start()
        there.close()

    def ready(self) -> float:
        """Wait until the job is made; seconds that it took.

        Raises:
            WorkerError: it could not be made.
        """
        return float(self._answer())

    def run(self, task: object) -> Usage[Any]:
        """Have one task done.

        Raises:
            WorkerError: it failed; the worker can be asked for another.
        """
        try:
            self._connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            raise WorkerError("the worker has ended") from None
        usage = self._answer()
        assert isinstance(usage, Usage)
        return usage

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise WorkerError(f"the worker has ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, _Failure):
            raise WorkerError(answer.trace)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.close()
        if kind is None:
            self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()


def take_turns(
    workers: Mapping[str, Worker],
    tasks: Mapping[str, object],
    *,
    repeats: int,
    label: str,
    bar: Bar,
    notes: list[str],
) -> dict[str, list[Usage[Any]]]:
    """Have the workers do their tasks by turns; those that wait sleep.

    The first round warms up and is not counted. Every other round goes through the workers backwards, so that what
    the machine does meanwhile, and what one leaves in the caches for the next, falls on all alike.

    Args:
        workers: by name.
        tasks: of each of the workers that take part.
        repeats: rounds that are counted.
        label: of the tasks, for the bar and the notes.
        bar: told of every task that is done.
        notes: gets a line for a worker that failed; it takes no further part and has no result.

    Returns:
        For each worker that never failed what its task took, round by round.
    """
    usages: dict[str, list[Usage[Any]]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name in list(usages) if turn % 2 == 0 else list(reversed(usages)):
            try:
                usage = workers[name].run(tasks[name])
            except WorkerError as error:
                notes.append(f"{label}: {name} failed: {last_line(error)}")
                del usages[name]
                continue
            if turn:
                usages[name].append(usage)
            bar.advance(f"{label}: {name}")
    return usages
