"""Beside the paper: its published figures, its claims, its tables and figures made from a run, and the comparison.

Nothing else of the package imports this but the command ``compare`` and the page of a report, which finds the tables
and figures here as it finds those of :mod:`robustfdd.report.exhibits`.
"""
