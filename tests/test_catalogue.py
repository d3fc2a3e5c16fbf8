from __future__ import annotations

from pathlib import Path

import pytest
from conftest import STUDY
from hypothesis import given
from hypothesis import strategies as st

from robustfdd.catalogue import attack_names, load_attack, load_study, parse, resolve_attacks, study_names
from robustfdd.datasets import DATASETS
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import ConfigurationError
from robustfdd.specs import AttackSpec, normalized_eps, pixel_eps
from robustfdd.threat import Threat


def test_what_comes_with_the_package_is_valid() -> None:
    assert set(attack_names()) >= {"fgsm", "bim", "pgd"}
    expected = {"quickstart", "fashion-mnist", "fashion-mnist-slim", "cifar10", "cifar100", "svhn"}
    assert set(study_names()) >= expected
    for name in attack_names():
        assert load_attack(name).name == name
    for name in study_names():
        study = load_study(name)
        assert study.name == name
        assert study.dataset in DATASETS
        assert {method.dropout for method in study.methods} <= set(DROPOUTS)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100", "svhn"])
def test_full_size_studies_follow_the_paper(name: str) -> None:
    study = load_study(name)
    assert [m.label for m in study.methods] == list(DROPOUTS)  # all that the paper compares, and none twice
    assert {m.label: m.eot_samples for m in study.methods if m.eot_samples} == {"sap": 8}
    assert study.recipe.precision == "fp32"
    assert study.model.width * 8 == 512
    recipe = study.recipe
    assert (recipe.batch_size, recipe.learning_rate, recipe.schedule) == (64, 0.01, "cosine")
    assert study.eps_unit == "normalized"
    assert {"recipe.epochs", "recipe.augmentation", "recipe.momentum", "recipe.weight_decay"} <= set(study.open_choices)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("fashion-mnist", {"fgsm": {0.03, 0.06, 0.12}, "bim": {0.02, 0.03}, "pgd": {0.02, 0.03}}),
        ("cifar100", {"fgsm": {0.015, 0.03, 0.06}, "bim": {0.015, 0.03}, "pgd": {0.015, 0.03}}),
    ],
)
def test_table_3_is_covered(name: str, published: dict[str, set[float]]) -> None:
    grids = {use.name: set(use.eps["linf"]) for use in load_study(name).attacks}
    for attack, eps in published.items():
        assert eps <= grids[attack]
        spec = load_attack(attack)
        if attack != "fgsm":
            assert spec.spelled("art", Threat("linf", 0.5), 1).arguments["eps_step"] == pytest.approx(0.05)
            assert spec.n_gradients == 10


