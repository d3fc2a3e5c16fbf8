"""The forms that a table or figure is written and shown in, each made from the one :class:`Exhibit`."""

from __future__ import annotations

import re

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from robustfdd.report.exhibit import Exhibit
from robustfdd.report.latex import to_latex
from robustfdd.text import printable


def forms(exhibit: Exhibit, *, label: str | None = None) -> dict[str, bytes]:
    """The files of a table or figure by extension: its data, the table as it is read, the pictures.

    Args:
        exhibit: the table or figure.
        label: the one in LaTeX; the name when None.
    """
    texts = {"csv": to_csv(exhibit.frame)}
    if exhibit.headers:
        texts |= {"md": to_markdown(exhibit), "tex": to_latex(exhibit, label=label or exhibit.name)}
    return {extension: text.encode() for extension, text in texts.items()} | dict(exhibit.figure or {})


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


def to_markdown(exhibit: Exhibit) -> str:
    """A GitHub-flavoured Markdown table under its title and caption."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    def cell(row: int, column: int, text: str) -> str:
        escaped = escape_markdown(text)
        return f"**{escaped}**" if (row, column) in exhibit.marks else escaped

    align = [":--" if column < exhibit.n_text else "--:" for column in range(len(exhibit.headers))]
    lines = [f"**{escape_markdown(exhibit.title)}**", "", escape_markdown(exhibit.caption), ""]
    lines += [line([escape_markdown(header) for header in exhibit.headers]), line(align)]
    lines += [line([cell(i, j, text) for j, text in enumerate(row)]) for i, row in enumerate(exhibit.rows)]
    return "\n".join(lines) + "\n"


def to_rich(exhibit: Exhibit) -> Table:
    """The table for a terminal; names are shown as they are, whatever console markup they look like."""
    made = Table(
        title=Text(printable(exhibit.title)),
        caption=Text(printable(exhibit.caption)),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column, header in enumerate(exhibit.headers):
        # Words one below the other, or the headers would be wider than the figures under them.
        words = Text(re.sub(r"(?<=\w{3}-)(?=\w{4})| ", "\n", printable(header)))
        made.add_column(words, justify="left" if column < exhibit.n_text else "right", no_wrap=True, vertical="bottom")
    for i, row in enumerate(exhibit.rows):
        made.add_row(
            *(Text(printable(text), style="bold" if (i, j) in exhibit.marks else "") for j, text in enumerate(row)),
            end_section=i + 1 in exhibit.rules,
            style="red" if i in exhibit.alarms else None,
        )
    return made
