"""The audit: the verdict on every model, what every indicator says, and the pictures that they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robustfdd.audited import LEAST_ATTACKED
from robustfdd.report.analyses import analysis_table, methods_of, seeds_of
from robustfdd.report.audit import (
    FAILED,
    INDICATOR_COLUMNS,
    INDICATOR_TABLE,
    PICTURE_COLUMNS,
    PICTURE_TABLE,
    STATUS_MARKS,
    VERDICT_COLUMNS,
    ModelVerdict,
    check_status,
    verdicts,
)
from robustfdd.report.audit_figures import PICTURES, draw_lines, draw_surfaces
from robustfdd.report.columns import listed
from robustfdd.report.exhibit import GAP, Column, Exhibit, table
from robustfdd.report.results import Results
from robustfdd.report.study import VERDICT_MARKS, Method, count_text, number, seed_number, seeds_text
from robustfdd.report.tables import shown_decimals
from robustfdd.report.verdicts import VERDICT_TABLE
from robustfdd.rounding import fixed

ORDER = 90

#: Where the indicators are explained, in the project.
GUIDE = "docs/audit.md"

_Row = Mapping[Any, Any]


def _texts(values: Any) -> str:
    """A list in one cell of a CSV file."""
    return " ".join(str(value) for value in listed(values))


def _verdict_caption(results: Results, found: Sequence[ModelVerdict], *, alike: bool) -> str:
    counts, marks = [item.said.n_images for item in found], VERDICT_MARKS
    return (
        f"{results.study.dataset}; {count_text((min(counts), max(counts)))} test images, chosen evenly over the "
        f"classes. Audited: the robust accuracy{f' under {found[0].under}' if alike else ''}, on these images, which "
        "is in question; the verdict is about this number and no other. Worst found: the lowest that the audit brought "
        "it to at the same ε, image by image over everything it tried; the gap is the difference in points. "
        f"{marks['not believable']} not believable: the figure must not be quoted as robustness; "
        f"{marks['suspicious']} suspicious: there are signs that the attack does not work as it should; "
        f"{marks['believable']} believable: no test found such a sign, which is no proof; "
        f"{marks['no verdict']} no verdict: fewer than {LEAST_ATTACKED} images were attacked, and finding nothing says "
        f"nothing. The tests are explained in {GUIDE}."
    )


def _verdict_table(results: Results, found: Sequence[ModelVerdict], frame: pd.DataFrame) -> Exhibit:
    decimals = shown_decimals(max(item.said.n_images for item in found))
    alike = len({item.under for item in found}) == 1
    under: list[Column[ModelVerdict]] = [Column("Under", lambda item: item.under, kind="prose")]
    columns: list[Column[ModelVerdict]] = [
        Column("Method", lambda item: item.method.title, kind="once"),
        Column("Seed", lambda item: seed_number(item.said.seed), kind="name"),
        Column("Verdict", lambda item: item.mark, kind="name"),
        *(() if alike else under),
        Column("Failed tests", lambda item: ", ".join(item.failed) or GAP, kind="prose"),
        Column("Clean (%)", lambda item: fixed(100 * item.said.clean, decimals)),
        Column("Audited (%)", lambda item: fixed(100 * item.said.audited, decimals)),
        Column("Worst found (%)", lambda item: fixed(100 * item.said.worst, decimals)),
        Column("Gap", lambda item: fixed(item.said.gap, decimals)),
    ]
    # As the table has them: what an older audit concluded from too few images is no verdict.
    said = [results.audits[method, seed] for method, seed in zip(frame["method"], frame["seed"], strict=True)]
    return table(
        "audit-verdicts",
        "Can the figures be believed: the verdicts of the audit",
        _verdict_caption(results, found, alike=alike),
        found,
        columns,
        frame=frame[["method", "seed", *VERDICT_COLUMNS]].assign(
            verdict=[item.verdict for item in said],
            eps_normalized=[item.eps.normalized for item in said],
            failed=[_texts(value) for value in frame["failed"]],
        ),
        group=lambda item: item.said.method,
        alarm=lambda item: item.said.verdict == "not believable",
        section="audit",
        unfolded=True,
    )


def _gravest(rows: pd.DataFrame) -> _Row | None:
    """Of the seeds of a method, the first with the gravest status; None without any."""
    order = list(STATUS_MARKS)
    return max(rows.to_dict("records"), key=lambda row: order.index(str(row["status"])), default=None)


def _outcome(row: _Row | None) -> str:
    """The mark of a test, and its value if it has one."""
    if row is None:
        return GAP
    value = float(row["value"])
    shown = "" if np.isnan(value) else f" {number(value, 3)}".replace("-", "−")
    return STATUS_MARKS[str(row["status"])] + shown


def _matrix(results: Results, frame: pd.DataFrame) -> Exhibit:
    cells = {key: _gravest(rows) for key, rows in frame.groupby(["number", "method"])}

    def column(method: Method) -> Column[_Row]:
        def cell(test: _Row) -> _Row | None:
            return cells.get((test["number"], method.label))

        return Column(
            method.title,
            lambda test: _outcome(cell(test)),
            bold=lambda test: (cell(test) or {}).get("status") in FAILED,
        )

    def title(test: _Row) -> str:
        return f"{test['number']}. {test['title']}" + (f" ({test['unit']})" if test["unit"] else "")

    seeds = seeds_of(frame)
    symbols = ", ".join(f"{mark} {status}" for status, mark in reversed(STATUS_MARKS.items()))
    caption = (
        f"{results.study.dataset}; {seeds_text(seeds)}. Each cell: how the test came out ({symbols}) and its "
        f"value{', of the seed with the gravest outcome' if len(seeds) > 1 else ''}; bold: warnings and alarms. The "
        f"CSV file has every model by itself, with the images concerned. The tests are explained in {GUIDE}."
    )
    columns: list[Column[_Row]] = [
        Column("Test", title, kind="prose"),
        Column("Fails if", lambda test: str(test["threshold"]), kind="prose"),
        *map(column, methods_of(results, frame)),
    ]
    return table(
        "audit-indicators",
        "The tests of the audit, test by test",
        caption,
        frame.drop_duplicates("number").sort_values("number", kind="stable").to_dict("records"),
        columns,
        frame=frame[["method", "seed", *INDICATOR_COLUMNS]].assign(images=[_texts(value) for value in frame["images"]]),
        section="audit",
    )


def _finding(row: _Row) -> str:
    images = len(listed(row["images"]))
    return f"{row['finding']}{f' Images concerned: {images:,}.' if images else ''}"


def _findings(results: Results, frame: pd.DataFrame) -> list[Exhibit]:
    """What was found by the tests that failed; for a single model by all of them."""
    one = len(frame[["method", "seed"]].drop_duplicates()) == 1
    chosen = frame if one else frame[frame["status"].isin(FAILED)]
    if not len(chosen):
        return []

    def further(name: str, header: str) -> list[Column[_Row]]:
        return [Column(header, lambda row: str(row[name]), kind="prose")] if name in chosen.columns else []

    columns: list[Column[_Row]] = [
        Column("Method", lambda row: results.study.method_title(row["method"]), kind="once"),
        Column("Seed", lambda row: seed_number(int(row["seed"])), kind="once"),
        Column("Test", lambda row: f"{row['number']}. {row['title']}", kind="prose"),
        Column("Outcome", lambda row: f"{STATUS_MARKS[str(row['status'])]} {row['status']}", kind="name"),
        Column("Finding", _finding, kind="prose"),
        *further("advice", "What to do"),
        *further("source", "Source"),
    ]
    caption = (
        f"{results.study.dataset}. {'Every test' if one else 'Every test that warns or alarms'}, model by model, and "
        f"where it comes from. What each means, and what to do about it, is in {GUIDE}."
    )
    names = ("method", "seed", "number", "name", "status", "finding", "advice", "source")
    return [
        table(
            "audit-findings",
            "What the audit found",
            caption,
            chosen.to_dict("records"),
            columns,
            frame=chosen[[name for name in names if name in chosen.columns]].reset_index(drop=True),
            group=lambda row: (row["method"], row["seed"]),
            alarm=lambda row: bool(row["status"] == "alarm"),
            section="audit",
        )
    ]


def _points(rows: pd.DataFrame) -> pd.DataFrame:
    """The lines and surfaces of a picture as data, one row a point."""
    parts = []
    for row in rows.to_dict("records"):
        x, y, z = (np.asarray(listed(row[axis]), dtype=np.float64) for axis in "xyz")
        points: dict[str, npt.NDArray[np.float64]] = {"x": x, "y": y}
        if len(z):
            points = {"x": np.tile(x, len(y)), "y": np.repeat(y, len(x)), "z": z}
        named = {"method": row["method"], "seed": row["seed"], "series": row["series"]}
        parts.append(pd.DataFrame(points).assign(**named)[[*named, *points]])
    points_of_all: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return points_of_all


def _pictures(results: Results, frame: pd.DataFrame) -> list[Exhibit]:
    found = []
    for kind in dict.fromkeys([*PICTURES, *frame["picture"]]):
        rows = frame[frame["picture"] == kind]
        if not len(rows):
            continue
        shown, surface = rows, any(len(listed(value)) for value in rows["z"])
        if surface:
            shown = rows[rows["seed"] == rows.groupby("method")["seed"].transform("min")]
        methods, seeds = methods_of(results, shown), seeds_of(shown)
        figure = draw_surfaces(methods, shown) if surface else draw_lines(methods, shown, kind)
        lines = "" if surface or len(seeds) < 2 else " Dashed: further seeds."
        caption = f"{results.study.dataset}; {seeds_text(seeds)}. {PICTURES.get(str(kind), '')}{lines}".rstrip()
        title = str(rows["title"].iloc[0])
        found.append(Exhibit(f"audit-{kind}", title, caption, _points(rows), figure=figure, section="audit"))
    return found


def build(results: Results) -> list[Exhibit]:
    """The tables and figures of the audits; none for a run without one."""
    frame = analysis_table(results, VERDICT_TABLE, VERDICT_COLUMNS)
    indicators = analysis_table(results, INDICATOR_TABLE, INDICATOR_COLUMNS)
    pictures = analysis_table(results, PICTURE_TABLE, PICTURE_COLUMNS)
    found = []
    if frame is not None:
        found.append(_verdict_table(results, verdicts(results), frame))
    if indicators is not None:
        check_status(indicators, results.run.path / "analysis")
        found += [_matrix(results, indicators), *_findings(results, indicators)]
    return found + (_pictures(results, pictures) if pictures is not None else [])
