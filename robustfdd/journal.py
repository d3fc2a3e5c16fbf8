"""What became of the tasks of a run, as it happened: one line of JSON an event, for ``robustfdd status``.

Nothing is computed from it: whether a result counts is decided by its key. The coordinator alone writes it, and what a
reader finds is taken as it is: a line that a crash cut off is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from robustfdd import files
from robustfdd.errors import RunDirectoryError

NAME = "journal.jsonl"

#: What a task is in: ``"done"`` before or now, ``"blocked"`` by a task that it needs and that failed.
State = Literal["left", "running", "done", "failed", "blocked"]
_STATES: dict[str, State] = {
    "started": "running",
    "done": "done",
    "found": "done",
    "failed": "failed",
    "blocked": "blocked",
}


class Journal:
    """Appends events to the journal of a run.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / NAME

    def begin(self, tasks: Iterable[Mapping[str, Any]]) -> None:
        """A session begins; ``tasks`` are those of its plan: name, kind and cost.

        Raises:
            RunDirectoryError: something else than a regular file is in the place of the journal.
        """
        try:
            files.check(self._path, files.JOURNAL // 2)
        except FileNotFoundError:
            pass
        except OSError as error:
            if not self._path.is_file():
                raise RunDirectoryError(
                    f"{self._path}: cannot be written to ({error.strerror}); remove it, since no result depends on it"
                ) from error
            with suppress(OSError):  # only the last session is ever read
                self._path.unlink()
        self._write(event="begin", tasks=list(tasks))

    def tell(self, event: str, task: str, **more: object) -> None:
        """An event of a task; see :class:`Entry` for what is kept of it."""
        self._write(event=event, task=task, **more)

    def end(self) -> None:
        """The session ends, with whatever is left."""
        self._write(event="end")

    def _write(self, **content: object) -> None:
        line = json.dumps({"at": datetime.now(timezone.utc).isoformat(timespec="seconds"), **content})
        # The line before may have been cut off by a crash, so each begins on a new one. Nothing depends on the journal:
        # it does not end a run on a disk that is full.
        with suppress(OSError), self._path.open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}" if self._path.stat().st_size else line)


@dataclass
class Entry:
    """A task, as the journal has it.

    Attributes:
        name: of the task.
        kind: ``"train"``, ``"attack"`` or ``"audit"``.
        cost: in input gradients of one image.
        state: at the end of the journal.
        since: when it came into that state.
        worker: who works or worked on it.
        reason: why it failed, or what it waits for in vain.
        worked: whether it was computed in the last session.
        done_cost: how much of the cost was told to be done, while it runs.
    """

    name: str
    kind: str
    cost: float
    state: State = "left"
    since: datetime | None = None
    worker: str = ""
    reason: str = ""
    worked: bool = False
    done_cost: float = 0.0


@dataclass
class History:
    """The last session of a journal.

    Attributes:
        tasks: by name, in the order of the plan.
        begun: when the session began; None where there is no journal.
        last: when the last event was written.
        ended: whether the session came to an end by itself.
    """

    tasks: dict[str, Entry] = field(default_factory=dict)
    begun: datetime | None = None
    last: datetime | None = None
    ended: bool = False


def read_journal(run: Path) -> History:
    """The last session of a run; empty where there is no journal.

    Raises:
        RunDirectoryError: it cannot be read, or is no regular file; nothing in it that is damaged is an error.
    """
    history = History()
    path = run / NAME
    try:
        lines = files.read_text(path, files.JOURNAL, errors="replace").splitlines()
    except FileNotFoundError:
        return history
    except OSError as error:
        raise RunDirectoryError(
            f"{path}: cannot be read ({error.strerror}); remove it, since no result depends on it"
        ) from error
    for line in lines:
        try:
            content = json.loads(line)
            at = datetime.fromisoformat(content["at"])
            if content["event"] == "begin":
                entries = [Entry(str(t["name"]), str(t["kind"]), float(t["cost"])) for t in content["tasks"]]
                history = History({entry.name: entry for entry in entries}, begun=at, last=at)
            else:
                _apply(history, content, at)
        except (ValueError, KeyError, TypeError):
            continue
    return history


def _apply(history: History, content: Mapping[str, Any], at: datetime) -> None:
    history.last = at
    if content["event"] == "end":
        history.ended = True
        return
    entry = history.tasks[content["task"]]
    if content["event"] == "advanced":
        entry.done_cost = float(content["cost"])
        return
    entry.state, entry.since = _STATES[content["event"]], at
    entry.worker = str(content.get("worker", entry.worker))
    entry.reason = str(content.get("reason", ""))
    entry.worked = entry.worked or content["event"] == "started"
