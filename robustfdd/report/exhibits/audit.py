"""The audit: the verdict on every model, what every indicator says, and the pictures that they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from robustfdd.audited import LEAST_ATTACKED
from robustfdd.report.analyses import analysis_table, methods_of, seeds_of
from robustfdd.report.artefact import Artefact
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
from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Results
from robustfdd.report.study import VERDICT_MARKS, number, seed_text
from robustfdd.report.tables import count_text, seeds_text, shown_decimals
from robustfdd.report.verdicts import VERDICT_TABLE
from robustfdd.rounding import fixed

ORDER = 90

#: Where the indicators are explained, in the project.
GUIDE = "docs/audit.md"


def _texts(values: Any) -> str:
    """A list in one cell of a CSV file."""
    return " ".join(str(value) for value in listed(values))


def _seed(seed: int) -> str:
    return str(seed) if seed >= 0 else seed_text(seed)


def _verdict_table(results: Results, found: Sequence[ModelVerdict], frame: pd.DataFrame) -> Artefact:
    name, title = "audit-verdicts", "Can the figures be believed: the verdicts of the audit"
    counts = [item.said.n_images for item in found]
    decimals = shown_decimals(max(counts))
    alike = {item.under for item in found}
    which = f" under {found[0].under}" if len(alike) == 1 else ""
    marks = VERDICT_MARKS
    caption = (
        f"{results.study.dataset}; {count_text((min(counts), max(counts)))} test images, chosen evenly over the "
        f"classes. Audited: the robust accuracy{which}, on these images, which is in question; the verdict is about "
        "this number and no other. Worst found: the lowest that the audit brought it to at the same ε, image by "
        "image over everything it tried; the gap is the difference in points. "
        f"{marks['not believable']} not believable: the figure must not be quoted as robustness; "
        f"{marks['suspicious']} suspicious: there are signs that the attack does not work as it should; "
        f"{marks['believable']} believable: no test found such a sign, which is no proof; "
        f"{marks['no verdict']} no verdict: fewer than {LEAST_ATTACKED} images were attacked, and finding nothing says "
        "nothing. "
        f"The tests are explained in {GUIDE}."
    )
    starts = group_starts([item.said.method for item in found])
    under = () if len(alike) == 1 else ("Under",)
    rows = [
        (
            item.method.title if i == 0 or i in starts else "",
            _seed(item.said.seed),
            item.mark,
            *(item.under for _ in under),
            ", ".join(item.failed) or GAP,
            *(fixed(100 * share, decimals) for share in (item.said.clean, item.said.audited, item.said.worst)),
            fixed(item.said.gap, decimals),
        )
        for i, item in enumerate(found)
    ]
    names = ("Method", "Seed", "Verdict", *under, "Failed tests")
    grid = Grid(
        name=name,
        title=title,
        caption=caption,
        headers=(*names, "Clean (%)", "Audited (%)", "Worst found (%)", "Gap"),
        rows=tuple(rows),
        n_text=len(names),
        alarms=frozenset(i for i, item in enumerate(found) if item.said.verdict == "not believable"),
        rules=starts,
        prose=frozenset(range(3, len(names))),
    )
    # As the table has them: what an older audit concluded from too few images is no verdict.
    said = [results.audits[method, seed] for method, seed in zip(frame["method"], frame["seed"], strict=True)]
    data = frame[["method", "seed", *VERDICT_COLUMNS]].assign(
        verdict=[item.verdict for item in said],
        eps_normalized=[item.eps.normalized for item in said],
        failed=[_texts(value) for value in frame["failed"]],
    )
    return Artefact(name, title, caption, data, grid, section="audit", unfolded=True)


def _gravest(rows: pd.DataFrame) -> pd.Series[Any]:
    """Of the seeds of a method, the first with the gravest status."""
    order = list(STATUS_MARKS)
    grave = [order.index(str(status)) for status in rows["status"]]
    row: pd.Series[Any] = rows.iloc[int(np.argmax(grave))]
    return row


def _value(value: float) -> str:
    return "" if np.isnan(value) else f" {number(float(value), 3)}".replace("-", "−")


def _matrix(results: Results, frame: pd.DataFrame) -> Artefact:
    name, title = "audit-indicators", "The tests of the audit, test by test"
    methods = methods_of(results, frame)
    several = len(seeds_of(frame)) > 1
    tests = frame.drop_duplicates("number").sort_values("number", kind="stable")
    rows: list[tuple[str, ...]] = []
    marks = set()
    for test in tests.to_dict("records"):
        mine = frame[frame["number"] == test["number"]]
        cells = []
        for method in methods:
            own = mine[mine["method"] == method.label]
            if not len(own):
                cells.append(GAP)
                continue
            row = _gravest(own)
            if row["status"] in FAILED:
                marks.add((len(rows), 2 + len(cells)))
            cells.append(STATUS_MARKS[str(row["status"])] + _value(float(row["value"])))
        unit = f" ({test['unit']})" if test["unit"] else ""
        rows.append((f"{test['number']}. {test['title']}{unit}", str(test["threshold"]), *cells))
    symbols = ", ".join(f"{mark} {status}" for status, mark in reversed(STATUS_MARKS.items()))
    caption = (
        f"{results.study.dataset}; {seeds_text(seeds_of(frame))}. Each cell: how the test came out ({symbols}) and its "
        f"value{', of the seed with the gravest outcome' if several else ''}; bold: warnings and alarms. The CSV file "
        f"has every model by itself, with the images concerned. The tests are explained in {GUIDE}."
    )
    headers = ("Test", "Fails if", *(method.title for method in methods))
    grid = Grid(name, title, caption, headers, tuple(rows), 2, marks=frozenset(marks), prose=frozenset({0, 1}))
    data = frame[["method", "seed", *INDICATOR_COLUMNS]].assign(images=[_texts(value) for value in frame["images"]])
    return Artefact(name, title, caption, data, grid, section="audit")


def _findings(results: Results, frame: pd.DataFrame) -> Artefact | None:
    """What was found by the tests that failed; for a single model by all of them."""
    one = len(frame[["method", "seed"]].drop_duplicates()) == 1
    chosen = frame if one else frame[frame["status"].isin(FAILED)]
    if not len(chosen):
        return None
    name, title = "audit-findings", "What the audit found"
    titles = {method.label: method.title for method in results.study.methods}
    chosen = chosen.reset_index(drop=True)
    names = [f"{row['method']}\n{row['seed']}" for row in chosen.to_dict("records")]
    starts = group_starts(names)
    further = {"advice": "What to do", "source": "Source"}
    further = {column: header for column, header in further.items() if column in chosen.columns}
    rows, alarms = [], set()
    for i, row in enumerate(chosen.to_dict("records")):
        first = i == 0 or i in starts
        images = len(listed(row["images"]))
        concerned = f" Images concerned: {images:,}." if images else ""
        rows.append(
            (
                titles[row["method"]] if first else "",
                _seed(int(row["seed"])) if first else "",
                f"{row['number']}. {row['title']}",
                f"{STATUS_MARKS[str(row['status'])]} {row['status']}",
                f"{row['finding']}{concerned}",
                *(str(row[column]) for column in further),
            )
        )
        if row["status"] == "alarm":
            alarms.add(i)
    caption = (
        f"{results.study.dataset}. {'Every test' if one else 'Every test that warns or alarms'}, model by model, and "
        f"where it comes from. What each means, and what to do about it, is in {GUIDE}."
    )
    headers = ("Method", "Seed", "Test", "Outcome", "Finding", *further.values())
    grid = Grid(
        name=name,
        title=title,
        caption=caption,
        headers=headers,
        rows=tuple(rows),
        n_text=len(headers),
        rules=starts,
        alarms=frozenset(alarms),
        prose=frozenset({2, *range(4, len(headers))}),
    )
    data = chosen[["method", "seed", "number", "name", "status", "finding", *further]]
    return Artefact(name, title, caption, data, grid, section="audit")


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


def _pictures(results: Results, frame: pd.DataFrame) -> list[Artefact]:
    found = []
    for kind in [*PICTURES, *(name for name in dict.fromkeys(frame["picture"]) if name not in PICTURES)]:
        rows = frame[frame["picture"] == kind]
        if not len(rows):
            continue
        title, how = str(rows["title"].iloc[0]), PICTURES.get(str(kind), "")
        surface = any(len(listed(value)) for value in rows["z"])
        shown = rows
        if surface:
            first = rows.groupby("method")["seed"].transform("min")
            shown = rows[rows["seed"] == first]
        methods = methods_of(results, shown)
        figure = draw_surfaces(methods, shown) if surface else draw_lines(methods, shown, kind)
        lines = "" if surface or len(seeds_of(shown)) < 2 else " Dashed: further seeds."
        caption = f"{results.study.dataset}; {seeds_text(seeds_of(shown))}. {how}{lines}".rstrip()
        found.append(Artefact(f"audit-{kind}", title, caption, _points(rows), figure=figure, section="audit"))
    return found


def build(results: Results) -> list[Artefact]:
    """The tables and figures of the audits; none for a run without one."""
    frame = analysis_table(results, VERDICT_TABLE, VERDICT_COLUMNS)
    indicators = analysis_table(results, INDICATOR_TABLE, INDICATOR_COLUMNS)
    pictures = analysis_table(results, PICTURE_TABLE, PICTURE_COLUMNS)
    found: list[Artefact] = []
    if frame is not None:
        found.append(_verdict_table(results, verdicts(results), frame))
    if indicators is not None:
        check_status(indicators, results.run.path / "analysis")
        found.append(_matrix(results, indicators))
        findings = _findings(results, indicators)
        found += [findings] if findings else []
    return found + (_pictures(results, pictures) if pictures is not None else [])
