"""How a process of this package ends: in order when it is asked to, at any moment, and a worker with its parent.

Imported before everything else, and therefore without anything that takes long to import; what is not needed for
signals is imported where it is.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: By which a process is asked to end: by schedulers and service managers, and with Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: What is said when a command was interrupted.
INTERRUPTED = "interrupted; finished units are kept: the same command goes on where this one stopped"
#: Of ``prctl`` on Linux.
_PR_SET_PDEATHSIG = 1


def exit_code(number: int) -> int:
    """The exit code of a process that a signal ended, as shells have it: 143 for SIGTERM, 130 for SIGINT."""
    return 128 + number


def _at_once(number: int, _frame: FrameType | None = None) -> None:
    """End this process with one line: where there is nothing to be put in order, or no time for it."""
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(OSError):
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(exit_code(number))


def end_at_once() -> None:
    """From now on a signal ends this process with one line on standard error and its exit code, and no traceback.

    Only where signals are handled at all: in the main thread. What is ignored, as Ctrl-C by what a shell has put into
    the background, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _heard():
        signal.signal(number, _at_once)


def _heard() -> list[signal.Signals]:
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def take_over() -> None:
    """Do so from the first moment of a command to the last one, in which nothing is left to be interrupted."""
    end_at_once()
    # Registered before those of any library, and so called after them. The interpreter takes handlers away before it
    # is done, but leaves alone what is ignored.
    atexit.register(_ignore)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def in_order(terminated: type[KeyboardInterrupt]) -> Iterator[None]:
    """A context in which a signal raises an exception, so that everything is put in order; a second one ends at once.

    Args:
        terminated: what SIGTERM raises.

    Raises:
        KeyboardInterrupt: SIGINT came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = 0

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = number
        end_at_once()
        raise terminated if number == signal.SIGTERM else KeyboardInterrupt

    def unraisable(what: Any) -> None:
        """An interruption that came in a finaliser, which cannot pass it on, is not lost, and not a traceback."""
        if asked and issubclass(what.exc_type, KeyboardInterrupt):
            _at_once(asked)
        hook(what)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        for number in _heard():
            signal.signal(number, end)
        yield
    except KeyboardInterrupt as error:
        if asked == signal.SIGTERM and not isinstance(error, terminated):
            raise terminated from None  # native code that is interrupted, Ray's for one, makes a plain one of it
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def call_in_worker(reference: str, *arguments: Any) -> None:
    """What a worker process is started with: bind its life to that of its parent, then import and call a function.

    Args:
        reference: ``package.module:function``; importing it may take seconds, in which the parent may end.
        *arguments: of the function.
    """
    import importlib  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    module, _, name = reference.partition(":")
    getattr(importlib.import_module(module), name)(*arguments)


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone, however it went: nobody is left to work for.

    Linux kills it, whatever it is doing. Elsewhere a thread looks, and ends it as soon as native code lets it.
    """
    import ctypes  # noqa: PLC0415
    import multiprocessing  # noqa: PLC0415

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent.pid:  # it went before that
            os._exit(1)
