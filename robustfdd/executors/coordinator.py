"""From a plan to results: submits what can be done, shows how it goes, and notes what failed and what waits for it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from robustfdd import records
from robustfdd.errors import OutOfSpaceError, UnitError
from robustfdd.executors.base import Advanced, Event, Executor, Finished, Started
from robustfdd.journal import Journal
from robustfdd.progress import Display
from robustfdd.records import Failure
from robustfdd.resume import snapshot_path
from robustfdd.tasks import Context, Done, Job, Task, checkpoint_path, discard, is_done, state_of_checkpoint
from robustfdd.units import failure_of

#: Seconds between two lines of the journal about a task that goes on.
HEARTBEAT = 30.0


def coordinate(tasks: Sequence[Task], job: Job, context: Context, executor: Executor, display: Display) -> None:
    """Perform the tasks of a run that are not done yet.

    A task that fails is noted under ``failures/``, and the others go on. What needs it is not performed, and has no
    result; the journal says why.

    Args:
        tasks: in the order of the plan.
        job: what they share.
        context: of this process.
        executor: where they are performed; it is started and stopped here.
        display: where progress is shown.
    """
    _Coordinator(tasks, job, context, executor, display).run()


class _Coordinator:
    def __init__(self, tasks: Sequence[Task], job: Job, context: Context, executor: Executor, display: Display) -> None:
        self._tasks = {task.name: task for task in tasks}
        self._job, self._context, self._executor, self._display = job, context, executor, display
        self._journal = Journal(job.run)
        self._waiting = dict(self._tasks)
        self._running: dict[str, Task] = {}
        self._over: dict[str, bool] = {}  # whether it has its result
        self._started: set[str] = set()
        self._advanced: dict[str, float] = {}
        self._heard: dict[str, float] = {}  # when the journal was last told of it

    def run(self) -> None:
        self._journal.begin({"name": t.name, "kind": t.kind, "cost": t.cost} for t in self._tasks.values())
        whole = False
        try:
            self._executor.start(self._job, self._context)
            while self._waiting or self._running:
                self._submit()
                if self._running:
                    self._executor.wait(self._listen)
            whole = True
        finally:
            self._executor.stop(kill=not whole)
            self._journal.end()

    def _submit(self) -> None:
        """Submit what can be done, as far as there is room."""
        while self._executor.has_room():
            ready = [task for task in self._waiting.values() if all(name in self._over for name in task.needs)]
            if not ready:
                return
            settled = False
            for task in ready:  # in the order of the plan, up to the first that is to be performed
                if not all(self._over[name] for name in task.needs):
                    self._block(task)
                elif self._is_done(task):
                    self._settle(task, Done(found=True))
                else:
                    break
                settled = True
            if settled:  # others may be ready now, and come before
                continue
            task = self._executor.choose(ready)
            if task is not ready[0] and (not all(self._over[name] for name in task.needs) or self._is_done(task)):
                task = ready[0]
            del self._waiting[task.name]
            self._running[task.name] = task
            self._executor.submit(task)

    def _is_done(self, task: Task) -> bool:
        try:
            if task.kind == "train" and state_of_checkpoint(task, self._context) == "of other code":
                self._display.say(f"{task.name}: its checkpoint is of another version of the code; it is trained anew")
                return False
            return is_done(task, self._context)
        except Exception:  # what is wrong is told by the failure of the task
            return False

    def _listen(self, event: Event) -> None:
        task = self._running.get(event.task)
        if task is None:  # of a task that was given up as lost, and went on
            return
        if isinstance(event, Started):
            self._journal.tell("started", task.name, worker=event.worker)
            self._advanced[task.name] = 0.0
            self._heard[task.name] = time.monotonic()
            self._started.add(task.name)
            self._display.start(task.title, task.cost, key=task.name)
        elif isinstance(event, Advanced) and task.name in self._started:
            self._advanced[task.name] += event.cost
            self._display.advance(event.cost, key=task.name)
            if time.monotonic() - self._heard[task.name] > HEARTBEAT:
                self._heard[task.name] = time.monotonic()
                self._journal.tell("advanced", task.name, cost=self._advanced[task.name])
        elif isinstance(event, Finished):
            del self._running[task.name]
            self._settle(task, event.outcome)

    def _settle(self, task: Task, outcome: Done | Failure) -> None:
        """Note what became of a task."""
        self._waiting.pop(task.name, None)
        if isinstance(outcome, Failure) and outcome.error == "WorkerDiedError" and self._is_done(task):
            outcome = Done()  # it died after it had written its result
        self._over[task.name] = isinstance(outcome, Done)
        if isinstance(outcome, Done):
            if task.kind == "train":  # one killed between its last two steps left it
                snapshot_path(checkpoint_path(self._job.run, task.name)).unlink(missing_ok=True)
            (self._job.run / "failures" / f"{task.name}.json").unlink(missing_ok=True)
            self._journal.tell("found" if outcome.found else "done", task.name)
            if outcome.found:
                self._display.skip(task.cost, key=task.name)
            else:
                if task.name not in self._started:
                    self._display.start(task.title, task.cost, key=task.name)
                self._display.finish(outcome.note, key=task.name)
            return
        discard(task, self._job.run)
        if outcome.error == OutOfSpaceError.__name__:  # no fault of the unit, and the next would fare no better
            raise OutOfSpaceError(outcome.message)
        records.write_failure(self._job.run, outcome)
        reason = f"{outcome.error}: {outcome.message}"
        self._journal.tell("failed", task.name, reason=reason)
        if task.name not in self._started:
            self._display.start(task.title, task.cost, key=task.name)
        self._display.finish(f"FAILED: {reason}", key=task.name)

    def _block(self, task: Task) -> None:
        """Note that a task cannot be performed, since one that it needs failed."""
        failed = [name for name in task.needs if not self._over[name]]
        if task.kind == "attack" and failed == [task.needs[-1]] and task.unit is not None and task.unit.source:
            seed = f" seed {task.unit.source_seed}"
            message = f"{task.unit.attack.name} is crafted on the model of {task.unit.source!r}{seed}, which could not "
            error = UnitError(f"{message}be trained")
            self._settle(task, failure_of(task.name, task.kind, task.method, task.seed, error, task.unit))
            return
        del self._waiting[task.name]
        self._over[task.name] = False
        discard(task, self._job.run)
        (self._job.run / "failures" / f"{task.name}.json").unlink(missing_ok=True)
        self._journal.tell("blocked", task.name, reason=f"{', '.join(failed)} failed")
        self._display.skip(task.cost, key=task.name)
