"""Writing a report: every table and figure as files, and the page that shows and links them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path

from robustfdd.records import Run, load_run, write_atomically, write_text
from robustfdd.report.agreement import Agreement, compare_engines, detail_table, summary_table
from robustfdd.report.audit import verdicts
from robustfdd.report.combine import combine
from robustfdd.report.curves import interactive_figure, panels
from robustfdd.report.exhibit import SECTIONS, Exhibit
from robustfdd.report.exhibits import all_exhibits
from robustfdd.report.figures import draw_overview, draw_panel, draw_training
from robustfdd.report.forms import forms, to_csv, to_markdown
from robustfdd.report.notes import notes
from robustfdd.report.page import Section, render_page
from robustfdd.report.results import Results, sort_results
from robustfdd.report.study import unique_stems
from robustfdd.report.tables import decimals_of, main_tables
from robustfdd.report.training import training_table

_TABLES, _FIGURES = "tables", "figures"


class _Files:
    """Writes the files of a report under ``out`` and notes their paths for the page."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.paths: dict[str, list[str]] = {_TABLES: [], _FIGURES: []}
        self.links: dict[str, list[str]] = {}

    def write(self, name: str, contents: Mapping[str, bytes]) -> None:
        """Write one table or figure in its forms, given by extension."""
        for extension, content in contents.items():
            kind = _FIGURES if extension in ("png", "pdf") else _TABLES
            path = f"{kind}/{name}.{extension}"
            if path in self.paths[kind]:
                raise ValueError(f"two tables or figures of the report are named {name}")
            self.paths[kind].append(path)
            self.links.setdefault(name, []).append(path)
            write_atomically(self._out / path, partial(Path.write_bytes, data=content))

    def exhibits(self, found: Sequence[Exhibit]) -> Sequence[Exhibit]:
        """Write tables and figures in all their forms, and give them back."""
        for exhibit in found:
            self.write(exhibit.name, forms(exhibit))
        return found


def _write_tables(results: Results, agreements: Sequence[Agreement], files: _Files) -> dict[str, Sequence[Exhibit]]:
    """The tables that have a place of their own on the page, by that place."""
    robust, survival = main_tables(results, "robust_accuracy"), main_tables(results, "survival_rate")
    tables = {"robust": files.exhibits(robust), "survival": files.exhibits(survival)}
    if robust:
        files.write("results", {"csv": to_csv(results.long_table()).encode()})
    tables["training"] = files.exhibits([training_table(results)] if results.run.models else [])
    tables["agreement"] = []
    if agreements:
        summary, detail = summary_table(agreements), detail_table(agreements, results.study)
        # In print the summary is enough; cell by cell the table is longer than a page.
        files.write(summary.name, forms(summary) | {"md": f"{to_markdown(summary)}\n{to_markdown(detail)}".encode()})
        tables["agreement"] = [summary, detail]
    return tables


def _write_files(run: Run, out: Path) -> Section:
    results = sort_results(run)
    agreements = compare_engines(results)
    files = _Files(out)
    tables = _write_tables(results, agreements, files)
    overview = interactive = None
    if found := panels(results) if results.places else []:
        overview = draw_overview(found)
        files.write("overview", overview)
        stems = unique_stems([f"robust-accuracy-{panel.attack}-{panel.norm}" for panel in found])
        for stem, panel in zip(stems, found, strict=True):
            files.write(stem, draw_panel(panel))
        decimals = max(decimals_of(results, norm) for norm in results.study.norms)
        interactive = interactive_figure(found, seeds=len(results.study.trained_seeds), decimals=decimals)
    exhibits = files.exhibits(all_exhibits(results))
    training = draw_training(results)
    files.write("training", training or {})
    return Section(
        results=results,
        notes=notes(results, agreements),
        verdicts=verdicts(results),
        tables=tables,
        exhibits={section: [each for each in exhibits if each.section == section] for section in SECTIONS},
        interactive=interactive,
        overview=overview["png"] if overview else None,
        training=training["png"] if training else None,
        files=files.paths,
        links=files.links,
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
