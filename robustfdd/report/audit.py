"""What the audits of the models found, model by model."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pandas as pd
from rich.console import Group
from rich.text import Text

from robustfdd.audited import LEAST_ATTACKED
from robustfdd.records import Run
from robustfdd.report.analyses import analysis_table
from robustfdd.report.columns import COLUMNS
from robustfdd.report.results import Results, sort_results
from robustfdd.report.study import VERDICT_MARKS, Method, number, seed_text
from robustfdd.report.verdicts import VERDICT_TABLE, Audited, check_column, images_text, under

#: The tables that an audit writes beside that of the verdicts.
INDICATOR_TABLE, PICTURE_TABLE = "audit_indicators", "audit_pictures"

INDICATOR_COLUMNS = tuple(name for name in COLUMNS[INDICATOR_TABLE] if name != "advice")
VERDICT_COLUMNS, PICTURE_COLUMNS = tuple(COLUMNS[VERDICT_TABLE]), tuple(COLUMNS[PICTURE_TABLE])

#: How an indicator can come out, the gravest last, and its symbol in a table.
STATUS_MARKS = {"not applicable": "–", "passed": "✓", "warning": "!", "alarm": "✗"}
FAILED = ("warning", "alarm")

_COLOURS = {"believable": "green", "no verdict": "blue", "suspicious": "yellow", "not believable": "red"}


@dataclass(frozen=True)
class ModelVerdict:
    """The verdict on one model, in words.

    Attributes:
        method: of the model.
        said: the verdict, and the number that it is about.
        under: attack, norm and radius of that number.
        images: the images that were looked at.
        failed: titles of the indicators that warn or alarm.
    """

    method: Method
    said: Audited
    under: str
    images: str
    failed: tuple[str, ...]

    @property
    def mark(self) -> str:
        """The verdict with its mark."""
        return f"{VERDICT_MARKS[self.said.verdict]} {self.said.verdict}"

    @property
    def model(self) -> str:
        """The model in words."""
        return self.method.title + (f", {seed_text(self.said.seed)}" if self.said.seed >= 0 else "")

    @property
    def reason(self) -> str:
        """Why the verdict is what it is, in one sentence without its full stop."""
        few = self.said.n_attacked
        if self.said.verdict == "no verdict":
            attacked = f"only {few:,} images were attacked" if few != 1 else "only one image was attacked"
            attacked = attacked if few else "no image was attacked"
            return f"{attacked}, and on fewer than {LEAST_ATTACKED} finding nothing says nothing"
        return f"failed: {', '.join(self.failed)}" if self.failed else "every test that applies was passed"


def check_status(frame: pd.DataFrame, where: object) -> None:
    """Make sure that every indicator has a status that is known.

    Raises:
        RunDirectoryError: one has not.
    """
    check_column(frame, "status", STATUS_MARKS, INDICATOR_TABLE, where)


def coverage(results: Results) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Of which models some figure of the report was audited.

    Returns:
        The methods one of whose models has records, or was trained, and no audit of any figure that is shown: by label,
        each with the seeds of these models. And the labels of the methods with a figure that was audited.
    """
    there: dict[str, set[int]] = {}
    for place, seeds in results.places.items():
        there.setdefault(place.method, set()).update(seeds)
    for model in results.run.models:
        there.setdefault(str(model["method"]), set()).add(int(model["seed"]))
    covered = {model for place in results.places for model in results.audited_at(place)}
    if not results.places:  # then there is no figure that an audit could be beside
        covered = set(results.audits)
    without = {}
    for method in results.study.methods:
        missing = tuple(sorted(s for s in there.get(method.label, ()) if (method.label, s) not in covered))
        if missing:
            without[method.label] = missing
    return without, {label for label, _ in covered if results.places}


def verdicts(results: Results) -> list[ModelVerdict]:
    """The verdict on every model, method by method and seed by seed; empty without audits.

    Raises:
        RunDirectoryError: a table lacks a column.
    """
    indicators = analysis_table(results, INDICATOR_TABLE, ("name", "title"))
    titles: dict[str, str] = {}
    if indicators is not None:
        titles = dict(zip(indicators["name"], indicators["title"], strict=True))
    images = results.counts("n_images")
    return [
        ModelVerdict(
            method=method,
            said=said,
            under=under(said, results.study),
            images=images_text(said, images),
            failed=tuple(titles.get(name, name) for name in said.failed),
        )
        for method in results.study.methods
        for (label, _), said in sorted(results.audits.items())
        if label == method.label
    ]


def percent_text(share: Fraction) -> str:
    """A share in percent, for a reader."""
    return f"{number(100 * share, 3)} %"


def audit_text(run: Run) -> Group:
    """The audits of a run for the terminal: one line a model, with the verdict in its colour.

    A line also has the number that the verdict is about, the lowest that the audit found, and the tests that failed.
    Without audits there is no line.

    Raises:
        RunDirectoryError: the manifest or a table is damaged.
    """
    lines = []
    for item in verdicts(sort_results(run)):
        line = Text()
        line.append(f"{item.model}: ")
        line.append(item.mark, style=f"bold {_COLOURS[item.said.verdict]}")
        line.append(f"; {percent_text(item.said.audited)} under {item.under}, {item.images}")
        line.append(f"; the audit brought it to {percent_text(item.said.worst)}; {item.reason}")
        lines.append(line)
    return Group(*lines)
