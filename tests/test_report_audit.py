"""The audit in the report: marks beside what was audited, the section of the page, a page of an audit by itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from report_runs import INDICATORS, FakeAudit, FakeRun, Key
from rich.console import Console
from scipy.stats import beta

from robustfdd.audit import AuditedAttack
from robustfdd.audit.study import plan_of
from robustfdd.audited import ALARM_POINTS, LEAST_ATTACKED, PgdSettings, settings_of, verdict_of
from robustfdd.catalogue import load_attack, load_study
from robustfdd.errors import RunDirectoryError
from robustfdd.manifest import describe_attack, describe_study
from robustfdd.paper.compare import compare
from robustfdd.paper.comparison_tables import figures_table, summary_table
from robustfdd.records import STATUSES, VERDICTS, Status, load_run, write_analysis
from robustfdd.report import audit_text, combine, main_table_text, run_notes, write_report
from robustfdd.report.audit import STATUS_MARKS
from robustfdd.report.curves import interactive_figure, panels
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.exhibits import all_exhibits, audit
from robustfdd.report.latex import to_latex
from robustfdd.report.results import Results, sort_results
from robustfdd.report.study import VERDICT_MARKS
from robustfdd.report.tables import main_tables

GOOD = FakeAudit("believable", audited=0.5, worst=0.49)
DOUBTFUL = FakeAudit("suspicious", audited=0.5, worst=0.45, failed=("loss-at-end",))
BAD = FakeAudit("not believable", audited=0.6, worst=0.012, failed=("zero-gradients", "unbounded"))
AUDITS = {("none", 0): GOOD, ("none", 1): DOUBTFUL, ("fdd-2d", 0): BAD, ("fdd-2d", 1): GOOD}


def counts(key: Key) -> tuple[int, int, int]:
    broken = 0 if key.step == 0 else 100 * key.step + 50 * (key.attack == "pgd")
    return 100, 900 - broken, broken


def right(key: Key) -> list[int]:
    wrong, survived, _ = counts(key)
    return [0] * wrong + [1] * survived + [2] * (1000 - wrong - survived)


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time; where pictures are not looked at, none is drawn."""
    monkeypatch.setattr("robustfdd.report.figures.render", lambda figure: {"png": b"png", "pdf": b"pdf"})


quick = pytest.mark.usefixtures("_no_pictures")


