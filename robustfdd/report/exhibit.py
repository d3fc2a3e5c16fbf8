"""The mould of every table and figure of a report: one object, from which the page, the files and the terminal follow.

A table is a list of items and a list of columns: what a column is called, and how it gets what it holds from an item,
is said once, for the table as it is read and for the data behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import takewhile
from typing import Any, Generic, Literal, TypeVar, get_args

import pandas as pd

from robustfdd.report.study import Epsilon, Study

#: What stands where there is no record.
GAP = "–"
#: Columns, or characters in a row, up to which a table fits a web page in the usual size.
_MANY, _PAGE = 10, 100
#: Rows up to which a table stands on the page as it is.
_LONG = 24

Section = Literal["paper", "robust", "audit"]
Kind = Literal["figure", "name", "once", "prose"]
SECTIONS: tuple[Section, ...] = get_args(Section)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Exhibit:
    """One table or figure with its data.

    Attributes:
        name: the stem of its files and of its LaTeX label, e.g. ``"table2-clean-accuracy"``.
        title: its heading, in plain text.
        caption: what is shown, on which data, over how many seeds, and how to read it; plain text.
        frame: its data, written as CSV.
        headers: of the table as it is read, one for each column, in plain text; none for a figure.
        rows: the cells of that table, in plain text.
        n_text: how many columns at the left hold names and are set flush left; the others hold figures.
        marks: (row, column) of the cells in bold.
        rules: rows above which a line separates two groups.
        alarms: rows that a reader must not overlook.
        prose: columns of running text, whose lines wrap.
        figure: the figure's files by extension, ``png`` and ``pdf``; None for a table alone.
        section: the part of the page that it belongs to: the paper's tables and figures, the run's robust accuracy
            beyond them, or the audit.
        unfolded: whether the page shows a long table at once, not only when it is asked for.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    headers: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    n_text: int = 0
    marks: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    rules: frozenset[int] = field(default_factory=frozenset)
    alarms: frozenset[int] = field(default_factory=frozenset)
    prose: frozenset[int] = field(default_factory=frozenset)
    figure: Mapping[str, bytes] | None = None
    section: Section = "paper"
    unfolded: bool = False

    @property
    def wide(self) -> bool:
        """Whether the table is too wide for a web page in the usual size."""
        characters = sum(max((len(row[j]) for row in self.rows), default=0) for j in range(len(self.headers)))
        return len(self.headers) > _MANY or (not self.prose and characters > _PAGE)

    @property
    def folded(self) -> bool:
        """Whether the page shows the table only when it is asked for."""
        return len(self.rows) > _LONG and not self.unfolded


@dataclass(frozen=True)
class Column(Generic[Item]):
    """One column of a table: as it is read, as data, or both.

    Attributes:
        header: its name where the table is read; None where it is data alone.
        text: what is read of an item.
        key: its name in the data; None where it is read alone.
        value: an item's entry in the data; the text where left out.
        kind: a ``"figure"`` is set flush right and a ``"name"`` flush left; a name that stands ``"once"`` is left out
            in all rows of a group but the first; ``"prose"`` is running text.
        bold: whether the cell of an item stands out.
    """

    header: str | None
    text: Callable[[Item], str]
    key: str | None = None
    value: Callable[[Item], object] | None = None
    kind: Kind = "figure"
    bold: Callable[[Item], bool] = lambda _: False


def data(key: str, value: Callable[[Item], object]) -> Column[Item]:
    """A column that is data alone."""
    return Column(None, str, key, value)


def shown(header: str | None, path: str, text: Callable[[Any], str], kind: Kind = "figure") -> Column[Any]:
    """A column of an attribute of the items, as data and, put in words, as it is read.

    Args:
        header: None for data alone.
        path: ``name`` or ``name=path.to.it``; the entry is None where a step of the path is.
        text: what is read of an entry.
        kind: see :class:`Column`.
    """
    name, _, steps = path.rpartition("=")

    def value(item: Any) -> Any:
        for step in steps.split("."):
            item = None if item is None else getattr(item, step)
        return item

    return Column(header, lambda item: text(value(item)), name or steps, value, kind)


def fields(paths: str) -> list[Column[Any]]:
    """Columns that are data alone, by the paths of :func:`shown` with blanks between them."""
    return [shown(None, path, str) for path in paths.split()]


def entry(header: str, key: str, kind: Kind = "figure") -> Column[Mapping[str, str]]:
    """A column of rows that are texts by key; a gap where a row has none."""
    return Column(header, lambda row: row.get(key, GAP), kind=kind)


def radius(study: Study, eps: Callable[[Item], Epsilon]) -> list[Column[Item]]:
    """The radius of an item, in every unit that there is: one column each."""

    def column(unit: str, i: int) -> Column[Item]:
        return Column(f"ε ({unit})", lambda item: eps(item).texts(study.eps_unit)[i])

    return [column(unit, i) for i, unit in enumerate(study.units_shown)]


def _entry(value: object) -> object:
    """Exact figures are floats in the data."""
    return float(value) if isinstance(value, Fraction) else value


def frame_of(items: Sequence[Item], columns: Sequence[Column[Item]]) -> pd.DataFrame:
    """The data of a table: the columns that have a key, one row an item."""
    kept = {column.key: column.value or column.text for column in columns if column.key is not None}
    records = [{key: _entry(value(item)) for key, value in kept.items()} for item in items]
    frame: pd.DataFrame = pd.DataFrame.from_records(records, columns=list(kept))
    return frame


def table(
    name: str,
    title: str,
    caption: str,
    items: Sequence[Item],
    columns: Sequence[Column[Item]],
    *,
    frame: pd.DataFrame | None = None,
    group: Callable[[Item], Hashable] | None = None,
    alarm: Callable[[Item], bool] | None = None,
    **more: Any,
) -> Exhibit:
    """A table with one row an item.

    Args:
        name: see :class:`Exhibit`, like title and caption.
        title: likewise.
        caption: likewise.
        items: what the rows are made from.
        columns: how.
        frame: the data, where it is not what the columns give.
        group: what the rows of a group, which a line separates from the next, have in common.
        alarm: whether the row of an item must not be overlooked.
        **more: further attributes of the exhibit.
    """
    groups = [group(item) for item in items] if group else []
    rules = frozenset(i for i in range(1, len(groups)) if groups[i] != groups[i - 1])
    read = [column for column in columns if column.header is not None]

    def cell(column: Column[Item], i: int) -> str:
        return "" if column.kind == "once" and i and i not in rules else column.text(items[i])

    return Exhibit(
        name,
        title,
        caption,
        frame_of(items, columns) if frame is None else frame,
        headers=tuple(column.header or "" for column in read),
        rows=tuple(tuple(cell(column, i) for column in read) for i in range(len(items))),
        n_text=len(list(takewhile(lambda column: column.kind != "figure", read))),
        marks=frozenset((i, j) for j, column in enumerate(read) for i in range(len(items)) if column.bold(items[i])),
        rules=rules,
        alarms=frozenset(i for i, item in enumerate(items) if alarm and alarm(item)),
        prose=frozenset(j for j, column in enumerate(read) if column.kind == "prose"),
        **more,
    )
