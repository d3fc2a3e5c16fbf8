"""How far a run is, read from its directory: what is done, running, failed and left, and how long that takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from robustfdd import files, records
from robustfdd.errors import RunDirectoryError
from robustfdd.journal import Entry, History, read_journal
from robustfdd.locking import Holder, holder, is_held


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        tasks: in the order of the plan.
        held: whether a process works on it.
        holder: which, as far as is known; None if none does.
        begun: when the last session began; None where that was not noted.
        last: when something was last noted.
        ended: whether the last session came to its end by itself or was stopped in order.
        seconds_left: estimated from the speed of the session that goes on; None where there is no telling.
    """

    tasks: tuple[Entry, ...]
    held: bool
    holder: Holder | None
    begun: datetime | None
    last: datetime | None
    ended: bool
    seconds_left: float | None

    def of(self, *states: str) -> list[Entry]:
        """The tasks in any of these states."""
        return [entry for entry in self.tasks if entry.state in states]


def read_status(run: Path) -> Status:
    """How far a run is; it may be going on, finished or cut off.

    Unless it is going on, the files of what is done are read, and what is damaged is left to do.

    Raises:
        RunDirectoryError: it is no run directory, or its manifest is damaged.
    """
    manifest = records.read_manifest(run)
    held, history = is_held(run), read_journal(run)
    failures = {path.stem: path for path in sorted((run / "failures").glob("*.json"))}
    entries = [_now(entry, run, held, failures) for entry in history.tasks.values() or _planned(run, manifest)]
    known = {entry.name for entry in entries}
    for name, path in failures.items():
        if name not in known:  # of an analysis, or of an audit that was asked for later
            entries.append(Entry(name, "other", 0.0, state="failed", reason=_reason(path)))
    return Status(
        tuple(entries),
        held,
        holder(run) if held else None,
        history.begun,
        history.last,
        history.ended,
        _seconds_left(entries, history) if held else None,
    )


def _now(entry: Entry, run: Path, held: bool, failures: dict[str, Path]) -> Entry:
    """A task of the journal, held against what lies in the directory."""
    if entry.name in failures and entry.state != "running":
        return replace(entry, state="failed", reason=_reason(failures[entry.name]))
    if entry.state == "running" and not held:  # in flight when the session was cut off
        return replace(entry, state="left")
    if entry.state == "done" and not _file(entry, run).exists():
        return replace(entry, state="left")
    if entry.state == "done" and not held:
        try:
            _verify(entry, run)
        except RunDirectoryError as error:
            return replace(entry, state="left", reason=str(error))
    return entry


def _verify(entry: Entry, run: Path) -> None:
    """Read what a task left.

    Raises:
        RunDirectoryError: it is damaged; the message names it.
    """
    path = _file(entry, run)
    if entry.kind == "train":
        history, checkpoint = records.read_model(path), path.with_suffix(".safetensors")
        try:
            _check_weights(checkpoint)
            whole = files.sha256(checkpoint, files.WEIGHTS) == history.get("sha256")
        except FileNotFoundError:  # one that was archived without its weights is done all the same
            return
        except OSError as error:
            raise RunDirectoryError(f"{checkpoint}: cannot be read ({error.strerror})") from error
        if not whole:
            raise RunDirectoryError(f"{checkpoint}: damaged: its hash is not that in {path.name}")
    elif entry.kind == "attack":
        records.read_cells(path)
    else:
        for table in path.parent.glob(path.name.replace("audit_verdict", "audit_*", 1)):
            records.read_analysis(table)


def _check_weights(path: Path) -> None:
    """Make sure that a checkpoint is of the size that its header says, so that not all of any size is hashed.

    Raises:
        RunDirectoryError: it is not.
        OSError: it cannot be read.
    """
    files.check(path, files.WEIGHTS)
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise RunDirectoryError(f"{path}: damaged, or no safetensors file ({error})") from error


def _file(entry: Entry, run: Path) -> Path:
    """What a task leaves when it is done."""
    if entry.kind == "train":
        return run / "models" / f"{entry.name}.json"
    if entry.kind == "attack":
        return run / "results" / f"{entry.name}.parquet"
    return run / "analysis" / f"{entry.name.replace('audit--', 'audit_verdict--', 1)}.parquet"


def _reason(path: Path) -> str:
    try:
        failure = records.read_failure(path)
    except RunDirectoryError as error:
        return str(error)
    return f"{failure.error}: {failure.message}"


def _planned(run: Path, manifest: dict[str, Any]) -> list[Entry]:
    """The tasks of a run without a journal, by its manifest: what has a file is done."""
    study, units = manifest["study"], manifest["units"]
    entries = []
    if study.get("recipe"):
        models = [(m["label"], seed) for m in study["methods"] for seed in study.get("seeds") or []]
        entries += [Entry(f"{label}--seed{seed}", "train", 0.0) for label, seed in models]
    entries += [Entry(unit["unit"], "attack", 0.0) for unit in units]
    return [replace(entry, state="done") if _file(entry, run).exists() else entry for entry in entries]


def _seconds_left(entries: list[Entry], history: History) -> float | None:
    worked = sum(e.cost if e.state in ("done", "failed") else e.done_cost for e in entries if e.worked)
    left = sum(e.cost - e.done_cost for e in entries if e.state in ("left", "running"))
    if not worked or history.begun is None:
        return None
    seconds = (datetime.now(timezone.utc) - history.begun).total_seconds()
    return left * seconds / worked
