"""Writing a report: every table and figure as files, and the page that shows and links them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path

import pandas as pd

from robustfdd.errors import ConfigurationError
from robustfdd.records import Run, load_run, write_atomically, write_text
from robustfdd.report.agreement import agreement_frame, compare_engines, detail_grid, summary_grid
from robustfdd.report.curves import interactive_figure, panels
from robustfdd.report.figures import draw_overview, draw_panel, draw_training
from robustfdd.report.grid import Grid, to_markdown
from robustfdd.report.latex import to_latex
from robustfdd.report.notes import notes
from robustfdd.report.page import Section, render_page
from robustfdd.report.results import sort_results
from robustfdd.report.study import read_study, unique_stems
from robustfdd.report.tables import clean_frame, clean_table, main_tables

_TABLES, _FIGURES = "tables", "figures"


class _Files:
    """Writes the files of one run under ``out`` and notes their paths for the page."""

    def __init__(self, out: Path, prefix: str) -> None:
        self._out, self._prefix = out, prefix
        self.paths: dict[str, list[str]] = {_TABLES: [], _FIGURES: []}

    def _path(self, kind: str, name: str) -> Path:
        self.paths[kind].append(f"{kind}/{self._prefix}{name}")
        return self._out / kind / f"{self._prefix}{name}"

    def table(self, grid: Grid, frame: pd.DataFrame, *, appendix: str = "") -> None:
        """Write a table as CSV (the data), Markdown (followed by ``appendix``) and LaTeX."""
        self.csv(grid.name, frame)
        write_text(self._path(_TABLES, f"{grid.name}.md"), to_markdown(grid) + appendix)
        write_text(self._path(_TABLES, f"{grid.name}.tex"), to_latex(grid, label=f"{self._prefix}{grid.name}"))

    def csv(self, name: str, frame: pd.DataFrame) -> None:
        write_text(self._path(_TABLES, f"{name}.csv"), frame.to_csv(index=False, lineterminator="\n"))

    def figure(self, name: str, files: dict[str, bytes]) -> bytes:
        """Write a figure in all its forms, and give back the PNG."""
        for extension, content in files.items():
            write_atomically(self._path(_FIGURES, f"{name}.{extension}"), partial(Path.write_bytes, data=content))
        return files["png"]


def _write_run(run: Run, out: Path, prefix: str, anchor: str) -> Section:
    results = sort_results(run)
    files = _Files(out, prefix)
    robust, survival = main_tables(results, "robust_accuracy"), main_tables(results, "survival_rate")
    for table in (*robust, *survival):
        files.table(table.grid, table.frame())
    files.csv("results", results.long_table())
    clean = clean_table(results).grid if run.models else None
    if clean:
        files.table(clean, clean_frame(results))
    agreements = compare_engines(results)
    agreement = (summary_grid(agreements), detail_grid(agreements, results.study.eps_unit)) if agreements else None
    if agreement:
        # In print the summary is enough; cell by cell the table is longer than a page.
        summary, detail = agreement
        files.table(summary, agreement_frame(agreements), appendix="\n" + to_markdown(detail))

    found = panels(results) if results.places else []
    overview = interactive = None
    if found:
        overview = files.figure("overview", draw_overview(found))
        stems = unique_stems([f"robust-accuracy-{panel.attack}-{panel.norm}" for panel in found])
        for stem, panel in zip(stems, found, strict=True):
            files.figure(stem, draw_panel(panel))
        decimals = max(table.decimals for table in robust)
        interactive = interactive_figure(found, seeds=len(results.study.seeds), decimals=decimals)
    training = draw_training(results)
    return Section(
        anchor=anchor,
        results=results,
        notes=notes(results, agreements),
        robust=[table.grid for table in robust],
        survival=[table.grid for table in survival],
        clean=clean,
        agreement=agreement,
        interactive=interactive,
        overview=overview,
        training=files.figure("training", training) if training else None,
        files=files.paths,
    )


def write_report(
    run_dirs: str | PathLike[str] | Sequence[str | PathLike[str]], *, out: str | PathLike[str] | None = None
) -> Path:
    """Write the report of one run, or of several in one.

    Args:
        run_dirs: one run directory or several. With several, each has its section on the page, and the names of its
            files start with that of its study.
        out: the folder to write to; by default ``report`` in the first run directory. Files of an earlier report are
            replaced.

    Returns:
        The page, ``index.html``; beside it are ``tables`` and ``figures``.

    Raises:
        ConfigurationError: ``run_dirs`` is empty.
        RunDirectoryError: one is no run directory, or it is damaged.
    """
    paths = [Path(run_dirs)] if isinstance(run_dirs, (str, PathLike)) else [Path(path) for path in run_dirs]
    if not paths:
        raise ConfigurationError("a report needs at least one run directory")
    folder = paths[0] / "report" if out is None else Path(out)
    runs = [load_run(path) for path in paths]
    stems = unique_stems([read_study(run.manifest, run.path / "manifest.json").name for run in runs])
    sections = [
        _write_run(run, folder, f"{stem}-" if len(runs) > 1 else "", f"run-{i}")
        for i, (run, stem) in enumerate(zip(runs, stems, strict=True), start=1)
    ]
    index = folder / "index.html"
    titles = dict.fromkeys(section.results.study.title for section in sections)
    write_text(index, render_page(", ".join(titles), sections))
    return index
