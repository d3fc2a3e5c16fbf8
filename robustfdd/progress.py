"""What is running and how long is left: bars on a terminal, a line a unit elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from robustfdd.text import printable


def duration(seconds: float) -> str:
    """A duration in words: ``"42 s"``, ``"3 min 05 s"``, ``"2 h 10 min"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Unit:
    """A unit that is shown: what it is, its cost, how much of that is done, and its bar."""

    def __init__(self, description: str, cost: float) -> None:
        self.description, self.cost, self.done = description, cost, 0.0
        self.bar: TaskID | None = None


class Display:
    """Progress of a plan of units whose costs are known in advance; of several at once, each under a key of its own.

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
        self._units: dict[str, _Unit] = {}
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

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def start(self, description: str, cost: float, key: str = "") -> None:
        """Begin a unit; or once more, from nothing."""
        self._drop(key)
        unit = self._units[key] = _Unit(printable(description), cost)
        if self._bars is not None:
            unit.bar = self._bars.add_task(escape(unit.description), total=max(cost, 1e-9))

    def _drop(self, key: str) -> None:
        """Forget a unit, and what was told of it."""
        unit = self._units.pop(key, None)
        if unit is None:
            return
        self._done -= unit.done
        self._worked -= unit.done
        if self._bars is not None and unit.bar is not None:
            self._bars.remove_task(unit.bar)

    def advance(self, cost: float, key: str = "") -> None:
        """Tell that a part of a unit is done."""
        unit = self._units[key]
        cost = min(cost, unit.cost - unit.done)
        unit.done += cost
        self._done += cost
        self._worked += cost
        if self._bars is not None and unit.bar is not None:
            self._bars.update(unit.bar, completed=unit.done)
            self._bars.update(self._whole_task, completed=self._done)

    def finish(self, note: str = "", key: str = "") -> None:
        """End a unit, whether or not its whole cost was told."""
        unit = self._units[key]
        self.advance(unit.cost - unit.done, key)
        del self._units[key]
        if self._bars is not None and unit.bar is not None:
            self._bars.remove_task(unit.bar)
            if note:
                self.say(f"{unit.description}: {note}")
        elif self._console is not None:
            elapsed = time.perf_counter() - self._started
            left = (self._total - self._done) * elapsed / max(self._worked, 1e-9)
            self._console.print(
                f"{self._done / self._total:4.0%}  {unit.description}{f'  {printable(note)}' if note else ''}  "
                f"[{duration(elapsed)} elapsed, about {duration(left)} left]",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def skip(self, cost: float, key: str = "") -> None:
        """Count work that was found done already, or that will not be done."""
        self._drop(key)
        self._done += cost
        if self._bars is not None:
            self._bars.update(self._whole_task, completed=self._done)

    def say(self, message: str) -> None:
        """Print a line above the bars."""
        if self._console is not None:
            self._console.print(printable(message), markup=False, highlight=False, soft_wrap=True)
