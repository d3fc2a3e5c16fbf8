"""The tables and figures of the paper, made from a run; see :mod:`robustfdd.report.exhibits` for what a module has."""
