"""A study from end to end in seconds, what resuming keeps, and that a fault never becomes a number."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, STUDY, TinyNet, make_dataset, registered
from rich.console import Console

import robustfdd
from robustfdd import evaluation, provenance, tasks, units
from robustfdd.datasets.base import Dataset
from robustfdd.errors import (
    ConfigurationError,
    DatasetError,
    EngineError,
    ModelContractError,
    RunDirectoryError,
    TrainingError,
)
from robustfdd.evaluation import evaluate, run_evaluation
from robustfdd.measure import measure
from robustfdd.models import build_model, load_model, read_checkpoint, save_model
from robustfdd.records import SCHEMA, Outcome, load_run, read_json, write_json
from robustfdd.threat import Threat

pytestmark = pytest.mark.usefixtures("quarters_registered")


def test_a_study_yields_every_cell(run: Path, quarters: Dataset) -> None:
    found = load_run(run)
    assert found.failures == []
    # 2 methods x 2 engines x (FGSM: 0, 0.1, 0.8 and PGD: 0, 0.5), and as much of transfer from each to the other
    assert len(found.cells) == 2 * 2 * (3 + 2) + 2 * (3 + 2)
    assert set(found.cells.unit) == {unit["unit"] for unit in found.manifest["units"]}
    cells = found.cells
    assert cells.eps_pixel.to_numpy() == pytest.approx(cells.eps_normalized.to_numpy() * quarters.std)
    zero = cells[cells.eps_pixel == 0]
    assert (zero.robust_accuracy == zero.clean_accuracy).all()
    assert (zero.groupby("method").robust_accuracy.nunique() == 1).all()
    assert (cells.n_images == 24).all()
    assert {len(set(map(tuple, cells.image_index)))} == {1}
    for row in cells.itertuples():
        outcome = np.asarray(row.outcome)
        assert row.robust_accuracy == (outcome == Outcome.SURVIVED).mean()
        assert row.max_distance <= row.eps_pixel * 1.0001 + 1e-5
        labels = quarters.test.labels.numpy()[np.asarray(row.image_index)]
        assert (np.asarray(row.label) == labels).all()
        assert ((outcome == Outcome.MISCLASSIFIED) == (np.asarray(row.clean_prediction) != labels)).all()
        assert ((outcome == Outcome.SURVIVED) == ((np.asarray(row.prediction) == labels) & (outcome > 0))).all()
    strong = cells[(cells.attack == "fgsm") & (cells.eps_normalized == 0.8)]
    assert (strong.robust_accuracy < strong.clean_accuracy).all()


def test_the_records_are_of_the_checkpoints(run: Path, quarters: Dataset) -> None:
    """Loading a checkpoint and measuring again gives the recorded outcomes."""
    found = load_run(run)
    unit = units.AttackUnit("none", 0, robustfdd.load_attack("fgsm"), "linf", "art", (0.8,), "normalized")
    model = load_model(run / "models" / "none--seed0.safetensors")
    test = units.TestSet.choose(quarters, 24)
    threat = Threat("linf", 0.8 * quarters.std)
    again = measure(model, test.clean(model, 8), unit.attack, threat, engine=robustfdd.get_engine("art"), batch_size=5)
    cells = found.cells
    row = cells[(cells.unit == unit.name) & (cells.eps_normalized == 0.8)].iloc[0]
    assert np.asarray(row.outcome).tolist() == again.outcome.tolist()


def test_the_manifest_says_what_was_done(run: Path, quarters: Dataset, study_file: Path) -> None:
    manifest = load_run(run).manifest
    assert manifest["dataset"]["sha256"] == quarters.sha256
    assert manifest["eps_scale"] == quarters.std
    assert manifest["study"]["recipe"]["epochs"] == 3
    assert manifest["study"]["attacks"][1]["parameters"] == {"steps": 3, "relative_step": 0.1}
    assert manifest["study"]["methods"][1]["options"] == {
        **{"n_bins": 5, "kappa": -0.8, "alpha": 0.9},
        **{"rescale": "inverted", "active": "train"},
    }
    assert {"torch", "foolbox", "adversarial-robustness-toolbox", "robustfdd"} <= set(manifest["versions"])
    assert read_json(run / "models" / "none--seed0.json")["method"] == "none"


def stamps(run: Path) -> dict[str, int]:
    return {
        p.name: p.stat().st_mtime_ns for p in [*run.glob("models/*"), *run.glob("results/*"), run / "manifest.json"]
    }


def test_nothing_finished_is_done_again(run: Path, study_file: Path) -> None:
    before = stamps(run)
    run_evaluation(study_file, out=run)
    assert stamps(run) == before


def test_only_what_is_missing_or_damaged_is_done_again(run: Path, study_file: Path) -> None:
    reference = load_run(run).cells
    before = stamps(run)
    victims = sorted(run.glob("results/*"))[:3]
    victims[0].unlink()
    victims[1].write_bytes(b"")
    victims[2].write_bytes(victims[2].read_bytes()[:-20])
    run_evaluation(study_file, out=run)
    changed = {name for name, stamp in stamps(run).items() if before[name] != stamp}
    assert changed == {victim.name for victim in victims}
    again = load_run(run).cells
    for column in ("outcome", "prediction", "distance"):
        assert [np.asarray(v).tolist() for v in again[column]] == [np.asarray(v).tolist() for v in reference[column]]


def test_a_damaged_checkpoint_is_trained_again(run: Path, study_file: Path) -> None:
    path = run / "models" / "none--seed0.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] + b"\0" * 7)
    run_evaluation(study_file, out=run)
    assert path.read_bytes() == whole


def test_one_failing_unit_leaves_the_others(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = units.measure_sweep

    def fails_for_pgd_in_art(model, clean, attack, threat, *, engine, **options):
        if attack.name == "pgd" and engine.name == "art":
            raise EngineError("left its budget")
        return real(model, clean, attack, threat, engine=engine, **options)

    monkeypatch.setattr(units, "measure_sweep", fails_for_pgd_in_art)
    run = run_evaluation(study_file, out=tmp_path / "run")
    found = load_run(run)
    assert sorted(f.unit for f in found.failures) == [
        "fdd-2d-inverted--seed0--pgd--l2--art",
        "none--seed0--pgd--l2--art",
    ]
    assert {(f.error, f.message, f.attack, f.norm, f.engine) for f in found.failures} == {
        ("EngineError", "left its budget", "pgd", "l2", "art")
    }
    assert not found.cells.unit.isin([f.unit for f in found.failures]).any()
    assert len(found.cells) == 2 * (2 * 3 + 2) + 2 * (3 + 2)

    monkeypatch.setattr(units, "measure_sweep", real)
    run_evaluation(study_file, out=run)
    mended = load_run(run)
    assert mended.failures == []
    assert len(mended.cells) == 2 * (2 * 3 + 2 * 2) + 2 * (3 + 2)


def test_one_failing_training_leaves_the_others(tmp_path: Path) -> None:
    text = STUDY.replace('"none",', '"none", {dropout = "none", label = "z-none"},')
    path = tmp_path / "s.toml"
    path.write_text(text.replace("learning_rate = 0.1", "learning_rate = 1e30"))
    found = load_run(run_evaluation(path, out=tmp_path / "run"))
    assert {f.stage for f in found.failures} == {"train"}
    assert {f.error for f in found.failures} == {"TrainingError"}
    assert len(found.cells) == 0


@pytest.mark.parametrize("change", ["recipe.epochs=2", "test_images=12", 'methods=["none"]'])
def test_a_directory_of_another_run_is_refused_and_left_alone(run: Path, study_file: Path, change: str) -> None:
    before = stamps(run)
    key = re.escape(change.partition("=")[0])
    with pytest.raises(RunDirectoryError, match=rf"holds another run \(different: study\.{key}"):
        run_evaluation(study_file, out=run, overrides=[change])
    assert stamps(run) == before


def test_a_run_is_not_continued_with_other_versions(run: Path, study_file: Path) -> None:
    """Its manifest names one version of everything, which must be true of all its records."""
    manifest = read_json(run / "manifest.json")
    manifest["versions"]["foolbox"] = "3.3.3"
    write_json(run / "manifest.json", manifest)
    with pytest.raises(RunDirectoryError, match=r"different: versions\.foolbox"):
        run_evaluation(study_file, out=run)


def test_a_directory_of_other_things_is_refused(run: Path, study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match="is no run directory"):
        run_evaluation(study_file, out=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(RunDirectoryError, match="holds this run already"):
        run_evaluation(study_file, out=run, resume=False)


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ('"fdd-2d"', '"fdd-5d"', ConfigurationError, "fdd-5d"),
        ('rescale = "inverted"', 'rescale = "inverse"', ConfigurationError, "inverse"),
        ('dropout = "fdd-2d"', 'dropout = "fdd-1d", placement = "stages"', ConfigurationError, "allowed: last"),
        ('rescale = "inverted"', 'active = "always"', ConfigurationError, "with eot_samples, e.g. eot_samples = 16"),
        ('dataset = "quarters"', 'dataset = "quartets"', DatasetError, r"s\.toml: dataset: .*quartets"),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = [8]", ConfigurationError, "at most 1 in linf"),
        ("test_images = 24", "test_images = 81", ConfigurationError, "81, but Quarters has 80"),
    ],
)
def test_unknown_parts_are_refused_before_anything_is_written(
    tmp_path: Path, old: str, new: str, error: type[Exception], says: str
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY.replace(old, new))
    with pytest.raises(error, match=says):
        run_evaluation(path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named(study_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="torch sees 0 CUDA devices"):
        run_evaluation(study_file, out=tmp_path / "run", device="cuda")
    with pytest.raises(ConfigurationError, match="allowed: cpu, cuda"):
        run_evaluation(study_file, out=tmp_path / "run", device="gpu")


@pytest.mark.parametrize(
    ("name", "channels", "size", "n_classes", "methods"),
    [
        pytest.param("fashion-mnist", 1, 28, 10, ["none", "sap", "fdd-3d"], marks=pytest.mark.slow),
        ("fashion-mnist", 1, 28, 10, ["sap"]),
        ("cifar10", 3, 32, 10, ["fdd-3d"]),
        ("cifar100", 3, 32, 100, ["none"]),
        ("svhn", 3, 32, 10, ["original"]),
    ],
)
def test_full_size_studies_run_when_reduced(
    name: str, channels: int, size: int, n_classes: int, methods: list[str], tmp_path: Path
) -> None:
    """Every part of the study but its size, on images of the data set's shape."""
    data = make_dataset(n_train=64, n_test=2 * n_classes, n_classes=n_classes, size=size, channels=channels, name=name)
    reduction = ["model.width=1", "recipe.epochs=1", f"test_images={n_classes}", "seeds=[0]"]
    with registered(data):
        run = run_evaluation(name, out=tmp_path / "run", overrides=reduction, only=methods)
    found = load_run(run)
    assert found.failures == []
    assert set(found.cells.unit) == {unit["unit"] for unit in found.manifest["units"]}
    assert {(m["method"], m["n_test"]) for m in found.models} == {(m, 2 * n_classes) for m in methods}
    page = robustfdd.write_report(run).read_text(encoding="utf-8")
    assert "recipe.epochs=1" in page