def audited_run(audits: Mapping[tuple[str, int], FakeAudit] = AUDITS, **changes: Any) -> FakeRun:
    return FakeRun(
        right,
        attacks={"fgsm": "FGSM", "pgd": "PGD"},
        random_attacks=["pgd"],
        methods=[("none", "No dropout"), ("fdd-2d", "FDD-2D"), ("sap", "SAP")],
        seeds=(0, 1),
        audits=audits,
        epochs=1,
        **{"attack_settings": {"fgsm": {"parameters": {}}}, **changes},
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return sort_results(load_run(audited_run().write(tmp_path_factory.mktemp("audited"))))


def only_audit(path: Path, verdict: FakeAudit = BAD) -> Path:
    """What an audit of one model by itself leaves: no attacks, no units, no records."""
    run = FakeRun(
        right,
        methods=[("mine", "mine")],
        seeds=(-1,),
        attacks={},
        engines=(),
        models=False,
        audits={("mine", -1): verdict},
        study={
            "title": "Audit of mine",
            "seeds": [-1],
            "recipe": None,
            "open_choices": {},
            "model": {"class": "mine.Net", "sha256": "ff" * 32},
        },
    )
    return run.write(path)


def test_every_verdict_and_status_that_can_be_recorded_has_a_mark() -> None:
    assert tuple(VERDICT_MARKS) == VERDICTS
    assert set(STATUS_MARKS) == set(STATUSES)


#: What the audits of the fake runs are of.
UNDER = (
    "PGD on the cross-entropy, 10 steps of 0.1 ε, random start, last iterate, L∞, ε = 1 normalised (0.25 pixel), "
    "on the same 1,000 images"
)


def marked(grid: Exhibit) -> dict[tuple[str, str, str], str]:
    """The mark of every cell that has one, by attack, radius and method."""
    found, attack = {}, ""
    for row in grid.rows:
        attack = row[0] or attack
        for header, cell in zip(grid.headers[grid.n_text :], row[grid.n_text :], strict=True):
            if cell[-1:] in VERDICT_MARKS.values():
                found[attack, row[1], header] = cell[-1]
    return found


def test_a_mark_stands_at_the_audited_figure_and_has_the_gravest_seed(results: Results) -> None:
    for metric in ("robust_accuracy", "survival_rate"):
        (table,) = main_tables(results, metric)
        assert marked(table) == {("PGD", "1", "No dropout"): "?", ("PGD", "1", "FDD-2D"): "✗"}
        assert (
            f"Beside a figure: ? suspicious, ✗ not believable, by the audit of {UNDER}; figures without a mark were "
            "not audited here."
        ) in table.caption
        frame = table.frame
        audited = frame[(frame["attack"] == "pgd") & (frame["eps_normalized"] == 1)]
        assert audited["none verdict"].tolist() == ["suspicious"]
        assert frame["none verdict"].notna().sum() == 1
    assert [method.title for method in results.study.methods] == ["No dropout", "FDD-2D", "SAP"]


@quick
def test_no_name_has_a_mark(results: Results) -> None:
    exhibits = {artefact.name: artefact for artefact in all_exhibits(results)}
    assert {"table2-clean-accuracy", "worst-case-advantage-linf", "audit-indicators", "claims"} <= set(exhibits)
    for name, artefact in exhibits.items():
        for cell in artefact.headers:
            assert cell[-1:] not in VERDICT_MARKS.values(), f"{name}: {cell}"
    assert f"Not audited here: the audit was of {UNDER}." in exhibits["worst-case-advantage-linf"].caption
    shown = interactive_figure(panels(results), seeds=2, decimals=1)
    assert [trace["name"] for trace in shown["data"][:3]] == ["No dropout", "FDD-2D", "SAP"]
    pgd = next(panel for panel in panels(results) if panel.attack == "pgd")
    assert [entry.text(1)[-1] for entry in pgd.curves[1].entries] == ["0", "0", "✗"]


#: What is changed in the number that is audited, against that of the table, and what of an audit or run is changed.
ANOTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the norm": ({"norm": "l2"}, {}),
    "the radius": ({"eps_pixel": 0.0625}, {}),
    "the number of steps": ({"attack": GOOD.attack.replace("10 steps", "40 steps")}, {}),
    "the length of steps": ({"attack": GOOD.attack.replace("of 0.1", "of 0.25")}, {}),
    "the start": ({"attack": GOOD.attack.replace("random", "no random")}, {}),
    "the iterate": ({"attack": GOOD.attack.replace("last", "best")}, {}),
    "the images": ({"n_images": 2000}, {}),
    "the passes": ({"eot_samples": 4}, {}),
    "words of another program": ({"attack": "PGD-10"}, {}),
    "the protocol": ({}, {"study": {"protocol": "strong"}}),
    "the precision": ({}, {"study": {"attack_precision": "bf16"}}),
    "the loss": ({}, {"attack_settings": {"fgsm": {"parameters": {}}, "pgd": {"plain_pgd": False}}}),
    "the model that examples are made on": (
        {},
        {"attack_settings": {"fgsm": {"parameters": {}}, "pgd": {"source": "other", "access": "transfer"}}},
    ),
    "further parameters": (
        {},
        {
            "attack_settings": {
                "fgsm": {"parameters": {}},
                "pgd": {"parameters": {"steps": 10, "relative_step": 0.1, "momentum": 1.0}},
            }
        },
    ),
}


