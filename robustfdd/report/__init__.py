"""The report of a run: tables, curves and one HTML page, made from its records and from nothing else.

A report is a pure function of the run directory: written twice, its files are the same byte for byte.
"""

from __future__ import annotations

from robustfdd.report.agreement import Agreement
from robustfdd.report.grid import Grid
from robustfdd.report.notes import Note
from robustfdd.report.summary import disagreements, main_table_text, run_notes
from robustfdd.report.tables import MainTable
from robustfdd.report.write import write_report

__all__ = [
    "Agreement",
    "Grid",
    "MainTable",
    "Note",
    "disagreements",
    "main_table_text",
    "run_notes",
    "write_report",
]