# --- anybody's model -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_model(quarters: Dataset) -> TinyNet:
    torch.manual_seed(0)
    model = TinyNet()
    model(quarters.train.images[:2].float() / 255)
    recipe = robustfdd.Recipe(epochs=4, batch_size=16, learning_rate=0.1, weight_decay=0)
    from robustfdd.training import fit  # noqa: PLC0415

    fit(model, quarters.train, recipe, seed=0)
    return model


def test_evaluate_takes_any_torch_model(own_model: TinyNet, quarters: Dataset, tmp_path: Path) -> None:
    threats = [Threat("linf", 0.02), Threat("linf", 0.3), Threat("l2", 0.5)]
    frame = evaluate(own_model, quarters, ["fgsm", "bim"], threats, engines=["foolbox", "art"])
    assert list(frame.columns) == SCHEMA.names
    assert len(frame) == 2 * 2 * ((1 + 2) + (1 + 1))
    assert (frame.seed == -1).all()
    assert (frame.n_images == 80).all()
    assert frame.clean_accuracy.iloc[0] > 0.8
    by_engine = frame.pivot_table(index=["attack", "norm", "eps_pixel"], columns="engine", values="robust_accuracy")
    assert by_engine.art.tolist() == by_engine.foolbox.tolist()

    run = tmp_path / "run"
    written = evaluate(own_model, quarters, ["fgsm", "bim"], threats, engines=["foolbox", "art"], out=run, label="mine")
    keys = ["attack", "norm", "engine", "eps_pixel"]
    merged = frame.merge(written, on=keys, suffixes=("", "_written"))
    assert len(merged) == len(frame)
    assert (merged.robust_accuracy == merged.robust_accuracy_written).all()
    assert load_run(run).manifest["study"]["methods"][0]["label"] == "mine"
    page = robustfdd.write_report([run])
    assert page.is_file()


