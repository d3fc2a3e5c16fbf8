"""The commands that turn the records of runs into tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustfdd.cli.base import DataRoot, command, out_console, say_plainly


@command("report", "cli.conclusion")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run directory, or several: seeds, methods or attacks of one study that were run apart."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write. By default report/ in the first run directory.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Make tables, figures and the page from the records of a run, or of several that belong together.

    What the figures show of the models themselves is computed first where it is missing and the checkpoints are there.
    """
    from robustfdd import records
    from robustfdd.cli.conclusion import analyse, print_tables
    from robustfdd.report import combine, write_report

    if len(runs) > 1:
        combine([records.load_run(directory) for directory in runs])  # refused before anything is computed for them
    for directory in runs:
        if any((directory / "models").glob("*.safetensors")):
            hardware = records.read_manifest(directory).get("hardware") or {}
            device = hardware.get("device") or "cpu"
            analyse(directory, data_root, device)
    page = write_report(runs, out=out)
    print_tables(combine([records.load_run(directory) for directory in runs]))
    say_plainly(out_console, f"report: {page}")


@command("compare", "paper.compare")
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run directory, or several; those on one data set are compared together, as one run."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write to. By default report/compare in the first run directory.", show_default=False
        ),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="DATASET",
            help="For runs on data that the paper does not have: hold them against its figures for this data set.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Hold a run against the published figures, cell by cell."""
    from robustfdd.paper.compare import compare_runs, comparison_text, write_comparisons

    comparisons = compare_runs(runs, as_dataset=as_)
    folder = write_comparisons(comparisons, out or runs[0] / "report" / "compare")
    for comparison in comparisons:
        out_console.print(comparison_text(comparison))
    for path in sorted(folder.glob("*compare.*")):
        say_plainly(out_console, f"comparison: {path}")