def write(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('title = "Small"', 'titel = "Small"', ["unknown key 'titel'", "did you mean 'title'", "'title' is missing"]),
        ("epochs = 3", "epoch = 3", ["unknown key 'recipe.epoch'", "learning_rate", "'recipe.epochs' is missing"]),
        ("epochs = 3", "epochs = 0", ["recipe.epochs", "greater than or equal to 1", "given: 0"]),
        ("epochs = 3", 'epochs = "three"', ["recipe.epochs", "integer", "given: 'three'"]),
        ("epochs = 3", 'epochs = 3\nprecision = "fp16"', ["recipe.precision", "'fp32' or 'bf16'", "given: 'fp16'"]),
        ('"none", {dropout', '{dropout = "sap", eot_samples = 0}, {dropout', ["methods.0.eot_samples", "given: 0"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = [0, 0.8, 0.1]", ["attacks.0.eps", "strictly ascending"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = [0.1, 0.1]", ["attacks.0.eps", "strictly ascending"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = [-0.1, 0.1]", ["attacks.0.eps.linf.0", "greater than or equal to 0"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = [nan]", ["attacks.0.eps.linf.0", "finite"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = []", ["attacks.0.eps", "must have one above 0"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = [0]", ["attacks.0.eps", "must have one above 0"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.linf = [true]", ["attacks.0.eps.linf.0", "valid number"]),
        ("parameters = {steps = 3}", "parameters = {steps = 0}", ["attacks.1", "parameters.steps", "above 0"]),
        ("parameters = {steps = 3}", "parameters = {relative_step = -0.1}", ["relative_step", "above 0"]),
        ('name = "fgsm"', 'name = "pgd"', ["attacks.1", "'pgd' is given more than once"]),
        ('name = "small"', f'name = "{"s" * 60}"', ["name", "at most 48"]),
        ("eps.linf = [0, 0.1, 0.8]", "eps.l1 = [0.1]", ["attacks.0.eps.l1", "'linf' or 'l2'"]),
        ('name = "fgsm"', 'name = "fgms"', ["unknown attack 'fgms'", "did you mean 'fgsm'", "bim"]),
        ("parameters = {steps = 3}", "parameters = {step = 3}", ["no parameter 'step'", "steps"]),
        ("parameters = {steps = 3}", "parameters = {steps = 3.5}", ["parameter 'steps'", "3.5"]),
        ('eps_unit = "normalized"', 'eps_unit = "pixels"', ["eps_unit", "'pixel' or 'normalized'", "'pixels'"]),
        ('name = "small"', 'name = "../small"', ["name", "lower-case letters", "'../small'"]),
        ('methods = ["none",', 'methods = ["none", "none",', ["methods", "none", "more than once"]),
        ('"none", {dropout', '"none", {dropuot', ["methods.1", "unknown key", "dropout"]),
        ("width = 2", "width = 2\ndepth = 3", ["unknown key 'model.depth'", "allowed: width"]),
        ('dataset = "quarters"', 'dataset = "quarters"\nengines = ["native2"]', ["engines.0", "'foolbox'", "'art'"]),
        ('title = "Small"', "title = Small", ["not valid TOML", "line 3"]),
    ],
)
def test_a_mistake_names_file_key_and_what_is_allowed(tmp_path: Path, old: str, new: str, says: list[str]) -> None:
    assert old in STUDY
    path = write(tmp_path, STUDY.replace(old, new))
    with pytest.raises(ConfigurationError) as caught:
        load_study(path)
    message = str(caught.value)
    assert all(part in message for part in says), message
    assert str(path) in message
    assert "Tuple should have at least" not in message  # a consequence of a mistake inside the list
    assert len(message.splitlines()) < 20


def test_names_and_paths_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"unknown study 'cifar-100'; did you mean 'cifar100'"):
        load_study("cifar-100")
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: no such study file"):
        load_study(tmp_path / "nowhere.toml")
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_study(path)


def test_overrides_change_single_values(study_file: Path) -> None:
    study = load_study(study_file, ["recipe.epochs=7", "model.width=3", "title=Another title", "seeds=[1, 2]"])
    assert (study.recipe.epochs, study.model.width, study.title, study.seeds) == (7, 3, "Another title", (1, 2))
    with pytest.raises(ConfigurationError, match="key=value"):
        load_study(study_file, ["recipe.epochs"])
    with pytest.raises(ConfigurationError, match=r"unknown key 'recipe\.epoch'; did you mean 'epochs'"):
        load_study(study_file, ["recipe.epoch=7"])
    with pytest.raises(ConfigurationError, match="not a table"):
        load_study(study_file, ["title.x=7"])


def test_only_keeps_the_methods_named(study_file: Path) -> None:
    assert [m.label for m in load_study(study_file, only=["fdd-2d-inverted"]).methods] == ["fdd-2d-inverted"]
    with pytest.raises(ConfigurationError, match=r"--only fdd-3d: the study .* allowed: none, fdd-2d-inverted"):
        load_study(study_file, only=["fdd-3d"])


def test_a_study_may_name_an_attack_file(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "attacks" / "pgd.toml").read_text(encoding="utf-8")
    attack = write(
        tmp_path, text.replace('name = "pgd"', 'name = "pgd-50"').replace("steps = 10", "steps = 50"), "a.toml"
    )
    study = load_study(write(tmp_path, STUDY.replace('name = "pgd"', f'name = "{attack.as_posix()}"')))
    assert [spec.name for _, spec in resolve_attacks(study)] == ["fgsm", "pgd-50", "transfer"]


def test_an_attack_file_of_ones_own(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "attacks" / "bim.toml").read_text(encoding="utf-8")
    mine = load_attack(
        write(tmp_path, text.replace('name = "bim"', 'name = "bim-50"').replace("steps = 10", "steps = 50"))
    )
    assert (mine.name, mine.n_gradients) == ("bim-50", 50)
    with pytest.raises(ConfigurationError, match=r"refers to \$stepz; allowed: .*\$steps"):
        load_attack(write(tmp_path, text.replace('max_iter = "$steps"', 'max_iter = "$stepz"')))
    with pytest.raises(ConfigurationError, match=r"unknown key 'engines.foolbox.linf.argument'"):
        load_attack(write(tmp_path, text.replace("arguments", "argument", 1).replace("[engines.art", "[engines.art")))


@given(eps=st.floats(0, 10), scale=st.floats(0.01, 1))
def test_epsilon_goes_to_pixels_and_back(eps: float, scale: float) -> None:
    assert pixel_eps(eps, "normalized", scale) == pytest.approx(eps * scale)
    assert normalized_eps(pixel_eps(eps, "normalized", scale), "pixel", scale) == pytest.approx(eps)
    assert pixel_eps(eps, "pixel", scale) == normalized_eps(eps, "normalized", scale) == eps


def test_specifications_cannot_be_changed() -> None:
    spec = load_attack("pgd")
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]
    assert parse(AttackSpec, spec.model_dump(by_alias=True), "x") == spec
