"""Runs put together: the same tables as one run would have given, and a clear refusal of what does not belong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report_runs import FakeAudit, FakeRun, Key
from typer.testing import CliRunner

from robustfdd.cli import app
from robustfdd.errors import ConfigurationError, RunDirectoryError
from robustfdd.paper.exhibits.table2 import build as table2
from robustfdd.records import Failure, Run, load_run, write_analysis
from robustfdd.report import combine, run_notes, write_report
from robustfdd.report.exhibits import all_exhibits
from robustfdd.report.results import sort_results
from robustfdd.report.tables import main_rows, main_tables

N = 1000


def counts(key: Key) -> tuple[int, int, int]:
    right = 900 + 5 * key.seed + (20 if key.method == "fdd-2d" else 0)
    survived = right if key.step == 0 else right - 150 * key.step - 3 * key.seed
    return (N - right, survived, right - survived)


SEED_0 = FakeRun(counts, seeds=(0,), study={"seeds": [0]}, manifest={"overrides": ["seeds=[0]"]})
SEED_1 = replace(SEED_0, seeds=(1,), study={"seeds": [1]}, manifest={"overrides": ["seeds=[1]"]}, first_unit=100)


def load(run: FakeRun, path: Path) -> Run:
    return load_run(run.write(path))


def test_seeds_run_apart_give_the_tables_of_one_run(tmp_path: Path) -> None:
    parts = [load(SEED_0, tmp_path / "a"), load(SEED_1, tmp_path / "b")]
    whole = load(replace(SEED_0, seeds=(0, 1)), tmp_path / "whole")
    combined, expected = sort_results(combine(parts)), sort_results(whole)
    for found, wanted in zip(main_tables(combined), main_tables(expected), strict=True):
        pd.testing.assert_frame_equal(found.frame, wanted.frame)
        assert found.caption == wanted.caption
    (found_2,), (wanted_2,) = table2(combined), table2(expected)
    pd.testing.assert_frame_equal(found_2.frame, wanted_2.frame)
    assert combined.study.seeds == (0, 1)
    assert combined.unplanned == 0
    assert [state.missing for state in combined.unit_states()] == [0] * 4
    assert {note.title for note in run_notes(combined.run)} == {
        "The study was run with changes",
        "Not audited: all methods",
    }


def test_every_part_keeps_its_provenance(tmp_path: Path) -> None:
    second = replace(
        SEED_1,
        manifest={**SEED_1.manifest, "command": "second", "versions": {"robustfdd": "0.1", "torch": "2.5"}},
        study={**SEED_1.study, "title": "Other title"},
    )
    run = combine([load(SEED_0, tmp_path / "a"), load(second, tmp_path / "b")])
    manifest = run.manifest
    assert manifest["overrides"] == ["a: seeds=[0]", "b: seeds=[1]"]
    assert [part["name"] for part in manifest["parts"]] == ["a", "b"]
    assert [part["command"] for part in manifest["parts"]] == ["robustfdd run toy", "second"]
    assert [part["versions"]["torch"] for part in manifest["parts"]] == ["2.4", "2.5"]
    assert [part["seeds"] for part in manifest["parts"]] == [[0], [1]]
    for key in ("created", "overrides", "hardware", "git"):
        assert manifest["parts"][1][key] == load_run(tmp_path / "b").manifest[key]
    # What is true of a part only is not said of the whole.
    assert "versions" not in manifest
    assert "command" not in manifest
    assert manifest["hardware"] == {"device": "cpu", "cores": 2}
    assert manifest["study"]["title"] == "Toy study; Other title"
    assert run.path == tmp_path / "a"
    warning = next(note for note in run_notes(run) if note.title == "The runs were made with different versions")
    assert warning.level == "warning"
    assert warning.text.startswith("torch: 2.4 in a, 2.5 in b. ")


def test_other_machines_are_noted(tmp_path: Path) -> None:
    second = replace(
        SEED_1, manifest={"hardware": {"device": "cuda", "cores": 2}, "git": {"dirty": True, "commit": "c"}}
    )
    notes = {n.title: n for n in run_notes(combine([load(SEED_0, tmp_path / "a"), load(second, tmp_path / "b")]))}
    assert notes["The runs were made on different machines"].text.startswith("device: cpu in a, cuda in b. ")
    assert notes["The runs were made on different machines"].level == "info"
    assert notes["Uncommitted code"].text.endswith("noted: c.")


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    run = combine([load(SEED_0, tmp_path / "x" / "run"), load(SEED_1, tmp_path / "y" / "run")])
    names = [part["name"] for part in run.manifest["parts"]]
    assert names == [str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")]


def test_one_run_stays_as_it_is(tmp_path: Path) -> None:
    run = load(SEED_0, tmp_path)
    assert combine([run]) is run
    with pytest.raises(ConfigurationError, match="at least one"):
        combine([])


def test_methods_attacks_and_engines_are_united(tmp_path: Path) -> None:
    first = replace(SEED_0, eps={"linf": [0.5, 1.0]})
    other = replace(SEED_0, methods=[("sap", "SAP")], attacks={"pgd": "PGD", "fgsm": "FGSM"}, first_unit=10)
    other = replace(other, eps={"linf": [0.25, 1.0], "l2": [2.0]}, engines=("foolbox", "art"))
    failure = Failure("u0011", "attack", "sap", 0, "EngineError", "why", "trace", "pgd", "linf", "art")
    other = replace(other, failures=[failure])
    run = combine([load(first, tmp_path / "a"), load(other, tmp_path / "b")])
    results = sort_results(run)
    study = results.study
    assert [method.label for method in study.methods] == ["none", "fdd-2d", "sap"]
    assert [attack.name for attack in study.attacks] == ["fgsm", "pgd"]
    assert study.norms == ("linf", "l2")
    assert study.engines == ("foolbox", "art")
    assert [eps.normalized for eps in study.grid("fgsm", "linf")] == [0.25, 0.5, 1.0]
    assert [eps.normalized for eps in study.grid("pgd", "linf")] == [0.25, 1.0]
    assert results.unplanned == 0
    assert run.failures == [failure]
    rows = main_tables(results)[0].rows
    assert [(*row[:2], *(cell != "–" for cell in row[3:])) for row in rows] == [
        ("Clean", "0", True, True, True),
        ("FGSM", "0.25", False, False, True),
        ("", "0.5", True, True, False),
        ("", "1", True, True, True),
        ("PGD", "0.25", False, False, True),
        ("", "1", False, False, True),
        # The worst case of two has no record of the smallest radius, so that nothing is known of what is above it.
        ("Worst case", "0.25", False, False, True),
        ("", "0.5", False, False, False),
        ("", "1", False, False, False),
    ]


def test_radii_that_differ_by_a_rounding_are_one(tmp_path: Path) -> None:
    second = replace(SEED_1, eps={"linf": [0.5 * (1 + 1e-13), 1.0]})
    results = sort_results(combine([load(SEED_0, tmp_path / "a"), load(second, tmp_path / "b")]))
    assert len(results.study.grid("fgsm", "linf")) == 2
    assert main_tables(results)[0].frame["none seeds"].tolist() == [2] * 5


FOREIGN = FakeRun(
    counts,
    methods=[("resnet", "Somebody's")],
    seeds=(-1,),
    models=False,
    first_unit=50,
    study={"recipe": None, "seeds": [-1], "model": {"class": "m.Net", "sha256": "ff"}, "normalization": "zero-one"},
)


def test_a_model_from_elsewhere_may_stand_beside_trained_ones(tmp_path: Path) -> None:
    parts = [load(FOREIGN, tmp_path / "a"), load(SEED_0, tmp_path / "b"), load(SEED_1, tmp_path / "c")]
    run = combine(parts)
    results = sort_results(run)
    assert run.manifest["study"]["recipe"] == parts[1].manifest["study"]["recipe"]
    assert run.manifest["parts"][0]["model"]["sha256"] == "ff"
    assert results.study.seeds == (-1, 0, 1)
    (table,) = main_tables(results)
    assert "over seeds 0, 1; a model trained elsewhere." in table.caption
    assert [entry.n_planned for entry in main_rows(results, "robust_accuracy", "linf")[0].entries] == [1, 2, 2]
    (clean,) = table2(results)
    assert clean.rows[0][1] == "–"
    assert "One training seed" not in [note.title for note in run_notes(run)]


def test_analyses_and_models_are_put_together(tmp_path: Path) -> None:
    for seed, fake in enumerate((SEED_0, SEED_1)):
        fake.write(tmp_path / str(seed))
        for method in ("none", "fdd-2d"):
            frame = pd.DataFrame({"value": [float(seed), 2.0]})
            write_analysis(tmp_path / str(seed), "density", frame, method=method, seed=seed, key="k")
    run = combine([load_run(tmp_path / "0"), load_run(tmp_path / "1")])
    assert set(run.analyses) == {"density"}
    found = run.analyses["density"]
    assert sorted(set(found[["method", "seed"]].itertuples(index=False, name=None))) == [
        *(("fdd-2d", 0), ("fdd-2d", 1), ("none", 0), ("none", 1)),
    ]
    assert found["value"].sum() == 2 * (0 + 2 + 1 + 2)
    assert found.index.is_unique
    assert {(m["method"], m["seed"]) for m in run.models} == {(m, s) for m in ("none", "fdd-2d") for s in (0, 1)}


def one_network_two_attacks(**changes: Any) -> tuple[FakeRun, FakeRun]:
    return SEED_0, replace(SEED_0, attacks={"pgd": "PGD"}, first_unit=10, **changes)


def test_one_network_may_be_attacked_in_two_runs(tmp_path: Path) -> None:
    first, second = one_network_two_attacks()
    run = combine([load(first, tmp_path / "a"), load(second, tmp_path / "b")])
    assert len(run.models) == 2
    assert sort_results(run).study.seeds == (0,)


def options(fake: FakeRun, kappa: float) -> FakeRun:
    return replace(fake, options={"fdd-2d": {"kappa": kappa}})


REFUSALS: dict[str, tuple[FakeRun, FakeRun, str]] = {
    "data": (
        SEED_0,
        replace(SEED_1, manifest={"dataset": {"name": "toy", "sha256": "cd" * 32}}),
        rf"dataset\.sha256 is {'ab' * 32} in the first and {'cd' * 32} in the second; .*make a report of each",
    ),
    "eps_scale": (SEED_0, replace(SEED_1, manifest={"eps_scale": 0.5}), r"eps_scale is 0\.25 .* and 0\.5 .*"),
    "eps_unit": (SEED_0, replace(SEED_1, eps_unit="pixel"), r"study\.eps_unit is normalized .* and pixel"),
    "protocol": (SEED_0, replace(SEED_1, study={"protocol": "strong"}), r"study\.protocol is paper .* and strong"),
    "engine": (
        SEED_0,
        replace(SEED_1, engines=("art", "foolbox")),
        "the primary engine of FGSM in L∞ is foolbox in the first and art .*put the same engine first",
    ),
    "images": (
        SEED_0,
        replace(SEED_1, counts=lambda key: (0, 400, 0)),
        "the set of test images is 1,000 images in the first and 400 images of which 400 are among those",
    ),
    "test_images of empty runs": (
        replace(SEED_0, counts=lambda key: None),
        replace(SEED_1, study={"test_images": 50}),
        r"study\.test_images is 100 .* and 50",
    ),
    "recipe": (SEED_0, replace(SEED_1, epochs=4), r"study\.recipe\.epochs is 3 in the first and 4 .*train both alike"),
    "a setting that one lacks": (
        SEED_0,
        replace(SEED_1, study={"model": {"width": 8, "depth": 2}}),
        r"study\.model\.depth is not there in the first and 2",
    ),
    "width": (SEED_0, replace(SEED_1, study={"model": {"width": 4}}), r"study\.model\.width is 8 .* and 4"),
    "normalisation": (
        SEED_0,
        replace(SEED_1, study={"normalization": "zero-one"}),
        r"study\.normalization is z-score .* and zero-one",
    ),
    "method": (
        options(SEED_0, -0.8),
        options(SEED_1, 0.8),
        r'the method "fdd-2d"\.options\.kappa is -0\.8 .* and 0\.8 .*; give one of the two another label',
    ),
    "eot": (
        SEED_0,
        replace(SEED_1, eot_samples={"fdd-2d": 4}),
        r'the method "fdd-2d"\.eot_samples is 0 in the first and 4',
    ),
    "attack": (
        SEED_0,
        replace(SEED_1, random_attacks=["fgsm"]),
        r'the attack "fgsm"\.deterministic is true in the first and false .*same parameters',
    ),
    "unit": (
        SEED_0,
        replace(SEED_0, first_unit=7),
        r"one and the same unit \(method none, seed 0, attack fgsm, norm linf, engine foolbox\): u0000 in the first, "
        "u0007 in the second; leave one",
    ),
    "network": (
        *one_network_two_attacks(weights={"none": "another"}),
        r'weights_sha256 of method "none", seed 0, is (0000)+ in the first and another in the second',
    ),
    "foreign model": (
        FOREIGN,
        replace(FOREIGN, attacks={"pgd": "PGD"}, study={**FOREIGN.study, "model": {"class": "m.Net", "sha256": "00"}}),
        r'the model of "resnet"\.sha256 is ff in the first and 00',
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path, case: str) -> None:
    first, second, message = REFUSALS[case]
    parts = [load(first, tmp_path / "one"), load(second, tmp_path / "two")]
    with pytest.raises(RunDirectoryError, match=message) as raised:
        combine(parts)
    assert str(raised.value).startswith(f"{tmp_path / 'one'} and {tmp_path / 'two'} cannot stand in one report: ")
    assert "\n" not in str(raised.value)


def test_the_third_run_is_held_against_the_second_too(tmp_path: Path) -> None:
    third = replace(options(SEED_1, 0.8), methods=[("fdd-2d", "FDD-2D")])
    first = replace(SEED_0, methods=[("none", "None")])
    parts = [load(run, tmp_path / str(i)) for i, run in enumerate((first, options(SEED_1, -0.8), third))]
    with pytest.raises(RunDirectoryError, match=r"/1 and .*/2 cannot stand in one report: the method"):
        combine(parts)


def test_titles_and_descriptions_of_variants_may_differ(tmp_path: Path) -> None:
    """An older record of the same method has no description of it."""
    second = replace(
        SEED_1, methods=[("none", "Without"), ("fdd-2d", "FDD-2D")], variants={"fdd-2d": {"strategy": "density"}}
    )
    run = combine([load(SEED_0, tmp_path / "a"), load(second, tmp_path / "b")])
    assert [m["title"] for m in run.manifest["study"]["methods"]] == ["No dropout", "FDD-2D"]


def test_the_same_directory_twice_is_a_mistake(tmp_path: Path) -> None:
    run = load(SEED_0, tmp_path / "a")
    (tmp_path / "b").mkdir()
    with pytest.raises(RunDirectoryError, match="are one run directory; name it once"):
        combine([run, load_run(tmp_path / "b" / ".." / "a")])


def two_analyses(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], seed: int) -> list[Run]:
    first, second = one_network_two_attacks()
    for fake, name, frame, of in (
        (first, "a", pd.DataFrame({"value": [1.0]}), 0),
        (second, "b", change(pd.DataFrame({"value": [1.0]})), seed),
    ):
        write_analysis(fake.write(tmp_path / name), "density", frame, method="none", seed=of, key="k")
    return [load_run(tmp_path / "a"), load_run(tmp_path / "b")]


def test_one_analysis_in_two_runs_is_refused(tmp_path: Path) -> None:
    parts = two_analyses(tmp_path, lambda frame: frame, seed=0)
    message = r'both hold the analysis density of method "none", seed 0; remove analysis/density--none--seed0\.parquet'
    with pytest.raises(RunDirectoryError, match=message):
        combine(parts)


def test_analyses_of_other_columns_are_refused(tmp_path: Path) -> None:
    parts = two_analyses(tmp_path, lambda frame: frame.rename(columns={"value": "other"}), seed=1)
    with pytest.raises(RunDirectoryError, match=r'columns of the analysis density is .*"value".* and .*"other"'):
        combine(parts)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    load(SEED_0, tmp_path / "a")
    replace(SEED_1, manifest={"units": None}).write(tmp_path / "b")
    result = CliRunner().invoke(app, ["report", str(tmp_path / "a"), str(tmp_path / "b")])
    assert result.exit_code == 2
    assert "b/manifest.json: units should be a valid list" in result.output


def test_the_command_reports_several_runs_as_one(tmp_path: Path) -> None:
    paths = [run.write(tmp_path / name) for run, name in ((SEED_0, "a"), (SEED_1, "b"))]
    result = CliRunner().invoke(app, ["report", *map(str, paths), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert result.output.count("Robust accuracy (%), L∞") == 1
    assert "90.0 ± 0.0" not in result.output
    assert "90.3 ± 0.4" in result.output  # clean: 900 and 905 of 1,000, a half that is rounded away from zero
    refused = CliRunner().invoke(app, ["report", str(paths[0]), str(paths[0])])
    assert refused.exit_code == 2
    assert "name it once" in refused.output


def test_cells_keep_their_images(tmp_path: Path) -> None:
    run = combine([load(SEED_0, tmp_path / "a"), load(SEED_1, tmp_path / "b")])
    assert len(run.cells) == 2 * 2 * 3
    assert all(np.array_equal(index, np.arange(N)) for index in run.cells["image_index"])


def own(label: str, digit: str, *, unit: int = 0, **study: Any) -> FakeRun:
    """What `robustfdd attack` leaves of a model that was trained elsewhere, as earlier versions wrote it."""
    model = {"class": f"net{digit}.Net", "sha256": digit * 64, "weights_sha256": f"{digit}w"}
    return FakeRun(
        counts,
        methods=[(label, label)],
        seeds=(-1,),
        engines=("native",),
        models=False,
        first_unit=unit,
        dropouts={label: None},
        study={"recipe": None, "seeds": [-1], "model": model, "open_choices": {}, **study},
    )


def page_of(*paths: Path) -> str:
    """The text of the page of some runs, without its scripts."""
    html = write_report(paths, out=paths[0] / "out").read_text(encoding="utf-8")
    html = re.sub(r"<script>.*?</script>|<style>.*?</style>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustfdd.report.figures.render", lambda figure: {"png": b"png", "pdf": b"pdf"})


@pytest.mark.usefixtures("_no_pictures")
def test_own_models_keep_their_own_class_and_checksum(tmp_path: Path) -> None:
    paths = [own("mine", "a").write(tmp_path / "a"), own("yours", "b", unit=50).write(tmp_path / "b")]
    text = page_of(*paths)
    for digit in "ab":
        assert text.count(f"net{digit}.Net") == 2  # with the methods, and with the run that it is of
        assert digit * 64 in text
        assert f"{digit}w" in text
    assert not re.search(r"seeds?:? -1", text)
    assert "-1" not in text
    assert "seeds trained elsewhere" in text
    # Nothing is claimed of a normalisation that is in somebody's code.
    assert "z-score" not in text
    assert "normalization not known of every model" in text
    assert "eps_scale" not in text
    assert "how a model that was trained elsewhere normalises them is not known" in text
    results = sort_results(combine([load_run(path) for path in paths]))
    (table,) = main_tables(results)
    assert table.headers[:2] == ("Attack", "ε (pixel)")
    assert [row[1] for row in table.rows[:3]] == ["0", "0.125", "0.25"]
    assert table.frame["eps_normalized"].isna().all()
    assert results.long_table()["eps_normalized"].isna().all()


@pytest.mark.usefixtures("_no_pictures")
def test_a_model_from_elsewhere_takes_the_normalised_epsilon_from_a_common_table(tmp_path: Path) -> None:
    """Of a trained one beside it as well: one column cannot be true of one method and false of another."""
    elsewhere = replace(
        own("mine", "a", unit=50, normalization=None),
        engines=("foolbox",),
        eps_unit="pixel",
        eps={"linf": [0.125, 0.25]},
    )
    parts = [load(SEED_0, tmp_path / "a"), load(elsewhere, tmp_path / "b")]
    results = sort_results(combine(parts))
    (table,) = main_tables(results)
    assert [row[1] for row in table.rows[:3]] == ["0", "0.125", "0.25"]
    rows = main_rows(results, "robust_accuracy", "linf")
    assert all(entry.mean is not None for row in rows for entry in row.entries)
    assert results.unplanned == 0


def only_audit(label: str, digit: str, *, images: int, weights: str | None = None) -> FakeRun:
    """What `robustfdd audit` leaves of the same model, looked at with other images."""
    found = own(label, digit, protocol="paper", test_images=images)
    model = {**found.study["model"], "sha256": "9" * 64, "weights_sha256": weights or f"{digit}w"}
    verdict = FakeAudit("suspicious", n_images=images, pictures=False)
    study = {**found.study, "model": model}
    return replace(found, attacks={}, engines=("native",), study=study, audits={(label, -1): verdict})


def test_an_audit_stands_beside_the_strong_attacks_on_the_same_model(tmp_path: Path) -> None:
    strong = own("mine", "a", protocol="strong", test_images=1000)
    parts = [load(strong, tmp_path / "a"), load(only_audit("mine", "a", images=200), tmp_path / "b")]
    for runs in (parts, parts[::-1]):
        results = sort_results(combine(runs))
        assert results.study.protocol == "strong"
        assert results.study.engines == ("native",)
        (table,) = main_tables(results)
        assert "Not audited here: the audit was of PGD on the cross-entropy" in table.caption
        assert "on 200 of the 1,000 images" in table.caption
        assert "Not audited: mine" in [note.title for note in run_notes(results.run)]


def test_an_audit_of_another_model_is_not_that_of_the_label(tmp_path: Path) -> None:
    parts = [
        load(own("mine", "a"), tmp_path / "a"),
        load(only_audit("mine", "a", images=200, weights="x"), tmp_path / "b"),
    ]
    with pytest.raises(RunDirectoryError, match=r'the model of "mine"\.weights_sha256 is aw in the first and x'):
        combine(parts)


def test_a_report_needs_no_registry(tmp_path: Path) -> None:
    """Dropouts, attacks, engines and data sets of another process are shown as the manifest has them."""
    variant = {
        "title": "Mine",
        "site": "maps",
        "strategy": "Mine",
        "adaptive": True,
        "dynamic": True,
        "source": "Me 2024",
    }
    run = FakeRun(
        counts,
        methods=[("none", "None"), ("mine", "Mine")],
        dropouts={"mine": "registered-elsewhere"},
        variants={"mine": variant},
        attacks={"my-attack": "My attack"},
        engines=("my-engine",),
        manifest={"dataset": {"name": "my-data", "title": "My data", "n_test": 10_000}},
    )
    results = sort_results(load_run(run.write(tmp_path)))
    (table,) = main_tables(results)
    assert {row[0] for row in table.rows if row[0]} == {"Clean", "My attack", "Worst case"}
    assert "My data" in table.caption
    assert [artefact.name for artefact in all_exhibits(results)]