@pytest.mark.parametrize("what", ANOTHER)
def test_where_one_thing_of_the_number_differs_there_is_no_verdict(tmp_path: Path, what: str) -> None:
    of_audit, of_run = ANOTHER[what]
    audit_ = replace(GOOD, **of_audit)
    run = audited_run({(m, s): audit_ for m in ("none", "fdd-2d", "sap") for s in (0, 1)}, **of_run)
    found = sort_results(load_run(run.write(tmp_path)))
    for metric in ("robust_accuracy", "survival_rate"):
        for table in main_tables(found, metric):
            assert marked(table) == {}
            assert "Not audited here: the audit was of " in table.caption
            assert not any("verdict" in column for column in table.frame.columns)
    notes = {note.title: note for note in run_notes(found.run)}
    assert notes["Not audited: all methods"].level == "warning"
    assert "What was audited is another number: " in notes["Not audited: all methods"].text
    assert "Only the marked figures were audited" not in notes


def test_only_the_radius_and_norm_that_were_audited_are_marked(tmp_path: Path) -> None:
    audits = {
        ("none", 0): replace(GOOD, norm="l2", eps_pixel=0.125),
        ("none", 1): replace(GOOD, norm="l2", eps_pixel=0.125),
    }
    run = audited_run(audits, eps={"linf": [0.5, 1.0], "l2": [0.5, 1.0]})
    linf, l2 = main_tables(sort_results(load_run(run.write(tmp_path))))
    assert marked(linf) == {}
    assert marked(l2) == {("PGD", "0.5", "No dropout"): "✓"}
    assert "Not audited here: the audit was of" in linf.caption
    assert "Beside a figure: ✓ believable, by the audit of" in l2.caption


def test_a_sample_of_the_images_is_said_to_be_one(tmp_path: Path) -> None:
    few = replace(GOOD, n_images=200)
    run = audited_run({("none", seed): few for seed in (0, 1)})
    found = sort_results(load_run(run.write(tmp_path)))
    (table,) = main_tables(found)
    assert marked(table) == {("PGD", "1", "No dropout"): "✓"}
    assert "ε = 1 normalised (0.25 pixel), on 200 of the 1,000 images" in table.caption


def test_a_mean_is_believable_only_if_all_its_seeds_are(tmp_path: Path) -> None:
    found = sort_results(load_run(audited_run({("none", 0): GOOD, ("fdd-2d", 0): BAD}).write(tmp_path)))
    (table,) = main_tables(found)
    assert marked(table) == {("PGD", "1", "FDD-2D"): "✗"}
    titles = [note.title for note in run_notes(found.run)]
    assert "Not audited: No dropout (seed 1), FDD-2D (seed 1), SAP" in titles


def test_too_few_attacked_images_give_no_verdict(tmp_path: Path) -> None:
    # As an earlier version recorded it: 2 of 100 images were right, and nothing was found on them.
    few = replace(GOOD, n_images=100, clean=0.02, audited=0.02, worst=0.02)
    run = audited_run({("none", 0): few, ("none", 1): few, ("fdd-2d", 0): replace(BAD, n_images=100, clean=0.02)})
    found = sort_results(load_run(run.write(tmp_path)))
    (table,) = main_tables(found)
    assert marked(table) == {("PGD", "1", "No dropout"): "○", ("PGD", "1", "FDD-2D"): "✗"}
    notes = {note.title: note for note in run_notes(found.run)}
    assert notes["No verdict: No dropout"].level == "warning"
    assert f"below {LEAST_ATTACKED} of them" in notes["No verdict: No dropout"].text
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        console = Console(width=500, record=True, file=file)
        console.print(audit_text(found.run))
    lines = console.export_text().splitlines()
    assert "No dropout, seed 0: ○ no verdict; 2 % under" in lines[0]
    assert lines[0].endswith("only 2 images were attacked, and on fewer than 46 finding nothing says nothing")


