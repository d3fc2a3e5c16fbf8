"""The verdicts of the audits as marks beside the names of the methods."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pandas as pd

from robustfdd.errors import RunDirectoryError
from robustfdd.report.study import VERDICT_MARKS, Method, Study

#: The table of an audit with the verdict.
VERDICT_TABLE = "audit_verdict"


def check_column(frame: pd.DataFrame, column: str, allowed: Collection[str], table: str, where: object) -> None:
    """Make sure that a column of a table of the audits holds only what is allowed.

    Raises:
        RunDirectoryError: it holds something else.
    """
    unknown = sorted({str(value) for value in frame[column]} - set(allowed))
    if unknown:
        raise RunDirectoryError(
            f"{where}: the files {table}--* have the {column} {unknown[0]!r}; allowed: {', '.join(allowed)}"
        )


def with_verdicts(study: Study, frame: pd.DataFrame | None, where: object) -> Study:
    """The study with the gravest verdict of its seeds at every method, so that every name carries its mark.

    Args:
        study: as planned.
        frame: the table of verdicts; None without audits.
        where: the folder of the analyses, for messages.

    Raises:
        RunDirectoryError: a verdict is unknown.
    """
    if frame is None or not {"method", "verdict"} <= set(frame.columns):
        return study
    check_column(frame, "verdict", VERDICT_MARKS, VERDICT_TABLE, where)
    order = list(VERDICT_MARKS)
    worst = {
        str(label): max(map(str, mine["verdict"]), key=order.index)
        for label, mine in frame.groupby("method", sort=False)
    }
    return replace(study, methods=tuple(replace(m, verdict=worst.get(m.label)) for m in study.methods))


def marks_text(methods: Sequence[Method]) -> str:
    """What the marks of the verdicts on some methods mean, and which of the methods have none."""
    used = [verdict for verdict in VERDICT_MARKS if any(m.verdict == verdict for m in methods)]
    without = [method.plain_title for method in methods if method.verdict is None]
    if not used:
        return "Whether the figures can be believed was not tested (not audited)."
    text = f"Beside a name: {', '.join(f'{VERDICT_MARKS[verdict]} {verdict}' for verdict in used)}: see Audit."
    return text + (f" Without a mark: {', '.join(without)} (not audited)." if without else "")
