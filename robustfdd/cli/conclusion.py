"""How a command that made records ends: what is missing is computed, the report written, the tables printed."""

from __future__ import annotations

from pathlib import Path

import typer

from robustfdd import records
from robustfdd.analysis import analyse_run
from robustfdd.audit import audit_run
from robustfdd.cli.base import err_console, out_console, say_plainly
from robustfdd.errors import ConfigurationError
from robustfdd.evaluation import resolve_device
from robustfdd.report import audit_text, disagreements, main_table_text, undefined_gradients, write_report
from robustfdd.status import Status
from robustfdd.text import printable


def audit_models(directory: Path, data_root: Path | None, device: str, batch_size: int) -> None:
    """Audit the models of a run as far as that was not done yet, and say what could not be."""
    target = resolve_device(device)
    notes = audit_run(directory, data_root=data_root, device=target, batch_size=batch_size, console=err_console)
    for note in notes:
        if note.kind == "skipped":  # what failed is named with the failures
            say_plainly(err_console, f"note: {note}")


def analyse(directory: Path, data_root: Path | None, device: str) -> None:
    """Look into the models of a run as far as that was not done yet, and say what could not be."""
    try:
        notes = analyse_run(directory, data_root=data_root, device=resolve_device(device), console=err_console)
    except ConfigurationError as error:  # the report of a run from a machine with a GPU, made on one without
        say_plainly(err_console, f"note: analysis skipped: {error}")
        return
    for text in dict.fromkeys(f"{note.kind}: {note.message}" for note in notes):
        say_plainly(err_console, f"note: analysis {text}")


def conclude(directory: Path, status: Status | None = None) -> None:
    """Write and name the report; exit with 1 if a unit failed."""
    page = write_report([directory])
    found = records.load_run(directory)
    print_tables(found)
    say_plainly(out_console, f"report: {page}")
    blocked = status.of("blocked") if status else []
    if found.failures:
        err_console.print(f"{len(found.failures)} of the units failed; the report names them:", style="bold red")
        for failure in found.failures:
            say_plainly(err_console, f"  {failure.unit}: {failure.error}: {failure.message}")
    if blocked:
        err_console.print(f"{len(blocked)} of the units were not run because of that:", style="bold red")
        for entry in blocked:
            say_plainly(err_console, f"  {entry.name}: {entry.reason}")
    if found.failures or blocked:
        raise typer.Exit(1)


def print_tables(found: records.Run) -> None:
    """Print the robust accuracies and the verdicts of a run, and warn of what a reader must know of them."""
    out_console.print(main_table_text(found))
    out_console.print(audit_text(found))
    for warning in (*map(str, disagreements(found)), *undefined_gradients(found.cells)):
        err_console.print(
            printable(f"warning: {warning}"), style="bold yellow", markup=False, highlight=False, soft_wrap=True
        )