def test_the_least_number_of_images_is_that_of_the_interval() -> None:
    def upper(n: int) -> float:
        """Clopper and Pearson's one-sided bound for the share, with one image found of n."""
        return float(beta.ppf(0.95, 2, n - 1))

    assert upper(LEAST_ATTACKED) <= ALARM_POINTS / 100 < upper(LEAST_ATTACKED - 1)


@pytest.mark.parametrize(
    ("found", "n_attacked", "verdict"),
    [
        (["passed", "not applicable"], LEAST_ATTACKED, "believable"),
        (["passed", "warning"], LEAST_ATTACKED, "suspicious"),
        (["warning", "alarm", "passed"], LEAST_ATTACKED, "not believable"),
        (["passed"], LEAST_ATTACKED - 1, "no verdict"),
        (["warning"], 2, "no verdict"),
        (["not applicable"], 0, "no verdict"),
        (["alarm"], 1, "not believable"),
    ],
)
def test_a_verdict_needs_enough_images(found: list[Status], n_attacked: int, verdict: str) -> None:
    assert verdict_of(found, n_attacked) == verdict


def test_the_words_of_an_attack_are_read_as_they_were_written() -> None:
    for attack in (AuditedAttack(), AuditedAttack(7, 1 / 3, random_start=False, best_iterate=False)):
        read = PgdSettings.parse(str(attack))
        assert read is not None
        assert str(read) == str(attack)
        assert (read.steps, read.random_start, read.best_iterate) == (
            attack.steps,
            attack.random_start,
            attack.best_iterate,
        )
        assert read.step == pytest.approx(attack.step, rel=1e-8)
    assert PgdSettings.parse("PGD on the cross-entropy, 10 steps of 1.e.e ε, random start, last iterate") is None


def test_the_attacks_of_the_paper_are_those_of_the_audits_of_its_studies() -> None:
    """What a study audits by itself is a row of its own tables, whatever it is called."""
    manifest = {"study": describe_study(load_study("quickstart")), "eps_scale": 1.0}
    plan = plan_of(manifest)
    attacks = {attack["name"]: settings_of(attack, "paper") for attack in manifest["study"]["attacks"]}
    assert attacks["fgsm"] is None
    assert attacks["pgd"] is not None
    assert str(attacks["pgd"]) == str(plan.attack)
    assert attacks["bim"] != attacks["pgd"]


def test_an_attack_of_another_loss_is_described_as_such() -> None:
    spec = load_attack("pgd")
    native = spec.engines["native"]["linf"]
    other = native.model_copy(update={"arguments": {**native.arguments, "loss": "margin"}})
    mine = spec.model_copy(update={"engines": {"native": {"linf": other}}})
    assert "plain_pgd" not in describe_attack(spec, {})
    assert describe_attack(mine, {})["plain_pgd"] is False
    assert settings_of(describe_attack(mine, {}), "paper") is None


def test_a_comparison_with_the_paper_has_the_marks(tmp_path: Path) -> None:
    audits = {key: replace(value, eps_pixel=0.03 * 0.25) for key, value in AUDITS.items()}
    run = audited_run(
        audits,
        options={"fdd-2d": {}},
        eps={"linf": [0.02, 0.03]},
        study={"dataset": "fashion-mnist", "normalization": "zero-one"},
        manifest={"dataset": {"name": "fashion-mnist", "title": "Fashion-MNIST", "n_test": 10_000}},
    )
    comparison = compare(sort_results(load_run(run.write(tmp_path))))
    grid = figures_table(comparison, next(place for place in comparison.places if place.name == "table3"))
    cells = [cell for row in grid.rows for cell in row if cell[-1:] in VERDICT_MARKS.values()]
    assert [cell[-1] for cell in cells] == ["?", "✗"]
    assert "✗ not believable, by the audit of" in grid.caption
    assert "Beats Non-dropout" in summary_table(comparison).headers