def test_evaluate_refuses_before_it_writes(own_model: TinyNet, quarters: Dataset, tmp_path: Path) -> None:
    threats = [Threat("linf", 0.1)]
    out = tmp_path / "run"
    with pytest.raises(ModelContractError, match="probabilities"):
        evaluate(torch.nn.Sequential(own_model, torch.nn.Softmax(1)), quarters, ["fgsm"], threats, out=out)
    noisy = build_model(quarters, "original", width=1, active="always")
    with pytest.raises(ModelContractError, match="random in evaluation mode"):
        evaluate(noisy, quarters, ["fgsm"], threats, out=out)
    with pytest.raises(ConfigurationError, match="unknown attack"):
        evaluate(own_model, quarters, ["fgmm"], threats, out=out)
    with pytest.raises(ConfigurationError, match="unknown engine"):
        evaluate(own_model, quarters, ["fgsm"], threats, engines=["torchattacks"], out=out)
    with pytest.raises(ConfigurationError, match="strictly ascending"):
        evaluate(own_model, quarters, ["fgsm"], [Threat("l2", 0.2), Threat("l2", 0.1)], out=out)
    with pytest.raises(ConfigurationError, match="at least one"):
        evaluate(own_model, quarters, ["fgsm"], [], out=out)
    with pytest.raises(ConfigurationError, match="lower-case letters"):
        evaluate(own_model, quarters, ["fgsm"], threats, label="../up", out=out)
    assert not out.exists()


