"""What the command line says after a run: the main tables, the remarks, the engines that differ."""

from __future__ import annotations

from rich.console import Group
from rich.padding import Padding

from robustfdd.records import Run
from robustfdd.report.agreement import Agreement, compare_engines
from robustfdd.report.forms import to_rich
from robustfdd.report.notes import Note, notes
from robustfdd.report.results import sort_results
from robustfdd.report.tables import main_tables


def main_table_text(run: Run) -> Group:
    """Robust accuracy for the terminal, one table a norm, the best three of each row in bold.

    Raises:
        RunDirectoryError: the manifest or the records are damaged.
    """
    return Group(*(Padding(to_rich(table), (0, 0, 1, 0)) for table in main_tables(sort_results(run))))


def disagreements(run: Run) -> list[Agreement]:
    """The cells in which two engines differ on a deterministic attack; ``str`` of one is a line for a reader.

    Raises:
        RunDirectoryError: the manifest or the records are damaged.
    """
    return [item for item in compare_engines(sort_results(run)) if item.flagged]


def run_notes(run: Run) -> list[Note]:
    """Everything that the banner of the report says, the gravest first.

    Raises:
        RunDirectoryError: the manifest or the records are damaged.
    """
    results = sort_results(run)
    return notes(results, compare_engines(results))
