"""Writing a comparison with the paper: its tables, its pictures and one page of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import pandas as pd
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from robustfdd.errors import ConfigurationError
from robustfdd.paper import comparison_frames as frames
from robustfdd.paper import comparison_tables as tables
from robustfdd.paper.comparison import Comparison, compare
from robustfdd.paper.comparison_figures import draw_differences, draw_scatter
from robustfdd.paper.matching import run_dataset
from robustfdd.paper.published import load
from robustfdd.records import Run, load_run, write_atomically, write_text
from robustfdd.report.combine import combine
from robustfdd.report.grid import Grid, escape_markdown, to_csv, to_markdown, to_rich
from robustfdd.report.latex import to_latex
from robustfdd.report.results import sort_results
from robustfdd.report.study import file_stem

__all__ = ["Comparison", "compare", "compare_runs", "comparison_text", "write_comparison", "write_comparisons"]

RunDirs = str | PathLike[str] | Sequence[str | PathLike[str]]


def compare_runs(run_dirs: RunDirs, *, as_dataset: str | None = None) -> list[Comparison]:
    """Hold runs against the paper: those of one data set together, as one run.

    Args:
        run_dirs: one run directory or several.
        as_dataset: for runs on a data set that the paper does not have: the one whose figures are taken.

    Returns:
        One comparison for each data set, in the order of the runs.

    Raises:
        ConfigurationError: ``run_dirs`` is empty, there are no published figures for a data set, or ``as_dataset`` is
            given for runs that have published figures of their own.
        RunDirectoryError: one is no run directory, is damaged or has nothing to compare, or two on one data set do not
            belong together.
    """
    paths = [Path(run_dirs)] if isinstance(run_dirs, (str, PathLike)) else [Path(path) for path in run_dirs]
    if not paths:
        raise ConfigurationError("a comparison needs at least one run directory")
    groups: dict[str, list[Run]] = {}
    for path in paths:
        run = load_run(path)
        groups.setdefault(run_dataset(sort_results(run)), []).append(run)
    own = load().datasets
    if as_dataset is not None and all(name in own for name in groups):
        raise ConfigurationError(
            f"--as {as_dataset}: there are published figures for the runs' own data ({', '.join(groups)}); leave it out"
        )
    return [compare(sort_results(combine(runs)), as_dataset=as_dataset) for runs in groups.values()]


def _facts(comparison: Comparison) -> list[str]:
    """What a reader must know first, one sentence each."""
    study, source = comparison.results.study, comparison.published.source
    facts = [f"Published figures: {source.citation}."]
    if comparison.stand_in:
        facts.append(
            f"This is not a reproduction: the run is on {study.dataset}, the published figures are for "
            f"{comparison.dataset}."
        )
    facts += [f"Left out: {method.title}, since {reason}." for method, reason in comparison.left_out]
    return facts


def _page(comparison: Comparison) -> str:
    parts = [f"# {escape_markdown(comparison.results.study.title)}: beside the paper\n"]
    parts.append("\n".join(f"- {escape_markdown(fact)}" for fact in _facts(comparison)) + "\n")
    parts.append(to_markdown(tables.summary_grid(comparison)))
    if comparison.setup:
        parts.append(to_markdown(tables.setup_grid(comparison)))
    parts += [to_markdown(tables.figures_grid(comparison, place)) for place in comparison.places]
    parts.append(to_markdown(tables.ordering_grid(comparison)))
    if comparison.not_run:
        parts.append(to_markdown(tables.not_run_grid(comparison)))
    return "\n".join(parts)


class _Files:
    """Writes the files of one comparison into a folder."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix

    def text(self, name: str, text: str) -> None:
        write_text(self._folder / f"{self._prefix}{name}", text)

    def csv(self, name: str, frame: pd.DataFrame) -> None:
        self.text(f"{name}.csv", to_csv(frame))

    def latex(self, name: str, grids: Sequence[Grid]) -> None:
        self.text(f"{name}.tex", "\n".join(to_latex(grid, label=f"{self._prefix}{grid.name}") for grid in grids))

    def table(self, grid: Grid, frame: pd.DataFrame) -> None:
        self.csv(grid.name, frame)
        self.text(f"{grid.name}.md", to_markdown(grid))
        self.latex(grid.name, [grid])

    def figure(self, name: str, files: Mapping[str, bytes]) -> None:
        for extension, content in files.items():
            path = self._folder / f"{self._prefix}{name}.{extension}"
            write_atomically(path, partial(Path.write_bytes, data=content))


def _write(comparison: Comparison, files: _Files) -> None:
    files.csv("compare", frames.figures_frame(comparison))
    files.latex("compare", [tables.figures_grid(comparison, place) for place in comparison.places])
    files.table(tables.ordering_grid(comparison), frames.ordering_frame(comparison))
    files.table(tables.summary_grid(comparison), frames.summary_frame(comparison))
    files.table(tables.setup_grid(comparison), frames.setup_frame(comparison))
    files.csv("not-run", frames.not_run_frame(comparison))
    files.figure("compare", draw_scatter(comparison))
    files.figure("differences", draw_differences(comparison))
    files.text("compare.md", _page(comparison))


def write_comparison(
    run_dirs: RunDirs, *, out: str | PathLike[str] | None = None, as_dataset: str | None = None
) -> Path:
    """Write the comparison of one run, or of several, with the paper.

    Args:
        run_dirs: one run directory or several. Those on one data set are compared together, as one run; with several
            data sets the names of the files start with that of the data set.
        out: the folder to write to; by default ``report/compare`` in the first run directory.
        as_dataset: for runs on a data set that the paper does not have: the one whose figures are taken. Everything
            written then says so.

    Returns:
        The folder. ``compare.md`` is the whole comparison to read; ``compare.csv`` and ``compare.tex`` hold the
        figures, ``ordering``, ``summary`` and ``setup`` (csv, md, tex) the rest, ``not-run.csv`` the published figures
        without their like; ``compare`` and ``differences`` (png, pdf) are the pictures.

    Raises:
        ConfigurationError: see :func:`compare_runs`.
        RunDirectoryError: likewise.
    """
    comparisons = compare_runs(run_dirs, as_dataset=as_dataset)
    first = run_dirs if isinstance(run_dirs, (str, PathLike)) else run_dirs[0]
    return write_comparisons(comparisons, Path(first) / "report" / "compare" if out is None else Path(out))


def write_comparisons(comparisons: Sequence[Comparison], folder: Path) -> Path:
    """Write comparisons that are made already; see :func:`write_comparison` for the files. Gives back the folder."""
    for comparison in comparisons:
        prefix = f"{file_stem(run_dataset(comparison.results))}-" if len(comparisons) > 1 else ""
        _write(comparison, _Files(folder, prefix))
    return folder


def comparison_text(comparison: Comparison) -> Group:
    """The comparison for the terminal: the figures of the printed tables, and the summary with the rank correlations.

    Figures that were read off a plot are shown where there are no others; the files have them all.
    """
    printed = [place for place in comparison.places if not place.reading_error_points]
    grids = [tables.figures_grid(comparison, place) for place in printed or comparison.places]
    grids.append(tables.summary_grid(comparison))
    return Group(*map(Text, _facts(comparison)), "", *(Padding(to_rich(grid), (0, 0, 1, 0)) for grid in grids))
