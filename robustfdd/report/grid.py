"""A table as it is read: headers, cells as text, marks. Markdown, LaTeX, HTML and the terminal show this one form.

The data behind it goes into CSV.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from robustfdd.text import printable

#: What stands where there is no record.
GAP = "–"
#: Columns, or characters in a row, up to which a table fits a web page in the usual size.
_MANY, _PAGE = 10, 100


@dataclass(frozen=True)
class Grid:
    """A table ready to be shown.

    Attributes:
        name: the stem of its files and of its LaTeX label.
        title: a heading in plain text.
        caption: what a reader must know to read the figures, in plain text.
        headers: one for each column, in plain text.
        rows: the cells, in plain text.
        n_text: how many columns at the left hold names and are set flush left; the others hold figures.
        marks: (row, column) of the cells in bold.
        rules: rows above which a line separates two groups.
        alarms: rows that a reader must not overlook.
        prose: columns of running text, whose lines wrap.
    """

    name: str
    title: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_text: int
    marks: frozenset[tuple[int, int]] = field(default_factory=frozenset)
    rules: frozenset[int] = field(default_factory=frozenset)
    alarms: frozenset[int] = field(default_factory=frozenset)
    prose: frozenset[int] = field(default_factory=frozenset)

    @property
    def wide(self) -> bool:
        """Whether the table is too wide for a web page in the usual size."""
        characters = sum(max((len(row[j]) for row in self.rows), default=0) for j in range(len(self.headers)))
        return len(self.headers) > _MANY or (not self.prose and characters > _PAGE)


def group_starts(names: list[str]) -> frozenset[int]:
    """Rows, other than the first, whose name differs from the one above."""
    return frozenset(i for i in range(1, len(names)) if names[i] != names[i - 1])


def to_csv(frame: pd.DataFrame) -> str:
    """The data behind a table as CSV, its text :func:`~robustfdd.text.printable`: Python 3.10 writes no NUL to CSV."""
    texts = {
        name: pd.Series([printable(v) if isinstance(v, str) else v for v in values], index=frame.index, dtype=object)
        for name, values in frame.select_dtypes(exclude=["number", "bool", "datetime"]).items()
    }
    header = [printable(str(name)) for name in frame]
    written: str = frame.assign(**texts).to_csv(index=False, header=header, lineterminator="\n")
    return written


def escape_markdown(text: str) -> str:
    """Plain text as Markdown that shows it unchanged inside a table cell."""
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", " ".join(text.split()))


def to_markdown(grid: Grid) -> str:
    """A GitHub-flavoured Markdown table under its title and caption."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def cell(row: int, column: int, text: str) -> str:
        escaped = escape_markdown(text)
        return f"**{escaped}**" if (row, column) in grid.marks else escaped

    align = [":--" if column < grid.n_text else "--:" for column in range(len(grid.headers))]
    lines = [f"**{escape_markdown(grid.title)}**", "", escape_markdown(grid.caption), ""]
    lines += [line([escape_markdown(header) for header in grid.headers]), line(align)]
    lines += [line([cell(i, j, text) for j, text in enumerate(row)]) for i, row in enumerate(grid.rows)]
    return "\n".join(lines) + "\n"


def to_rich(grid: Grid) -> Table:
    """The table for a terminal; names are shown as they are, whatever console markup they look like."""
    table = Table(
        title=Text(printable(grid.title)),
        caption=Text(printable(grid.caption)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column, header in enumerate(grid.headers):
        # Words one below the other, or the headers would be wider than the figures under them.
        table.add_column(
            Text(re.sub(r"(?<=\w{3}-)(?=\w{4})| ", "\n", printable(header))),
            justify="left" if column < grid.n_text else "right",
            no_wrap=True,
            vertical="bottom",
        )
    for i, row in enumerate(grid.rows):
        table.add_row(
            *(Text(printable(text), style="bold" if (i, j) in grid.marks else "") for j, text in enumerate(row)),
            end_section=i + 1 in grid.rules,
            style="red" if i in grid.alarms else None,
        )
    return table