def test_labels_stay_as_they_are(results: Results) -> None:
    frame = main_tables(results)[0].frame
    assert {"none", "fdd-2d", "sap"} <= set(frame.columns)
    assert not any(mark in column for column in frame.columns for mark in VERDICT_MARKS.values())


def test_the_banner_says_what_is_in_doubt_and_what_was_not_audited(results: Results) -> None:
    notes = {note.title: note for note in run_notes(results.run)}
    for title in ("Not believable: FDD-2D", "Suspicious: No dropout", "Not audited: SAP"):
        assert notes[title].level == "warning"


def test_all_models_believable(tmp_path: Path) -> None:
    run = audited_run({(method, seed): GOOD for method in ("none", "fdd-2d", "sap") for seed in (0, 1)})
    notes = {note.title: note for note in run_notes(load_run(run.write(tmp_path)))}
    assert not any(title.startswith(("Not audited", "Suspicious", "Not believable")) for title in notes)
    # ... at one number: of the others nothing is known.
    assert UNDER in notes["Only the marked figures were audited"].text


def test_nothing_audited(tmp_path: Path) -> None:
    run = load_run(audited_run({}).write(tmp_path))
    assert [n.level for n in run_notes(run) if n.title == "Not audited: all methods"] == ["warning"]
    found = sort_results(run)
    assert "Whether the figures can be believed was not tested (not audited)." in main_tables(found)[0].caption
    assert audit.build(found) == []


def test_an_unknown_verdict_or_status_is_an_error(tmp_path: Path) -> None:
    path = audited_run({("none", 0): replace(GOOD, verdict="fine")}).write(tmp_path / "verdict")
    with pytest.raises(
        RunDirectoryError, match=r"audit_verdict--\* have the verdict 'fine'; allowed: believable, no verd"
    ):
        sort_results(load_run(path))
    path = audited_run({}).write(tmp_path / "status")
    GOOD.write(path, "none", 0)
    odd = GOOD.indicator_table().assign(status="odd")
    write_analysis(path, "audit_indicators", odd, method="none", seed=0, key="key")
    with pytest.raises(RunDirectoryError, match=r"audit_indicators--\* have the status 'odd'"):
        audit.build(sort_results(load_run(path)))


def exhibits(results: Results) -> dict[str, Any]:
    found = {artefact.name: artefact for artefact in audit.build(results)}
    assert all(artefact.section == "audit" for artefact in found.values())
    return found


@quick
def test_the_table_of_verdicts(results: Results) -> None:
    found = exhibits(results)["audit-verdicts"]
    assert found.headers == (
        *("Method", "Seed", "Verdict", "Failed tests", "Clean (%)", "Audited (%)", "Worst found (%)", "Gap"),
    )
    assert found.rows == (
        ("No dropout", "0", "✓ believable", "–", "90.0", "50.0", "49.0", "1.0"),
        ("", "1", "? suspicious", "Loss still rising at the end", "90.0", "50.0", "45.0", "5.0"),
        ("FDD-2D", "0", "✗ not believable", "Input gradients of zero, Unbounded budget", "90.0", "60.0", "1.2", "58.8"),
        ("", "1", "✓ believable", "–", "90.0", "50.0", "49.0", "1.0"),
    )
    assert found.alarms == {2}
    assert f"under {UNDER.rpartition(', ')[0]}" in found.caption
    assert "docs/audit.md" in found.caption
    assert found.frame["failed"].tolist() == ["", "loss-at-end", "zero-gradients unbounded", ""]


@quick
def test_radii_that_differ_have_a_column(tmp_path: Path) -> None:
    path = audited_run().write(tmp_path)
    frame = GOOD.verdict_table().assign(norm="l2", eps_pixel=0.5, eps_normalized=2.0)
    write_analysis(path, "audit_verdict", frame, method="none", seed=0, key="key")
    found = exhibits(sort_results(load_run(path)))["audit-verdicts"]
    assert found.headers[3] == "Under"
    assert found.rows[0][3] == GOOD.attack + ", L2, ε = 2 normalised (0.5 pixel)"


