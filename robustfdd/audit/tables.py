"""The tables of an audit in a run directory: written together, there together or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from robustfdd import records
from robustfdd.errors import RunDirectoryError

VERDICT, INDICATORS, PICTURES = "audit_verdict", "audit_indicators", "audit_pictures"


def write_audit(run: Path, tables: Mapping[str, pd.DataFrame], *, method: str, seed: int, key: str) -> None:
    """Write the tables of the audit of one model, in place of those of an earlier one.

    Args:
        run: the run directory.
        tables: from :meth:`robustfdd.audit.Audit.frames`.
        method: label of the model's method.
        seed: of the model's training run.
        key: what the audit depends on, in short.
    """
    discard_audit(run, method, seed)
    # The verdict last: it is what says that the audit is there.
    for table in (PICTURES, INDICATORS, VERDICT):
        if table in tables:
            records.write_analysis(run, table, tables[table], method=method, seed=seed, key=key)


def has_audit(run: Path, method: str, seed: int, key: str) -> bool:
    """Whether every table of an audit is there, whole and of that key."""
    paths = {table: records.analysis_path(run, table, method, seed) for table in (VERDICT, INDICATORS, PICTURES)}
    try:
        attacked = any(records.read_analysis(paths[VERDICT])["clean_accuracy"].to_pylist())
    except (RunDirectoryError, KeyError):
        return False
    if not attacked:  # then there are no pictures
        del paths[PICTURES]
    return all(records.read_key(path) == key for path in paths.values())


def discard_audit(run: Path, method: str, seed: int) -> None:
    """Remove the tables of an audit: what an earlier checkpoint gave is not this one's."""
    for table in (VERDICT, INDICATORS, PICTURES):
        records.analysis_path(run, table, method, seed).unlink(missing_ok=True)
