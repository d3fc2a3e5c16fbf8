"""Files of a run that have their checksum and hold what does not belong there: one message, never a traceback."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from report_runs import FakeAudit, FakeRun
from typer.testing import CliRunner

from robustfdd import records, schema
from robustfdd.audit.study import plan_of
from robustfdd.cli import app
from robustfdd.errors import RunDirectoryError
from robustfdd.manifest import check_same_run
from robustfdd.paper.exhibits import claims, figure3, table1, table2, table3
from robustfdd.records import Failure, Run, load_run, read_json, write_analysis, write_json
from robustfdd.report import combine, write_report
from robustfdd.report.agreement import compare_engines, detail_table
from robustfdd.report.analyses import analysis_table
from robustfdd.report.audit import verdicts
from robustfdd.report.columns import COLUMNS
from robustfdd.report.exhibits import audit, minimum_norm, random_forward
from robustfdd.report.notes import notes
from robustfdd.report.page import Section
from robustfdd.report.results import sort_results
from robustfdd.report.tables import main_tables
from robustfdd.report.training import training_table
from robustfdd.status import read_status

#: What somebody's program may have put in the place of a value.
WRONG: tuple[Any, ...] = (None, "x", -3, 0, 1.5, True, [], {}, [[1]], {"a": {"b": 1}}, ["linf"], 10**30, -1e300)
#: Values that each place is tried with; which, goes round.
TRIED = 2


def fake() -> FakeRun:
    variant = {"title": "FDD-2D", "site": "maps", "strategy": "density", "adaptive": True, "dynamic": True}
    return FakeRun(
        lambda key: (100, 900 - 100 * key.step, 100 * key.step),
        methods=[("none", "None"), ("fdd-2d", "FDD-2D")],
        engines=("foolbox", "art"),
        options={"fdd-2d": {"n_components": 2, "kappa": -0.8}},
        variants={"fdd-2d": variant},
        failures=[Failure("u9", "attack", "none", 0, "EngineError", "why", "Traceback", "fgsm", "linf", "art")],
        audits={("none", 0): FakeAudit("believable", pictures=False)},
        study={"audit": {"norm": "linf", "eps": 1.0, "images": 200}},
        epochs=1,
    )


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested settings."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def changed(content: dict[str, Any], place: tuple[Any, ...], value: Any, *, delete: bool = False) -> dict[str, Any]:
    whole = copy.deepcopy(content)
    inside: Any = whole
    for key in place[:-1]:
        inside = inside[key]
    if delete:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    return whole


def mutations(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, place in enumerate(places(content)):
        name = ".".join(map(str, place))
        yield f"{name} left out", changed(content, place, None, delete=True)
        for j in range(TRIED):
            value = WRONG[(i + 3 * j) % len(WRONG)]
            yield f"{name} = {value!r}", changed(content, place, value)


def tell(run: Run) -> None:
    """Everything of a report that is text."""
    results = sort_results(combine([run]))
    agreements = compare_engines(results)
    told = notes(results, agreements)
    for metric in ("robust_accuracy", "survival_rate"):
        assert all(len(table.caption) + len(table.frame) for table in main_tables(results, metric))
    for module in (audit, claims, minimum_norm, random_forward, table1, table2, table3):
        module.build(results)
    training_table(results)
    detail_table(agreements, results.study)
    section = Section(results, told, verdicts(results))
    assert section.facts
    assert section.settings
    assert section.provenance


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake().write(tmp_path_factory.mktemp("run"))


def test_whatever_a_manifest_holds_it_is_read_or_refused(run: Path, tmp_path: Path) -> None:
    whole = load_run(run)
    tell(whole)
    path = tmp_path / "manifest.json"
    refused: list[tuple[str, str]] = []
    for name, content in mutations(whole.manifest):
        write_json(path, content)
        try:
            manifest = records.read_manifest(tmp_path)
            assert manifest == json.loads(json.dumps(content))
            plan_of(manifest)
            tell(replace(whole, path=tmp_path, manifest=manifest))
            check_same_run(tmp_path, whole.manifest)
        except RunDirectoryError as error:
            refused.append((name, str(error)))
        except Exception as error:
            pytest.fail(f"{name}: {error!r}")
    assert len(refused) > 100
    for name, message in refused:
        assert str(tmp_path) in message or "manifest" in message, name
        assert len(message) < 1000, name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eps_scale": "0.25"}, r"eps_scale should be a valid number, not '0\.25'"),
        ({"units": [{"unit": "u"}]}, r"units\.0\.method is missing"),
        ({"overrides": {}}, "overrides should be a valid list"),
        ({"command": ["a"]}, "command should be a valid string"),
    ],
)
def test_file_key_and_what_belongs_there_are_named(
    run: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    write_json(tmp_path / "manifest.json", {**read_json(run / "manifest.json"), **change})
    with pytest.raises(RunDirectoryError, match=rf"{tmp_path}/manifest\.json: {says}"):
        load_run(tmp_path)
    for command in ("report", "compare", "status", "audit"):
        found = CliRunner().invoke(app, [command, str(tmp_path)])
        assert found.exit_code == 2, (command, found.output)
        assert "manifest.json" in found.output


@pytest.mark.parametrize("kind", ["models", "failures"])
def test_whatever_a_model_or_a_failure_holds_it_is_read_or_refused(run: Path, tmp_path: Path, kind: str) -> None:
    whole = load_run(run)
    write_json(tmp_path / "manifest.json", whole.manifest)
    (original,) = sorted((run / kind).glob("*.json"))[:1]
    path = tmp_path / kind / original.name
    refused: list[tuple[str, str]] = []
    for name, content in mutations(read_json(original)):
        write_json(path, content)
        try:
            if kind == "models":
                found = replace(whole, models=records.read_models(tmp_path))
            else:
                found = replace(whole, failures=[records.read_failure(path)])
            tell(found)
        except RunDirectoryError as error:
            refused.append((name, str(error)))
        except Exception as error:
            pytest.fail(f"{name}: {error!r}")
    assert len(refused) > 20
    assert all(str(path) in message for _, message in refused)
    write_json(path, {})
    assert read_status(tmp_path).tasks


def test_the_reports_that_come_with_the_code_hold_what_belongs_there() -> None:
    for path in sorted((ROOT / "evaluations" / "reports").glob("*/records/*/manifest.json")):
        assert schema.mistake(schema.Manifest, read_json(path)) is None, path
    for path in sorted((ROOT / "evaluations" / "reports").glob("*/records/*/models/*.json")):
        assert schema.mistake(schema.Model, read_json(path)) is None, path


#: One valid value of each kind of column, and what is none of it.
CELLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "text": ("none", (1, 1.5, True, None)),
    "count": (1, ("x", 1.5, -1, True)),
    "number": (1.5, ("x", True)),
    "share": (0.5, ("x", 1.5, -0.1, float("nan"))),
    "truth": (True, ("x", 1, 0.5)),
    "numbers": ([1.0], ("x", 1.5, ["x"])),
    "texts": (["x"], ("x", 1.5, [1.0])),
}


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_of_an_analysis_holds_what_belongs_there(run: Path, table: str) -> None:
    whole = replace(load_run(run), analyses={})
    good = {name: [CELLS[kind][0]] for name, kind in COLUMNS[table].items()}
    results = sort_results(whole)
    for name, kind in COLUMNS[table].items():
        for wrong in CELLS[kind][1]:
            frame = pd.DataFrame({"method": ["none"], "seed": [0], **good, name: [wrong]})
            found = replace(results, run=replace(whole, analyses={table: frame}))
            with pytest.raises(RunDirectoryError, match=rf"column {name} of the files {table}--\* must hold"):
                analysis_table(found, table, tuple(COLUMNS[table]))


def test_a_picture_of_another_size_is_refused(run: Path, tmp_path: Path) -> None:
    good = {name: [CELLS[kind][0]] for name, kind in COLUMNS["density-groups"].items()}
    frame = pd.DataFrame({**good, "heatmap": [np.zeros(5)], "height": [2], "width": [2]})
    path = fake().write(tmp_path)
    write_analysis(path, "density-groups", frame, method="none", seed=0, key="k")
    with pytest.raises(
        RunDirectoryError, match=r"heatmap of the files density-groups--.* must have height times width"
    ):
        figure3.build(sort_results(load_run(path)))


def test_images_radii_and_distances_of_results_are_checked(tmp_path: Path) -> None:
    def broken(**changes: Any) -> FakeRun:
        return replace(fake(), audits={}, failures=(), models=False, **changes)

    run = broken(distances=lambda key: np.full(1000, np.nan))
    with pytest.raises(RunDirectoryError, match=r"a distance.* is no number"):
        load_run(run.write(tmp_path / "a"))
    run = broken(eot_samples={"none": 2}, repeated=lambda key: (0.5, 1.5))
    with pytest.raises(RunDirectoryError, match="an accuracy is no number, or out of its range"):
        load_run(run.write(tmp_path / "b"))


@pytest.mark.parametrize(
    "place",
    [("study", "methods", 0, "options"), ("study", "open_choices"), ("versions",), ("git",)],
)
def test_a_whole_page_of_what_is_read(run: Path, tmp_path: Path, place: tuple[Any, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr("robustfdd.report.figures.render", lambda figure: {"png": b"png", "pdf": b"pdf"})
    whole = fake().write(tmp_path / "run")
    write_json(whole / "manifest.json", changed(read_json(whole / "manifest.json"), place, {"a": "b"}))
    assert write_report(whole).exists()


def test_what_lies_too_deep_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(900):
        nested = {"a": nested}
    assert "levels deep" in str(schema.mistake(schema.Manifest, {"format": 3, "hardware": nested}))