@quick
def test_the_matrix_has_the_gravest_seed_of_every_test(results: Results) -> None:
    found = exhibits(results)["audit-indicators"]
    assert found.headers == ("Test", "Fails if", "No dropout", "FDD-2D")
    by_test = {row[0]: row[2:] for row in found.rows}
    assert by_test == {
        "1. Random forward pass": ("–", "–"),
        "3. Input gradients of zero (%)": ("✓ 0.375", "✗ 0.375"),
        "5. Unbounded budget (%)": ("✓ 0.625", "✗ 0.625"),
        "9. Loss still rising at the end": ("✗ 1.13", "✓ 1.13"),
        "15. Size of the logits (points)": ("✓ 1.88", "✓ 1.88"),
    }
    assert found.marks == {(1, 3), (2, 3), (3, 2)}
    # The data: every test of every model, with the images concerned.
    assert len(found.frame) == 4 * len(INDICATORS)
    row = found.frame[(found.frame["method"] == "fdd-2d") & (found.frame["name"] == "unbounded")].iloc[0]
    assert (row["seed"], row["status"], row["images"]) == (0, "alarm", "0 1 2")


@quick
def test_findings_of_what_failed(results: Results) -> None:
    found = exhibits(results)["audit-findings"]
    assert found.headers == ("Method", "Seed", "Test", "Outcome", "Finding", "Source")
    assert [row[:4] for row in found.rows] == [
        ("No dropout", "1", "9. Loss still rising at the end", "✗ alarm"),
        ("FDD-2D", "0", "3. Input gradients of zero", "✗ alarm"),
        ("", "", "5. Unbounded budget", "✗ alarm"),
    ]
    assert found.rows[0][4:] == ("What loss-at-end found: alarm. Images concerned: 3.", "Somebody 2019")
    assert "docs/audit.md" in found.caption


@quick
def test_advice_is_shown_where_the_audit_gives_some(tmp_path: Path) -> None:
    path = only_audit(tmp_path)
    frame = BAD.indicator_table().assign(advice="Divide the logits.")
    write_analysis(path, "audit_indicators", frame, method="mine", seed=-1, key="key")
    found = exhibits(sort_results(load_run(path)))["audit-findings"]
    assert found.headers[-2:] == ("What to do", "Source")
    assert found.rows[0][-2] == "Divide the logits."


def drawn(results: Results, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr("robustfdd.report.figures.render", lambda figure: figures.append(figure) or {})
    audit.build(results)
    return figures


def test_pictures_have_a_panel_for_every_method(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(results, monkeypatch)
    assert len(figures) == 5
    loss, surface, unbounded, steps, scale = figures
    for figure in (loss, unbounded, steps, scale):
        assert [axes.get_title() for axes in figure.axes] == ["No dropout", "FDD-2D"]
    # Two series of two seeds, the second seed dashed.
    assert [line.get_linestyle() for line in loss.axes[0].lines] == ["-", "-", "--", "--"]
    colours = [line.get_color() for line in loss.axes[0].lines]
    assert colours[:2] == colours[2:]
    assert colours[0] != colours[1]
    assert [text.get_text() for text in loss.legends[0].get_texts()] == ["plain", "logits / 10"]
    assert [figure.axes[0].get_xscale() for figure in (loss, unbounded, steps, scale)] == [
        *("linear", "symlog", "log", "log"),
    ]
    # Both panels are on one scale that holds the highest of all lines.
    assert {axes.get_ylim() for axes in unbounded.axes} == {unbounded.axes[0].get_ylim()}
    assert unbounded.axes[0].get_ylim()[0] == 0
    assert unbounded.axes[0].get_ylim()[1] > 60
    assert unbounded.axes[0].lines[0].get_ydata()[0] == 50
    assert surface.axes[1].get_title() == "FDD-2D\n−7.98 to 16"


@quick
def test_a_surface_is_drawn_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = only_audit(tmp_path)
    x, y = np.array([0.0, 1.0, 2.0]), np.array([10.0, 20.0])
    z = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])  # at y = 10 first, then at y = 20
    columns = {"picture": "loss-surface", "series": "s", "x_title": "X", "y_title": "Y", "title": "T"}
    frame = pd.DataFrame([{**columns, "x": x, "y": y, "z": z}])
    write_analysis(path, "audit_pictures", frame, method="mine", seed=-1, key="key")
    results = sort_results(load_run(path))
    (figure,) = drawn(results, monkeypatch)
    mesh = figure.axes[0].collections[0]
    assert np.asarray(mesh.get_array()).reshape(2, 3).tolist() == [[0, 1, 2], [3, 4, 5]]
    data = exhibits(results)["audit-loss-surface"].frame
    assert data[["x", "y", "z"]].to_numpy().tolist() == [
        [0, 10, 0],
        [1, 10, 1],
        [2, 10, 2],
        [0, 20, 3],
        [1, 20, 4],
        [2, 20, 5],
    ]


