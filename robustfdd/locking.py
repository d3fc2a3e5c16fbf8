"""One coordinator per run directory: an exclusive lock of the operating system, with a note of who holds it.

The kernel gives the lock back when its holder ends, however it ends; nothing has to be removed by hand after a crash or
a reboot. The note beside it is for people, and may be stale or missing.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from robustfdd import files
from robustfdd.errors import RunDirectoryError, RunLockedError
from robustfdd.text import shortened

LOCK, NOTE = ".lock", ".lock.json"
#: Where files are written atomically, so that a killed writer may have left a part of one.
_WRITTEN = (".", "models", "results", "analysis", "failures")
#: Seconds to wait for the lock: longer than :func:`is_held` holds it to see whether it is free.
_PATIENCE = 1.0
#: How often this process holds the lock of a run directory: what holds it may call what needs it.
_held: dict[Path, int] = {}


@dataclass(frozen=True)
class Holder:
    """Who holds a run directory.

    Attributes:
        host: name of the machine.
        pid: of the process.
        since: when it took the lock, ISO 8601 in UTC.
        command: what it runs.
    """

    host: str
    pid: int
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


def holder(run: Path) -> Holder | None:
    """Who holds a run directory, by the note beside the lock; None where there is none, or no readable one."""
    try:
        return Holder(**json.loads(files.read_text(run / NOTE, files.NOTE)))
    except (OSError, ValueError, TypeError):
        return None


def resolved(path: Path) -> Path:
    """A path without links and relative parts.

    Raises:
        RunDirectoryError: its links lead in a circle, or it is no path at all.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise RunDirectoryError(f"{shortened(str(path))}: leads nowhere ({error})") from error


def is_held(run: Path) -> bool:
    """Whether a process holds a run directory; by the note alone where the lock cannot be tried.

    Raises:
        RunDirectoryError: something else than a regular file is in the place of the lock.
    """
    if resolved(run) in _held:
        return True
    _check_lock(run)
    if not (run / LOCK).exists():
        return False
    try:
        with FileLock(str(run / LOCK), timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return holder(run) is not None


def _check_lock(run: Path) -> None:
    """Make sure that the lock is a regular file, and no link either: taking it would empty the file that it leads to.

    Raises:
        RunDirectoryError: it is something else, or the note beside it is.
    """
    for path in (run / LOCK, run / NOTE):
        try:
            if path.is_symlink():
                raise OSError(errno.ELOOP, "a link, not a regular file", str(path))
            files.check(path, files.NOTE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be used ({error.strerror}); remove it") from error


@contextmanager
def exclusive(run: Path) -> Iterator[None]:
    """Hold a run directory, which is made if it is not there, against every other process that asks for it so.

    What a killed writer left half written is removed. Within it, this process may take the same lock again.

    Raises:
        RunLockedError: another process holds it; the message says which, as far as that is known.
        RunDirectoryError: the directory or the lock in it cannot be made, or something else than a regular file is in
            the place of the lock or its note.
    """
    key = resolved(run)
    if key in _held:
        _held[key] += 1
        try:
            yield
        finally:
            _held[key] -= 1
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        _check_lock(run)
        lock = FileLock(str(run / LOCK), timeout=_PATIENCE)
        lock.acquire(poll_interval=0.05)
    except Timeout:
        who = holder(run)
        raise RunLockedError(
            f"{run}: in use by {who or 'another process'}; wait until it is done, end it, or name another directory "
            f"with --out (`robustfdd status {run}` shows how far it is)"
        ) from None
    except (OSError, NotImplementedError, RecursionError) as error:  # the last one of a path of a thousand folders
        raise RunDirectoryError(
            f"{shortened(str(run))}: cannot be locked ({error}); the file system must allow file locks"
        ) from error
    try:
        _held[key] = 1
        _leave_note(run)
        remove_leftovers(run)
        yield
    finally:
        _held.pop(key, None)
        with suppress(OSError):
            (run / NOTE).unlink(missing_ok=True)
        lock.release()


def _leave_note(run: Path) -> None:
    command = shortened(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), 1000)
    since = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with suppress(OSError):
        note = asdict(Holder(socket.gethostname(), os.getpid(), since, command))
        (run / NOTE).unlink(missing_ok=True)
        with (run / NOTE).open("x", encoding="utf-8") as stream:
            stream.write(json.dumps(note) + "\n")


def remove_leftovers(run: Path) -> None:
    """Remove the temporary files of writers that were killed; only for who holds the lock and has no workers yet."""
    for folder in _WRITTEN:
        for path in (run / folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)
