"""What the audits of the models found, model by model."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Group
from rich.text import Text

from robustfdd.records import Run
from robustfdd.report.analyses import analysis_table
from robustfdd.report.results import Results, sort_results
from robustfdd.report.study import VERDICT_MARKS, Epsilon, Method, Study, norm_title, number, unit_titles
from robustfdd.report.verdicts import VERDICT_TABLE, check_column

#: The tables that an audit writes beside that of the verdicts.
INDICATOR_TABLE, PICTURE_TABLE = "audit_indicators", "audit_pictures"

VERDICT_COLUMNS = (
    "verdict",
    "norm",
    "eps_pixel",
    "eps_normalized",
    "attack",
    "n_images",
    "clean_accuracy",
    "audited_accuracy",
    "worst_accuracy",
    "failed",
    "gradient_passes",
    "forward_passes",
    "seconds",
    "eot_samples",
    "version",
)
INDICATOR_COLUMNS = (
    "number",
    "name",
    "title",
    "status",
    "value",
    "unit",
    "threshold",
    "source",
    "finding",
    "images",
)
PICTURE_COLUMNS = ("picture", "series", "x", "y", "z", "x_title", "y_title", "title")

#: How an indicator can come out, the gravest last, and its symbol in a table.
STATUS_MARKS = {"not applicable": "–", "passed": "✓", "warning": "!", "alarm": "✗"}
FAILED = ("warning", "alarm")

_COLOURS = {"believable": "green", "suspicious": "yellow", "not believable": "red"}


@dataclass(frozen=True)
class ModelVerdict:
    """The verdict on one model.

    Attributes:
        method: of the model.
        seed: of its training; -1 for a model that was not trained here.
        verdict: a key of :data:`robustfdd.report.study.VERDICT_MARKS`.
        under: the attack, norm and radius of the accuracy under audit, in words.
        n_images: how many test images the audit looked at.
        clean: accuracy before any attack, in [0, 1].
        audited: the accuracy under audit, in [0, 1].
        worst: the lowest that the audit found at that radius, in [0, 1].
        failed: titles of the indicators that warn or alarm.
    """

    method: Method
    seed: int
    verdict: str
    under: str
    n_images: int
    clean: float
    audited: float
    worst: float
    failed: tuple[str, ...]

    @property
    def gap(self) -> float:
        """How far the accuracy under audit is above the lowest that was found, in percentage points."""
        return round(100 * (self.audited - self.worst), 9)

    @property
    def model(self) -> str:
        """The model in words; a seed of -1 is none."""
        return self.method.plain_title + (f", seed {self.seed}" if self.seed >= 0 else "")


def check_status(frame: pd.DataFrame, where: object) -> None:
    """Make sure that every indicator has a status that is known.

    Raises:
        RunDirectoryError: one has not.
    """
    check_column(frame, "status", STATUS_MARKS, INDICATOR_TABLE, where)


def audited_models(results: Results) -> set[tuple[str, int]]:
    """Label and seed of every model that has a verdict."""
    frame = results.run.analyses.get(VERDICT_TABLE)
    return set() if frame is None else {(str(m), int(s)) for m, s in zip(frame["method"], frame["seed"], strict=True)}


def not_audited(results: Results) -> list[tuple[Method, tuple[int, ...]]]:
    """The methods with models or records one of whose models was not audited, each with the seeds of those models."""
    audited = audited_models(results)
    there: dict[str, set[int]] = {}
    for place, seeds in results.places.items():
        there.setdefault(place.method, set()).update(seeds)
    for model in results.run.models:
        if model.get("method") is not None and model.get("seed") is not None:
            there.setdefault(str(model["method"]), set()).add(int(model["seed"]))
    found = []
    for method in results.study.methods:
        missing = tuple(sorted(s for s in there.get(method.label, ()) if (method.label, s) not in audited))
        if missing:
            found.append((method, missing))
    return found


def _under(row: Mapping[Hashable, Any], study: Study) -> str:
    eps = Epsilon(float(row["eps_normalized"]), float(row["eps_pixel"]))
    main, other = eps.texts(study.eps_unit)
    units = unit_titles(study.eps_unit)
    radius = main if main == other else f"{main} {units[0]} ({other} {units[1]})"
    return f"{row['attack']}, {norm_title(str(row['norm']))}, ε = {radius}"


def verdicts(results: Results) -> list[ModelVerdict]:
    """The verdict on every model, method by method and seed by seed; empty without audits.

    Raises:
        RunDirectoryError: a table lacks a column.
    """
    frame = analysis_table(results, VERDICT_TABLE, VERDICT_COLUMNS)
    indicators = analysis_table(results, INDICATOR_TABLE, ("name", "title"))
    if frame is None:
        return []
    titles: dict[str, str] = {}
    if indicators is not None:
        titles = dict(zip(indicators["name"].astype(str), indicators["title"].astype(str), strict=True))
    methods = {method.label: method for method in results.study.methods}
    return [
        ModelVerdict(
            method=methods[str(row["method"])],
            seed=int(row["seed"]),
            verdict=str(row["verdict"]),
            under=_under(row, results.study),
            n_images=int(row["n_images"]),
            clean=float(row["clean_accuracy"]),
            audited=float(row["audited_accuracy"]),
            worst=float(row["worst_accuracy"]),
            # An empty list may come back as nothing.
            failed=tuple(titles.get(str(name), str(name)) for name in listed(row["failed"])),
        )
        for row in frame.to_dict("records")
    ]


def listed(value: Any) -> list[Any]:
    """A list in a cell of an analysis, which comes back as an array, or as nothing where it was empty."""
    return [] if value is None or (isinstance(value, float) and pd.isna(value)) else list(value)


def _percent(share: float) -> str:
    """A share in percent, for a reader."""
    return f"{number(100 * share, 3)} %"


def audit_text(run: Run) -> Group:
    """The audits of a run for the terminal: one line a model, with the verdict in its colour.

    A line also has the accuracy under audit, the lowest that the audit found, and the tests that failed. Without audits
    there is no line.

    Raises:
        RunDirectoryError: the manifest or a table is damaged.
    """
    lines = []
    for item in verdicts(sort_results(run)):
        line = Text()
        line.append(f"{item.model}: ")
        line.append(f"{VERDICT_MARKS[item.verdict]} {item.verdict}", style=f"bold {_COLOURS[item.verdict]}")
        line.append(f"; {_percent(item.audited)} under {item.under}; the audit brought it to {_percent(item.worst)}")
        line.append(f"; failed: {', '.join(item.failed)}" if item.failed else "; every test that applies was passed")
        lines.append(line)
    return Group(*lines)