def test_other_weights_in_the_same_directory_are_refused(own_model: TinyNet, quarters: Dataset, tmp_path: Path) -> None:
    threats = [Threat("linf", 0.1)]
    evaluate(own_model, quarters, ["fgsm"], threats, out=tmp_path / "run")
    with torch.no_grad():
        own_model.head.bias += 1
    with pytest.raises(RunDirectoryError, match=r"different: study\.model\.sha256"):
        evaluate(own_model, quarters, ["fgsm"], threats, out=tmp_path / "run")


def test_the_plan_is_in_the_order_of_the_study(study_file: Path) -> None:
    plan = evaluation.plan(robustfdd.load_study(study_file))
    assert [(u.method, u.attack.name, u.engine) for u in plan][:4] == [
        ("none", "fgsm", "foolbox"),
        ("none", "fgsm", "art"),
        ("none", "pgd", "foolbox"),
        ("none", "pgd", "art"),
    ]
    assert plan[0].eps == (0.1, 0.8)
    assert len({u.name for u in plan}) == len(plan)


class Shifted(torch.nn.Module):
    """A plain attribute, which no state dict holds, decides what it computes."""

    def __init__(self, inner: torch.nn.Module, shift: float) -> None:
        super().__init__()
        self.inner, self.shift = inner, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.shift * x.mean((1, 2, 3))[:, None] * torch.arange(4)


