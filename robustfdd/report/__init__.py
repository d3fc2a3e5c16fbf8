"""The report of a run, or of several as one: tables, curves and one HTML page, made from records and nothing else.

A report is a pure function of the run directories: written twice, its files are the same byte for byte.
"""

from __future__ import annotations

from robustfdd.report.agreement import Agreement
from robustfdd.report.audit import audit_text
from robustfdd.report.combine import combine
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.notes import Note, undefined_gradients
from robustfdd.report.summary import disagreements, main_table_text, run_notes
from robustfdd.report.write import write_report

__all__ = [
    "Agreement",
    "Exhibit",
    "Note",
    "audit_text",
    "combine",
    "disagreements",
    "main_table_text",
    "run_notes",
    "undefined_gradients",
    "write_report",
]
