"""A bar of what is left, on a terminal or in a log."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """One bar for each part of the benchmark. Use it in ``with``.

    Args:
        console: where to draw it; off a terminal a line is printed for each tenth. None shows nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.fields[part]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=console is None or not console.is_terminal,
        )
        self._task = self._progress.add_task("", part="", visible=False)
        self._part, self._done, self._total = "", 0, 1

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def begin(self, part: str, total: int) -> None:
        """Begin a part of so many steps."""
        self._progress.update(self._task, visible=False)
        self._task = self._progress.add_task("", part=part, total=total)
        self._part, self._done, self._total = part, 0, total

    def advance(self, description: str) -> None:
        """A step is done."""
        self._progress.update(self._task, advance=1, description=description)
        self._done += 1
        tenths = 10 * self._done // self._total
        if (
            self._console is not None
            and not self._console.is_terminal
            and tenths > 10 * (self._done - 1) // self._total
        ):
            self._console.print(
                f"{self._part}: {tenths}0%  {description}", markup=False, highlight=False, soft_wrap=True
            )
