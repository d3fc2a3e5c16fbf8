"""The command line as a user meets it: what it prints, and how it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import STUDY, make_dataset
from PIL import Image
from typer.testing import CliRunner, Result

import robustfdd
from robustfdd.cli import app
from robustfdd.datasets.base import Dataset
from robustfdd.models import build_model, save_model
from robustfdd.records import load_run

pytestmark = pytest.mark.usefixtures("quarters_registered")

FACTORY = """
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

def probabilities():
    return nn.Sequential(good(), nn.Softmax(1))

def five_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

def not_a_model():
    return 3

def raises():
    raise RuntimeError("no licence")
"""


def invoke(*arguments: str | Path) -> Result:
    # Wide, so that no message is broken into lines in the middle of what a test looks for.
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "TERM": "dumb"})


def refused(result: Result, *says: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for part in says:
        assert part in result.output, result.output
    assert len(result.output.splitlines()) < 25


def test_run_trains_attacks_reports_and_resumes(study_file: Path, tmp_path: Path) -> None:
    result = invoke("run", study_file, "--out", tmp_path / "r", "--set", "recipe.epochs=1", "--only", "none")
    assert result.exit_code == 0, result.output
    page = tmp_path / "r" / "report" / "index.html"
    assert f"report: {page}" in result.output
    assert page.is_file()
    for part in ("train none seed 0", "attack none seed 0: PGD l2 through art", "left]", "FGSM"):
        assert part in result.output
    manifest = load_run(tmp_path / "r").manifest
    assert manifest["overrides"] == ["recipe.epochs=1", "only none"]
    again = invoke("run", study_file, "--out", tmp_path / "r", "--set", "recipe.epochs=1", "--only", "none")
    assert again.exit_code == 0
    assert "train none" not in again.output


def test_failed_units_are_listed_and_exit_with_1(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(STUDY.replace("learning_rate = 0.1", "learning_rate = 1e30"))
    result = invoke("run", path, "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert "none--seed0: TrainingError: the loss is" in result.output
    assert (tmp_path / "r" / "report" / "index.html").is_file()


def test_train_then_attack_then_report(tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    result = invoke(
        *("train", "--dataset", "quarters", "--dropout", "fdd-2d", "--epochs", 2, "--width", 2, "--out", model),
        *("--option", "rescale=inverted", "--set", "learning_rate=0.1", "--set", "batch_size=16"),
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"clean accuracy \d+\.\d\d % on 80 test images", result.output)
    loaded = robustfdd.load_model(model)
    assert loaded.config.options["rescale"] == "inverted"
    assert loaded.config.options["kappa"] == -0.8

    result = invoke(
        *("attack", "--model", model, "--dataset", "quarters", "--attack", "bim", "--linf", "0,0.1,0.2"),
        *("--eps-unit", "normalized", "--test-images", 20, "--out", tmp_path / "r", "--label", "mine"),
    )
    assert result.exit_code == 0, result.output
    cells = load_run(tmp_path / "r").cells
    assert set(cells.engine) == {"foolbox", "art"}
    assert sorted(set(cells.eps_normalized)) == pytest.approx([0, 0.1, 0.2])
    assert cells.eps_pixel.to_numpy() == pytest.approx(cells.eps_normalized.to_numpy() * loaded.config.std)

    page = tmp_path / "elsewhere" / "index.html"
    result = invoke("report", tmp_path / "r", "--out", page.parent)
    assert result.exit_code == 0, result.output
    assert page.is_file()


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """A module of the user's in the working directory; each test has its own name for it."""
    name = f"my_models_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    return name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_attack_takes_anybodys_model(factory: str, suffix: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415

    torch.manual_seed(1)
    state = {"1.weight": torch.randn(4, 64), "1.bias": torch.zeros(4)}
    weights = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": state}, weights)
    else:
        save_file(state, weights)
    result = invoke(
        *("attack", "--model", f"{factory}:good", "--weights", weights, "--dataset", "quarters"),
        *("--attack", "fgsm", "--l2", "0.5", "--engine", "foolbox", "--out", tmp_path / "r"),
    )
    assert result.exit_code == 0, result.output
    cells = load_run(tmp_path / "r").cells
    data = make_dataset()
    x = data.test.images.float().flatten(1) / 255
    clean = (x @ state["1.weight"].T).argmax(1) == data.test.labels
    assert cells.clean_accuracy.tolist() == pytest.approx([float(clean.double().mean())] * 2)


def attack_with(model: object, *more: object) -> Result:
    return invoke("attack", "--model", model, "--dataset", "quarters", "--linf", "0.1", "--out", "r", *more)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("probabilities", ["returns probabilities", "softmax"]),
        ("five_classes", ["must return 4 logits", "not 5"]),
        ("not_a_model", ["gives a int", "torch.nn.Module"]),
        ("raises", ["RuntimeError: no licence"]),
        ("missing", ["has no attribute 'missing'"]),
    ],
)
def test_models_that_cannot_be_used_are_refused(factory: str, name: str, says: list[str]) -> None:
    refused(attack_with(f"{factory}:{name}"), *says)
    assert not Path("r").exists()


