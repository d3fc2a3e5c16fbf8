"""Writing a comparison with the paper: its tables, its pictures and one page of text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from robustfdd.errors import ConfigurationError
from robustfdd.paper.comparison import Comparison, compare
from robustfdd.paper.comparison_figures import draw_differences, draw_scatter
from robustfdd.paper.comparison_tables import (
    figures_frame,
    figures_table,
    not_run_table,
    ordering_table,
    setup_table,
    summary_table,
)
from robustfdd.paper.matching import run_dataset
from robustfdd.paper.published import load
from robustfdd.records import Run, load_run, write_atomically
from robustfdd.report.combine import combine
from robustfdd.report.forms import escape_markdown, forms, to_csv, to_markdown, to_rich
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
    tables = [summary_table(comparison)]
    if comparison.setup:
        tables.append(setup_table(comparison))
    tables += [figures_table(comparison, place) for place in comparison.places]
    tables.append(ordering_table(comparison))
    if comparison.not_run:
        tables.append(not_run_table(comparison))
    title = f"# {escape_markdown(comparison.results.study.title)}: beside the paper\n"
    facts = "\n".join(f"- {escape_markdown(fact)}" for fact in _facts(comparison)) + "\n"
    return "\n".join([title, facts, *map(to_markdown, tables)])


def _write(comparison: Comparison, folder: Path, prefix: str) -> None:
    """Write the files of one comparison into a folder."""
    tables = (figures_table(comparison, place) for place in comparison.places)
    latex = "\n".join(to_latex(exhibit, label=f"{prefix}{exhibit.name}") for exhibit in tables)
    texts = {
        "compare.csv": to_csv(figures_frame(comparison, comparison.pairs)),
        "compare.tex": latex,
        "compare.md": _page(comparison),
        "not-run.csv": to_csv(not_run_table(comparison).frame),
    }
    files = {name: text.encode() for name, text in texts.items()}
    for exhibit in (ordering_table(comparison), summary_table(comparison), setup_table(comparison)):
        found = forms(exhibit, label=f"{prefix}{exhibit.name}")
        files |= {f"{exhibit.name}.{extension}": content for extension, content in found.items()}
    for name, figure in (("compare", draw_scatter(comparison)), ("differences", draw_differences(comparison))):
        files |= {f"{name}.{extension}": content for extension, content in figure.items()}
    for name, content in files.items():
        write_atomically(folder / f"{prefix}{name}", partial(Path.write_bytes, data=content))


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
        _write(comparison, folder, prefix)
    return folder


def comparison_text(comparison: Comparison) -> Group:
    """The comparison for the terminal: the figures of the printed tables, and the summary with the rank correlations.

    Figures that were read off a plot are shown where there are no others; the files have them all.
    """
    printed = [place for place in comparison.places if not place.reading_error_points]
    tables = [figures_table(comparison, place) for place in printed or comparison.places]
    tables.append(summary_table(comparison))
    return Group(*map(Text, _facts(comparison)), "", *(Padding(to_rich(exhibit), (0, 0, 1, 0)) for exhibit in tables))