def test_many_lines_need_no_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = only_audit(tmp_path)
    one = BAD.picture_table().iloc[0].to_dict()
    frame = pd.DataFrame([{**one, "series": f"image {i}"} for i in range(12)])
    write_analysis(path, "audit_pictures", frame, method="mine", seed=-1, key="key")
    (figure,) = drawn(sort_results(load_run(path)), monkeypatch)
    assert figure.legends == []
    assert len({line.get_color() for line in figure.axes[0].lines}) == 1


def test_the_font_has_the_marks() -> None:
    font = get_font(findfont("DejaVu Sans"))
    for mark in (*VERDICT_MARKS.values(), *STATUS_MARKS.values()):
        assert font.get_char_index(ord(mark)), mark


def page_text(index: Path) -> str:
    text = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", index.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", text).replace("\u00a0", " ").split())


def test_the_page_has_the_audit_after_the_main_tables(tmp_path: Path) -> None:
    index = write_report(audited_run().write(tmp_path / "run"))
    html = index.read_text(encoding="utf-8")
    order = ['id="robust"', 'id="exhibit-worst-case-advantage-linf"', 'id="audit"', 'id="exhibit-audit-verdicts"']
    order += ['id="exhibit-audit-indicators"', 'id="exhibit-audit-findings"', 'id="exhibit-audit-loss-along-attack"']
    order += ['id="curves"', 'id="survival"']
    places = [html.index(item) for item in order]
    assert places == sorted(places)
    text = page_text(index)
    assert "Warning: Not believable: FDD-2D." in text
    assert "Thin lines without marks: the worst case" in text
    # The verdict in large letters is for an audit by itself.
    assert 'class="verdict' not in html
    written = {path.name for path in (tmp_path / "run" / "report").rglob("audit-*")}
    assert {"audit-verdicts.tex", "audit-indicators.csv", "audit-loss-surface.csv", "audit-steps.pdf"} <= written


@quick
@pytest.mark.parametrize(
    ("audit_", "css", "words"),
    [
        (BAD, "not-believable", "✗ Not believable"),
        (DOUBTFUL, "suspicious", "? Suspicious"),
        (GOOD, "believable", "✓ Bel"),
    ],
)
def test_an_audit_by_itself_has_a_page_that_begins_with_the_verdict(
    tmp_path: Path, audit_: FakeAudit, css: str, words: str
) -> None:
    path = only_audit(tmp_path / "run", audit_)
    index = write_report(path)
    html, text = index.read_text(encoding="utf-8"), page_text(index)
    assert f'<div class="verdict {css}">' in html
    assert html.index('class="verdict') < html.index('id="measured"') < html.index('id="audit"')
    assert words in text
    assert f"mine: the accuracy of {100 * audit_.audited:.3g} % under PGD" in " ".join(text.split())
    assert "ε = 0.25 pixel, on 1,000 images" in text
    for absent in ('id="robust"', 'id="curves"', 'id="survival"', 'id="agreement"', "plotly"):
        assert absent not in html
    for href in re.findall(r'href="#([^"]+)"', html):
        assert f'id="{href}"' in html
    run = load_run(path)
    titles = [note.title for note in run_notes(run)]
    assert not any(title.startswith(("Not audited", "There are no results")) for title in titles)
    assert main_tables(sort_results(run)) == []
    assert panels(sort_results(run)) == []
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        Console(file=file).print(main_table_text(run))
    # For a single model, what every test found.
    findings = exhibits(sort_results(run))["audit-findings"]
    assert len(findings.rows) == len(INDICATORS)
    assert not (path / "report" / "tables" / "results.csv").exists()