def test_the_same_weights_with_other_code_are_another_model(
    own_model: TinyNet, quarters: Dataset, tmp_path: Path
) -> None:
    evaluate(Shifted(own_model, 0.0), quarters, ["fgsm"], [Threat("linf", 0.1)], out=tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=r"different: study\.model\.sha256"):
        evaluate(Shifted(own_model, 1.0), quarters, ["fgsm"], [Threat("linf", 0.1)], out=tmp_path / "run")


def test_attacks_of_one_name_are_refused(own_model: TinyNet, quarters: Dataset) -> None:
    pgd = robustfdd.load_attack("pgd")
    threats = [Threat("linf", 0.1)]
    with pytest.raises(ConfigurationError, match="an attack is given more than once: pgd, pgd"):
        evaluate(own_model, quarters, [pgd, pgd.with_parameters({"steps": 50})], threats)
    with pytest.raises(ConfigurationError, match="an engine is given more than once"):
        evaluate(own_model, quarters, ["pgd"], threats, engines=["art", "art"])


def test_a_model_of_other_classes_is_refused(quarters: Dataset) -> None:
    other = replace(quarters, classes=("a", "b", "c", "d"))
    with pytest.raises(DatasetError, match="trained for 'quarters'"):
        evaluate(build_model(quarters, "none", width=1), other, ["fgsm"], [Threat("linf", 0.1)])


def test_what_other_code_made_is_made_anew_and_nothing_else(
    run: Path, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = units.code_version

    def changed(*modules: str, **parts) -> str:
        return "0123456789abcdef" if "engines.art" in modules else real(*modules, **parts)

    before = stamps(run)
    monkeypatch.setattr(units, "code_version", changed)
    monkeypatch.setattr(provenance, "source_digest", lambda: "fedcba9876543210")
    run_evaluation(study_file, out=run)
    differ = {name for name, stamp in stamps(run).items() if before[name] != stamp}
    assert differ == {name for name in before if name.endswith("--art.parquet")} | {"manifest.json"}
    assert load_run(run).manifest["versions"]["robustfdd source"] == "fedcba9876543210"
    assert load_run(run).failures == []


def test_a_checkpoint_that_does_not_name_its_code_is_trained_anew(run: Path, study_file: Path) -> None:
    path = run / "models" / "none--seed0.safetensors"
    checkpoint, weights = read_checkpoint(path), path.read_bytes()
    provenance_of_old = {key: value for key, value in checkpoint.provenance.items() if key != "code"}
    old = save_model(load_model(path), path, provenance_of_old)
    history = path.with_suffix(".json")
    write_json(history, {**read_json(history), "sha256": old.sha256})
    out = io.StringIO()
    run_evaluation(study_file, out=run, console=Console(file=out, width=200))
    assert out.getvalue().count("none--seed0: its checkpoint is of another version of the code") == 1
    assert path.read_bytes() == weights


def test_results_of_an_earlier_model_go_when_its_training_fails(
    run: Path, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments, **options):
        raise TrainingError("the loss is nan")

    (run / "models" / "none--seed0.safetensors").unlink()
    monkeypatch.setattr(tasks, "train", fails)
    run_evaluation(study_file, out=run)
    found = load_run(run)
    # ... and what is crafted on it goes with it.
    transfers = {f"fdd-2d-inverted--seed0--transfer--{norm}--foolbox" for norm in ("linf", "l2")}
    assert {f.unit for f in found.failures} == {"none--seed0", *transfers}
    messages = {f.message for f in found.failures if f.unit in transfers}
    assert messages == {"transfer is crafted on the model of 'none' seed 0, which could not be trained"}
    assert set(found.cells.method) == {"fdd-2d-inverted"}


def test_an_attack_file_that_leaves_an_argument_to_the_library_is_refused(
    own_model: TinyNet, quarters: Dataset, tmp_path: Path
) -> None:
    text = (ROOT / "attacks" / "bim.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('rel_stepsize = "$relative_step", ', ""), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="missing: rel_stepsize"):
        evaluate(own_model, quarters, [path], [Threat("linf", 0.1)], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
