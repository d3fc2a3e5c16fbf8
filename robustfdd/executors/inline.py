"""The executor that performs tasks in this process, one after the other."""

from __future__ import annotations

from robustfdd.executors.base import Advanced, Executor, Finished, Listener, Started
from robustfdd.tasks import Context, Job, Task, perform, worker_name


class Inline(Executor):
    """One task at a time, in the order of the plan."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._task: Task | None = None

    def start(self, job: Job, context: Context) -> None:  # noqa: ARG002 - of the interface
        """See :class:`Executor`."""
        self._context = context

    def has_room(self) -> bool:
        """See :class:`Executor`."""
        return self._task is None

    def submit(self, task: Task) -> None:
        """See :class:`Executor`."""
        self._task = task

    def wait(self, listen: Listener) -> None:
        """See :class:`Executor`."""
        task, self._task = self._task, None
        assert task is not None
        assert self._context is not None
        listen(Started(task.name, worker_name()))
        outcome = perform(task, self._context, lambda cost: listen(Advanced(task.name, cost)))
        listen(Finished(task.name, outcome))

    def stop(self, *, kill: bool) -> None:  # noqa: ARG002 - of the interface
        """See :class:`Executor`."""
        self._context = self._task = None
