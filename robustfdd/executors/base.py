"""The interface of an executor: it is given tasks whose needs are done, and says what becomes of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from robustfdd import provenance
from robustfdd.records import Failure
from robustfdd.tasks import Context, Done, Job, Task


@dataclass(frozen=True)
class Started:
    """A worker has begun a task; once more if it is tried again."""

    task: str
    worker: str


@dataclass(frozen=True)
class Advanced:
    """A part of a task is done."""

    task: str
    cost: float


@dataclass(frozen=True)
class Finished:
    """A task is over."""

    task: str
    outcome: Done | Failure


Event: TypeAlias = Started | Advanced | Finished
Listener: TypeAlias = Callable[[Event], None]


class Executor(ABC):
    """Performs tasks.

    It is started once, given tasks as long as it has room, waited for, and stopped whatever happens.

    Attributes:
        local: whether tasks are performed on the machine of the coordinator.
    """

    local = True

    def hardware(self, device: torch.device) -> dict[str, Any]:
        """The machine that computes, and its device, for the manifest."""
        return provenance.hardware(device)

    @abstractmethod
    def start(self, job: Job, context: Context) -> None:
        """Make ready for the tasks of a run.

        Args:
            job: what they share.
            context: of this process, for what is performed in it.

        Raises:
            ConfigurationError: it cannot be used here.
        """

    @abstractmethod
    def has_room(self) -> bool:
        """Whether another task can be submitted now."""

    def choose(self, ready: Sequence[Task]) -> Task:
        """Which of several tasks to submit next; they are in the order of the plan."""
        return ready[0]

    @abstractmethod
    def submit(self, task: Task) -> None:
        """Accept a task, all needs of which are done."""

    @abstractmethod
    def wait(self, listen: Listener) -> None:
        """Wait until something becomes of a submitted task, for a second at most where nothing does, and tell it."""

    @abstractmethod
    def stop(self, *, kill: bool) -> None:
        """Give everything back; ``kill`` ends tasks that are still performed, within seconds."""


class Throttle:
    """Collects the steps of a task, and passes their sum on a few times a second.

    Args:
        send: takes a cost.
        seconds: between two calls of it.
    """

    def __init__(self, send: Callable[[float], object], seconds: float = 0.25) -> None:
        self._send, self._seconds = send, seconds
        self._sum, self._last = 0.0, time.monotonic()

    def __call__(self, cost: float) -> None:
        """Collect a step."""
        self._sum += cost
        now = time.monotonic()
        if now - self._last >= self._seconds:
            self._send(self._sum)
            self._sum, self._last = 0.0, now
