"""Writing a report: every table and figure as files, and the page that shows and links them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path

import pandas as pd

from robustfdd.records import Run, load_run, write_atomically, write_text
from robustfdd.report.agreement import agreement_frame, compare_engines, detail_grid, summary_grid
from robustfdd.report.artefact import SECTIONS, Artefact
from robustfdd.report.audit import verdicts
from robustfdd.report.combine import combine
from robustfdd.report.curves import interactive_figure, panels
from robustfdd.report.exhibits import all_exhibits
from robustfdd.report.figures import draw_overview, draw_panel, draw_training
from robustfdd.report.grid import Grid, to_csv, to_markdown
from robustfdd.report.latex import to_latex
from robustfdd.report.notes import notes
from robustfdd.report.page import Exhibit, Section, render_page
from robustfdd.report.results import sort_results
from robustfdd.report.study import unique_stems
from robustfdd.report.tables import main_tables
from robustfdd.report.training import training_frame, training_grid

_TABLES, _FIGURES = "tables", "figures"
#: Rows up to which a table stands on the page as it is.
_LONG = 24


class _Files:
    """Writes the files of a report under ``out`` and notes their paths for the page."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.paths: dict[str, list[str]] = {_TABLES: [], _FIGURES: []}

    def _path(self, kind: str, name: str) -> Path:
        path = f"{kind}/{name}"
        if path in self.paths[kind]:
            raise ValueError(f"two tables or figures of the report are named {name}")
        self.paths[kind].append(path)
        return self._out / path

    def table(self, grid: Grid, frame: pd.DataFrame, *, appendix: str = "") -> None:
        """Write a table as CSV (the data), Markdown (followed by ``appendix``) and LaTeX."""
        self.csv(grid.name, frame)
        write_text(self._path(_TABLES, f"{grid.name}.md"), to_markdown(grid) + appendix)
        write_text(self._path(_TABLES, f"{grid.name}.tex"), to_latex(grid, label=grid.name))

    def csv(self, name: str, frame: pd.DataFrame) -> None:
        """Write data as CSV."""
        write_text(self._path(_TABLES, f"{name}.csv"), to_csv(frame))

    def figure(self, name: str, files: Mapping[str, bytes]) -> bytes:
        """Write a figure in all its forms, and give back the PNG."""
        for extension, content in files.items():
            write_atomically(self._path(_FIGURES, f"{name}.{extension}"), partial(Path.write_bytes, data=content))
        return files["png"]

    def artefact(self, artefact: Artefact) -> Exhibit:
        """Write an artefact in all its forms, and give back what the page shows of it."""
        before = {kind: len(paths) for kind, paths in self.paths.items()}
        grid = artefact.grid
        if grid is None:
            self.csv(artefact.name, artefact.frame)
        else:
            grid = replace(grid, name=artefact.name, title=artefact.title, caption=artefact.caption)
            self.table(grid, artefact.frame)
        png = None if artefact.figure is None else self.figure(artefact.name, artefact.figure)
        links = tuple(path for kind, paths in self.paths.items() for path in paths[before[kind] :])
        folded = grid is not None and len(grid.rows) > _LONG and not artefact.unfolded
        return Exhibit(artefact.name, artefact.title, artefact.caption, grid, png, links, folded)


def _write_files(run: Run, out: Path) -> Section:
    results = sort_results(run)
    files = _Files(out)
    robust, survival = main_tables(results, "robust_accuracy"), main_tables(results, "survival_rate")
    for table in (*robust, *survival):
        files.table(table.grid, table.frame())
    if robust:
        files.csv("results", results.long_table())
    trained = training_grid(results) if run.models else None
    if trained:
        files.table(trained, training_frame(results))
    agreements = compare_engines(results)
    agreement = (summary_grid(agreements), detail_grid(agreements, results.study)) if agreements else None
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
        interactive = interactive_figure(found, seeds=len(results.study.trained_seeds), decimals=decimals)
    training = draw_training(results)
    exhibits: dict[str, list[Exhibit]] = {section: [] for section in SECTIONS}
    for artefact in all_exhibits(results):
        exhibits[artefact.section].append(files.artefact(artefact))
    return Section(
        results=results,
        notes=notes(results, agreements),
        robust=[table.grid for table in robust],
        survival=[table.grid for table in survival],
        verdicts=verdicts(results),
        exhibits=exhibits,
        agreement=agreement,
        interactive=interactive,
        overview=overview,
        trained=trained,
        training=files.figure("training", training) if training else None,
        files=files.paths,
    )


def write_report(
    run_dirs: str | PathLike[str] | Sequence[str | PathLike[str]], *, out: str | PathLike[str] | None = None
) -> Path:
    """Write the report of a run, or of several that belong together as if they were one.

    Args:
        run_dirs: one run directory or several: the seeds, methods or attacks of a study that were run apart; see
            :func:`robustfdd.report.combine.combine`.
        out: the folder to write to; by default ``report`` in the first run directory. Files of an earlier report are
            replaced.

    Returns:
        The page, ``index.html``; beside it are ``tables`` and ``figures``.

    Raises:
        ConfigurationError: ``run_dirs`` is empty.
        RunDirectoryError: one is no run directory, it is damaged, or two of them do not belong together; the message
            names them and what differs.
    """
    paths = [Path(run_dirs)] if isinstance(run_dirs, (str, PathLike)) else [Path(path) for path in run_dirs]
    run = combine([load_run(path) for path in paths])
    folder = paths[0] / "report" if out is None else Path(out)
    index = folder / "index.html"
    write_text(index, render_page(_write_files(run, folder)))
    return index