def test_missing_and_corrupt_files_are_refused(factory: str, quarters: Dataset, tmp_path: Path) -> None:
    refused(attack_with("no_such_module:f"), "no_such_module", "ModuleNotFoundError")
    refused(attack_with("nowhere.safetensors"), "nowhere.safetensors: no such checkpoint")
    refused(attack_with(f"{factory}:good", "--weights", "nowhere.pt"), "--weights nowhere.pt: no such file")
    Path("bad.pt").write_bytes(b"not a checkpoint")
    refused(attack_with(f"{factory}:good", "--weights", "bad.pt"), "--weights bad.pt")
    Path("bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    refused(attack_with("bad.safetensors"), "bad.safetensors")
    path = tmp_path / "m.safetensors"
    save_model(build_model(quarters, "none", width=1), path, {})
    path.write_bytes(path.read_bytes()[:-9])
    refused(attack_with(path), "m.safetensors", "damaged")
    assert not Path("r").exists()


class Harmful:
    def __reduce__(self):
        return (Path("was-here").touch, ())


def test_a_pickle_that_runs_code_is_not_run(factory: str) -> None:
    torch.save({"state_dict": Harmful()}, "evil.pt")
    refused(attack_with(f"{factory}:good", "--weights", "evil.pt"), "--weights evil.pt")
    assert not Path("was-here").exists()


def test_a_checkpoint_of_other_data_is_refused(quarters: Dataset, tmp_path: Path) -> None:
    from dataclasses import replace  # noqa: PLC0415

    path = tmp_path / "m.safetensors"
    other = replace(quarters, name="others", classes=("a", "b", "c", "d"))
    save_model(build_model(other, "none", width=1), path, {})
    refused(attack_with(path), "m.safetensors", "trained for 'others'", "not for 'quarters'")


def folder_data(path: Path, damage: bool = False) -> Path:
    for split in ("train", "test"):
        for k, name in enumerate(("dark", "light")):
            (path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (8, 8), 60 + 120 * k + i).save(path / split / name / f"{i}.png")
    if damage:
        file = path / "test" / "dark" / "2.png"
        file.write_bytes(file.read_bytes()[:40])
    return path


def test_a_folder_of_images_is_a_data_set(tmp_path: Path) -> None:
    path = folder_data(tmp_path / "images")
    result = invoke(
        *("train", "--dataset", f"folder:{path}", "--dropout", "none", "--epochs", 1, "--width", 1),
        *("--set", "batch_size=4", "--out", "m.safetensors"),
    )
    assert result.exit_code == 0, result.output
    assert robustfdd.load_model("m.safetensors").config.classes == ("dark", "light")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "quickstrat"], ["unknown study 'quickstrat'", "quickstart"]),
        (["run", "quickstart", "--set", "recipe.epoch=3"], ["unknown key 'recipe.epoch'", "epochs"]),
        (["run", "quickstart", "--set", 'methods=["fdd-9d"]'], ["fdd-9d", "fdd-1d"]),
        (["run", "quickstart", "--device", "tpu"], ["--device tpu", "cpu, cuda"]),
        (["run", "quickstart", "--only", "fdd"], ["--only fdd", "fdd-1d"]),
        (["run", "quickstart", "--set", "dataset=mnist"], ["unknown data set 'mnist'", "fashion-mnist-mini"]),
        (["run", "quickstart", "--epsilon", "3"], ["No such option", "--epsilon"]),
        (
            ["train", "--dataset", "quarters", "--dropout", "fdd-9d", "--epochs", "1", "--out", "m.safetensors"],
            ["fdd-9d"],
        ),
        (["train", "--dataset", "quarters", "--dropout", "none", "--epochs", "1", "--out", "m.pt"], [".safetensors"]),
        (
            ["train", "--dataset", "quarters", "--dropout", "none", "--epochs", "0", "--out", "m.safetensors"],
            ["epochs"],
        ),
        (["attack", "--model", "x:y", "--dataset", "quarters", "--out", "r"], ["--linf", "--l2"]),
        (["report", "nowhere"], ["nowhere", "no run directory"]),
        (["list", "models"], ["models", "dropouts"]),
    ],
)
def test_mistakes_are_one_clear_message_and_exit_code_2(arguments: list[str], says: list[str]) -> None:
    before = sorted(Path().rglob("*"))
    refused(invoke(*arguments), *says)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("text", ["-0.1", "0.2,0.1", "0.1,0.1", "0.1;0.2", "nan", "inf", ""])
def test_senseless_epsilons_are_refused(text: str, quarters: Dataset) -> None:
    save_model(build_model(quarters, "none", width=1), Path("m.safetensors"), {})
    result = invoke("attack", "--model", "m.safetensors", "--dataset", "quarters", f"--linf={text}", "--out", "r")
    refused(result, "--linf")
    assert not Path("r").exists()


def test_damaged_images_are_named(tmp_path: Path) -> None:
    path = folder_data(tmp_path / "images", damage=True)
    result = invoke(
        *("train", "--dataset", f"folder:{path}", "--dropout", "none", "--epochs", 1, "--out", "m.safetensors")
    )
    refused(result, str(path / "test" / "dark" / "2.png"))


def test_list_shows_everything_that_can_be_named() -> None:
    result = invoke("list")
    assert result.exit_code == 0
    for name in ("fdd-3d", "spatial", "svhn", "fashion-mnist-mini", "folder:PATH", "pgd", "cifar100", "quickstart"):
        assert name in result.output
    only = invoke("list", "attacks")
    assert "fgsm" in only.output
    assert "fdd-3d" not in only.output


def test_version_and_help() -> None:
    assert invoke("--version").output.strip() == f"robustfdd {robustfdd.__version__}"
    for command in ("run", "train", "attack", "report", "list"):
        assert invoke(command, "--help").exit_code == 0


def test_an_interruption_says_how_to_go_on(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustfdd import units  # noqa: PLC0415

    calls = []
    real = units.measure_sweep

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(units, "measure_sweep", interrupted)
    result = invoke("run", study_file, "--out", "r", "--no-audit")
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    assert len(list(Path("r/results").glob("*.parquet"))) == 1
    monkeypatch.setattr(units, "measure_sweep", real)
    assert invoke("run", study_file, "--out", "r", "--no-audit").exit_code == 0
