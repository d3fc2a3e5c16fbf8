"""What one table or figure of a report is: its data, how it is shown, and what a reader must know about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import pandas as pd

from robustfdd.report.grid import Grid

ArtefactSection = Literal["paper", "robust", "audit"]
SECTIONS: tuple[ArtefactSection, ...] = get_args(ArtefactSection)


@dataclass(frozen=True)
class Artefact:
    """One table or figure that stands by itself, with its data.

    Attributes:
        name: the stem of its files, e.g. ``"table2-clean-accuracy"``.
        title: its heading on the page.
        caption: what is shown, on which data, over how many seeds, and how to read it; plain text.
        frame: its data, written as ``tables/NAME.csv``.
        grid: the table as it is shown (page, Markdown, LaTeX); None for a figure.
        figure: the figure's files by extension, ``png`` and ``pdf``; None for a table.
        section: the part of the page that it belongs to: the paper's tables and figures, the run's robust accuracy
            beyond them, or the audit.
        unfolded: whether the page shows a long table at once, not only when it is asked for.
    """

    name: str
    title: str
    caption: str
    frame: pd.DataFrame
    grid: Grid | None = None
    figure: Mapping[str, bytes] | None = None
    section: ArtefactSection = "paper"
    unfolded: bool = False