@quick
def test_a_study_with_attacks_needs_engines_and_one_with_nothing_is_not_audited(tmp_path: Path) -> None:
    path = audited_run().write(tmp_path / "a")
    run = load_run(path)
    run.manifest["study"]["engines"] = []
    run.manifest["units"] = []
    with pytest.raises(RunDirectoryError, match="the study has attacks, but no engines"):
        sort_results(run)
    nothing = FakeRun(right, attacks={}, engines=(), models=False).write(tmp_path / "b")
    assert "There are no results yet" in [note.title for note in run_notes(load_run(nothing))]
    assert "No model was audited" in page_text(write_report(nothing))


def test_audits_of_runs_put_together(tmp_path: Path) -> None:
    parts = [
        replace(
            audited_run({key: value for key, value in AUDITS.items() if key[1] == seed}),
            seeds=(seed,),
            study={"seeds": [seed]},
            first_unit=100 * seed,
        ).write(tmp_path / str(seed))
        for seed in (0, 1)
    ]
    (table,) = main_tables(sort_results(combine([load_run(part) for part in parts])))
    assert marked(table) == {("PGD", "1", "No dropout"): "?", ("PGD", "1", "FDD-2D"): "✗"}


def test_one_line_a_model_for_the_terminal(tmp_path: Path) -> None:
    run = load_run(audited_run().write(tmp_path / "run"))
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        console = Console(width=500, record=True, file=file, force_terminal=True, color_system="standard")
        console.print(audit_text(run))
    lines = console.export_text(clear=False).splitlines()
    assert lines[0] == (
        f"No dropout, seed 0: ✓ believable; 50 % under {UNDER}; the audit brought it to 49 %; every test that "
        "applies was passed"
    )
    assert "FDD-2D, seed 0: ✗ not believable; 60 % under" in lines[2]
    assert lines[2].endswith("to 1.2 %; failed: Input gradients of zero, Unbounded budget")
    assert len(lines) == 4
    styled = console.export_text(styles=True)
    assert re.search(r"\x1b\[1;31m✗ not believable", styled)
    assert re.search(r"\x1b\[1;32m✓ believable", styled)
    single = load_run(only_audit(tmp_path / "single"))
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        console = Console(width=500, record=True, file=file)
        console.print(audit_text(single))
    assert console.export_text().startswith("mine: ✗ not believable; 60 % under")


@quick
def test_the_marks_in_latex_need_no_further_package(tmp_path: Path, results: Results) -> None:
    tables = [exhibit for exhibit in [*main_tables(results), *all_exhibits(results)] if exhibit.headers]
    body = "".join(to_latex(exhibit, label=exhibit.name) for exhibit in tables)
    assert re.search(r"\d (?:\$\\pm\$ \d+\.\d )?\$\\times\$", body)
    assert r"$\surd$ 0.375" in body
    assert r"{[}U+" not in body
    assert body.isascii()
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("pdflatex is not installed")
    text = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + body + "\n\\end{document}\n"
    (tmp_path / "report.tex").write_text(text, encoding="ascii")
    done = subprocess.run(
        [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "report.tex"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
