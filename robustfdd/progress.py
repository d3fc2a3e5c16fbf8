"""What is running and how long is left: bars on a terminal, a line a unit elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column


def duration(seconds: float) -> str:
    """A duration in words: ``"42 s"``, ``"3 min 05 s"``, ``"2 h 10 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Display:
    """Progress of a plan of units whose costs are known in advance.

    Costs are in image passes, whatever takes as long as one input gradient of one image. How long is left follows from
    the cost left and the time a pass took so far.

    Args:
        total: the cost of the whole plan.
        console: where to write; None shows nothing.
    """

    def __init__(self, total: float, console: Console | None) -> None:
        self._total = max(total, 1.0)
        self._done = 0.0
        self._worked = 0.0  # cost of what was computed now, as opposed to found done
        self._console = console
        self._started = time.perf_counter()
        self._unit = ("", 0.0, 0.0)
        self._bars: Progress | None = None
        if console is not None and console.is_terminal:
            self._bars = Progress(
                # The description gives way on a narrow terminal, not the times.
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                BarColumn(bar_width=16),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                speed_estimate_period=120,
                expand=True,
            )
            self._whole_task = self._bars.add_task("[bold]all", total=self._total)
            self._unit_task = self._bars.add_task("", total=1, visible=False)

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, description: str, cost: float) -> None:
        """Begin a unit."""
        self._unit = (description, cost, 0.0)
        if self._bars is not None:
            self._bars.reset(self._unit_task, total=max(cost, 1e-9), description=description, visible=True)

    def advance(self, cost: float) -> None:
        """Tell that a part of the current unit is done."""
        description, whole, done = self._unit
        cost = min(cost, whole - done)
        self._unit = (description, whole, done + cost)
        self._done += cost
        self._worked += cost
        if self._bars is not None:
            self._bars.update(self._unit_task, advance=cost)
            self._bars.update(self._whole_task, completed=self._done)

    def finish(self, note: str = "") -> None:
        """End the current unit, whether or not its whole cost was told."""
        description, whole, done = self._unit
        self.advance(whole - done)
        if self._bars is not None and note:
            self.say(f"{description}: {note}")
        if self._bars is None and self._console is not None:
            elapsed = time.perf_counter() - self._started
            left = (self._total - self._done) * elapsed / max(self._worked, 1e-9)
            self._console.print(
                f"{self._done / self._total:4.0%}  {description}{f'  {note}' if note else ''}  "
                f"[{duration(elapsed)} elapsed, about {duration(left)} left]",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def skip(self, cost: float) -> None:
        """Count work that was found done already."""
        self._done += cost
        if self._bars is not None:
            self._bars.update(self._whole_task, completed=self._done)

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        if self._console is not None:
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)
