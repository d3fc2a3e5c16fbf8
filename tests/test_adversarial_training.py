"""Adversarial training: what it perturbs and how far, what it leaves alone, and that it makes a network robust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import STUDY, TinyNet
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from robustfdd import training
from robustfdd.adversarial_training import craft, random_start
from robustfdd.analysis import run as analysis_run
from robustfdd.analysis.base import ANALYSES, TrainedModel
from robustfdd.analysis.run import analyse_run
from robustfdd.ascent import pgd
from robustfdd.catalogue import load_study
from robustfdd.classifier import frozen, weights_digest
from robustfdd.datasets import load_dataset
from robustfdd.datasets.augment import augment
from robustfdd.datasets.base import Dataset, Split, to_pixels
from robustfdd.errors import ConfigurationError
from robustfdd.evaluation import run_evaluation
from robustfdd.manifest import describe_study
from robustfdd.models import build_model, load_model, read_checkpoint, save_model
from robustfdd.records import read_json, write_json
from robustfdd.specs import AdversarialTraining, Recipe
from robustfdd.threat import Threat, in_box
from robustfdd.training import fit

PLAIN = Recipe(epochs=2, batch_size=32, learning_rate=0.05, weight_decay=0.0)
PGD = {"attack": "pgd", "norm": "linf", "eps": 0.05, "steps": 4}
PGD_L2 = {"attack": "pgd", "norm": "l2", "eps": 0.7, "steps": 4}
FAST = {"attack": "fast", "eps": 0.05}
ALL = pytest.mark.parametrize("how", [PGD, PGD_L2, FAST], ids=["pgd-linf", "pgd-l2", "fast"])


def recipe_of(how: dict[str, object], **changes: object) -> Recipe:
    return PLAIN.changed({"adversarial": how, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(24, 1, 10, 10), torch.arange(24) % 4


# --- the perturbation ------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_images_stay_in_budget_and_box_and_lose(
    tiny_net: TinyNet, batch: tuple[Tensor, Tensor], how: dict[str, object], precision: str
) -> None:
    x, y = batch
    recipe = recipe_of(how, precision=precision)
    crafted = craft(tiny_net, x, y, recipe, generator())
    assert recipe.adversarial is not None
    threat = Threat(recipe.adversarial.norm, recipe.adversarial.eps)
    assert threat.within(x, crafted).all()
    assert (threat.distance(x, crafted) > 0.5 * threat.eps).all()
    assert in_box(crafted).all()
    assert not crafted.requires_grad
    with torch.no_grad():
        before, after = (F.cross_entropy(tiny_net(images), y, reduction="none") for images in (x, crafted))
    assert (after > before).all()


def reference_pgd(net: nn.Module, x: Tensor, y: Tensor, start: np.ndarray, how: AdversarialTraining) -> np.ndarray:
    """PGD of the mean loss, written out in NumPy for images one by one."""
    found = []
    for image, label, delta in zip(x, y, start, strict=True):
        clean = image.numpy().astype(np.float64)
        now = np.clip(clean + delta, 0, 1)
        for _ in range(how.steps):
            leaf = torch.from_numpy(now).float()[None].requires_grad_()
            F.cross_entropy(net(leaf), label[None]).backward()
            gradient = leaf.grad[0].numpy().astype(np.float64)  # type: ignore[union-attr]  # backward has filled it
            step = how.relative_step * how.eps
            if how.norm == "linf":
                now = np.clip(now + step * np.sign(gradient), clean - how.eps, clean + how.eps)
            else:
                offset = now + step * gradient / np.sqrt((gradient**2).sum()) - clean
                now = clean + offset * min(1.0, how.eps / np.sqrt((offset**2).sum()))
            now = np.clip(now, 0, 1)
        found.append(now)
    return np.stack(found)


@ALL
def test_steps_are_those_of_projected_gradient_ascent(
    tiny_net: TinyNet, batch: tuple[Tensor, Tensor], how: dict[str, object]
) -> None:
    x, y = batch
    recipe = recipe_of(how)
    assert recipe.adversarial is not None
    start = random_start(x, Threat(recipe.adversarial.norm, recipe.adversarial.eps), generator(7)).numpy()
    expected = reference_pgd(tiny_net, x, y, start, recipe.adversarial)
    crafted = craft(tiny_net, x, y, recipe, generator(7)).numpy()
    # A sign flips where a gradient is 0 but for rounding: that moves a pixel by two steps.
    assert np.isclose(crafted, expected, atol=1e-5).mean() > 0.999


def test_fast_is_one_step_of_five_quarters_of_the_radius(tiny_net: TinyNet, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    start = (x + random_start(x, Threat("linf", 0.05), generator(3))).clamp(0, 1)
    leaf = start.clone().requires_grad_()
    F.cross_entropy(tiny_net(leaf), y).backward()
    assert leaf.grad is not None
    expected = (start + 1.25 * 0.05 * leaf.grad.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    crafted = craft(tiny_net, x, y, recipe_of(FAST), generator(3))
    assert float((crafted - expected).abs().amax()) < 1e-6


def test_starts_are_uniform_in_the_ball() -> None:
    x = torch.zeros(4000, 1, 1, 3)
    linf = random_start(x, Threat("linf", 0.5), generator())
    for probability in (0.1, 0.5, 0.9):
        assert float((linf < probability - 0.5).double().mean()) == pytest.approx(probability, abs=0.015)
    l2 = random_start(x, Threat("l2", 0.5), generator())
    length = l2.flatten(1).norm(dim=1)
    # In three dimensions half of a ball's volume lies within 0.5 ** (1 / 3) of its radius.
    assert float((length < 0.5 * 0.5 ** (1 / 3)).double().mean()) == pytest.approx(0.5, abs=0.025)
    assert float(length.max()) <= 0.5 * (1 + 1e-6)
    assert l2.mean(0).abs().max() < 0.02


@ALL
def test_the_model_is_left_as_it_was(batch: tuple[Tensor, Tensor], quarters: Dataset, how: dict[str, object]) -> None:
    x, y = to_pixels(quarters.train.images[:8]), quarters.train.labels[:8]
    model = build_model(quarters, "original", width=1).train()
    model.stem[1].eval()
    before, modes = weights_digest(model), [module.training for module in model.modules()]
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    craft(model, x, y, recipe_of(how), generator())
    assert torch.equal(torch.rand(3), expected), "no mask may be drawn"
    assert weights_digest(model) == before, "no running statistic may move"
    assert [module.training for module in model.modules()] == modes
    assert [parameter.grad is None for parameter in model.parameters()] == [False] + [True] * (
        len(list(model.parameters())) - 1
    )
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- training --------------------------------------------------------------------------------------------------------


def inputs_of(model: nn.Module, split: Split, recipe: Recipe, seed: int) -> list[Tensor]:
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.append(inputs[0].detach().clone())

    handle = model.register_forward_pre_hook(keep)
    fit(model, split, recipe, seed=seed)
    handle.remove()
    return seen


def test_a_recipe_without_it_draws_order_and_augmentation_and_nothing_else(quarters: Dataset) -> None:
    recipe = PLAIN.changed({"augmentation": "crop-flip"})
    source = generator(5)
    expected = [
        to_pixels(augment(quarters.train.images[index], "crop-flip", source))
        for _ in range(recipe.epochs)
        for index in torch.randperm(160, generator=source).split(32)
    ]
    seen = inputs_of(build_model(quarters, "none", width=1), quarters.train, recipe, 5)
    assert [torch.equal(a, b) for a, b in zip(seen, expected, strict=True)] == [True] * 10


def test_the_model_is_trained_on_what_was_crafted_alone(quarters: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    crafted: list[Tensor] = []

    def record(*arguments: object) -> Tensor:
        crafted.append(craft(*arguments))  # type: ignore[arg-type]  # handed through
        return crafted[-1]

    monkeypatch.setattr(training, "craft", record)
    seen = inputs_of(build_model(quarters, "none", width=1), quarters.train, recipe_of(PGD), 5)
    assert len(crafted) == 10
    assert all(torch.equal(a, b) for a, b in zip(seen, crafted, strict=True))


@ALL
def test_one_seed_gives_the_same_weights_twice(quarters: Dataset, how: dict[str, object]) -> None:
    split = Split(quarters.train.images[:64], quarters.train.labels[:64])

    def weights(seed: int, recipe: Recipe) -> str:
        model = build_model(quarters, "original", width=1)
        fit(model, split, recipe, seed=seed)
        return weights_digest(model)

    recipe = recipe_of(how, epochs=1)
    one = weights(3, recipe)
    assert weights(3, recipe) == one
    assert weights(4, recipe) != one
    assert weights(3, PLAIN.changed({"epochs": 1})) != one


def test_a_layer_of_test_time_has_no_part_in_it(quarters: Dataset) -> None:
    """So that its weights are those of the network that is trained without it."""
    digests = []
    for dropout in ("none", "sap"):
        model = build_model(quarters, dropout, width=1)
        fit(model, quarters.train, recipe_of(PGD, epochs=1), seed=0)
        digests.append(weights_digest(model))
    assert digests[0] == digests[1]


def test_it_makes_a_network_robust() -> None:
    data = load_dataset("fashion-mnist-mini")
    x, y = to_pixels(data.test.images[:200]), data.test.labels[:200]
    split = Split(data.train.images[:2000], data.train.labels[:2000])
    threat = Threat("linf", 0.1)
    clean, robust = {}, {}
    for name, changes in (("plain", {}), ("fast", {"adversarial": {"attack": "fast", "eps": threat.eps}})):
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.AvgPool2d(2), nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(8 * 6 * 6, 32), nn.ReLU(), nn.Linear(32, 10)),
        )
        fit(model, split, Recipe(epochs=4, batch_size=32, learning_rate=0.05).changed(changes), seed=0)
        with frozen(model):
            clean[name] = float((model(x).argmax(1) == y).double().mean())
            robust[name] = float((pgd(model, x, y, threat, steps=10, relative_step=0.25).margin <= 0).double().mean())
    assert min(clean.values()) > 0.5
    assert robust["fast"] > robust["plain"] + 0.1


# --- the recipe ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"attack": "fast", "norm": "l2", "eps": 0.1}, "use 'pgd' for 'l2'"),
        ({"attack": "fast", "eps": 0.1, "steps": 3}, "1 step of 1.25 eps; leave steps and relative_step out"),
        ({"attack": "fast", "eps": 0.1, "relative_step": 0.5}, "1 step of 1.25 eps"),
        ({"attack": "pgd", "eps": 0}, "greater than 0"),
        ({"attack": "pgd", "eps": 8}, "at most 1 in linf"),
        ({"attack": "pgd", "eps": 0.1, "steps": 0}, "greater than or equal to 1"),
        ({"attack": "trades", "eps": 0.1}, "'pgd' or 'fast'"),
    ],
)
def test_mistakes_are_refused(how: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        recipe_of(how)


def test_what_is_left_out_is_what_the_papers_have() -> None:
    pgd_at, fast = recipe_of({"attack": "pgd", "eps": 0.03}), recipe_of({"attack": "fast", "eps": 0.03})
    assert pgd_at.adversarial == AdversarialTraining(attack="pgd", norm="linf", eps=0.03, steps=7, relative_step=0.25)
    assert fast.adversarial is not None
    assert (fast.adversarial.norm, fast.adversarial.steps, fast.adversarial.relative_step) == ("linf", 1, 1.25)
    assert (PLAIN.n_gradients, fast.n_gradients, pgd_at.n_gradients) == (0, 1, 7)
    for recipe in (PLAIN, pgd_at, fast):
        assert Recipe.model_validate(json.loads(json.dumps(recipe.model_dump()))) == recipe


def test_a_recipe_without_it_is_written_as_before_there_was_any() -> None:
    assert set(PLAIN.model_dump()) == {
        *("epochs", "batch_size", "learning_rate", "schedule", "momentum", "nesterov", "weight_decay"),
        *("augmentation", "precision"),
    }


# --- methods with a recipe of their own ------------------------------------------------------------------------------

OWN = '{dropout = "none", label = "at", recipe = {epochs = 1, adversarial = {attack = "fast", eps = 0.02}}}'


def study_with(tmp_path: Path, *methods: str, text: str = STUDY) -> Path:
    first, last = text.index("methods ="), text.index("eps_unit")
    path = tmp_path / "own.toml"
    path.write_text(f"{text[:first]}methods = [{', '.join(methods)}]\n{text[last:]}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("{epochs = 0}", r"methods\.1\.recipe\.epochs: .*greater than or equal to 1"),
        ("{epoch = 3}", r"unknown key 'methods\.1\.recipe\.epoch'; did you mean 'epochs'\?"),
        ("{adversarial = {attack = 'pgd'}}", r"key 'methods\.1\.recipe\.adversarial\.eps' is missing"),
        ("{adversarial = {attack = 'pgd', eps = 3}}", r"methods\.1\.recipe\.adversarial\.eps: .*at most 1"),
        ("{momentum = 0}", r"methods\.1\.recipe: nesterov needs a momentum"),
        ("3", r"methods\.1\.recipe"),
    ],
)
def test_mistakes_in_a_methods_recipe_name_the_key(tmp_path: Path, recipe: str, says: str) -> None:
    text = STUDY.replace("[recipe]", "[recipe]\nnesterov = true")
    path = study_with(tmp_path, '"none"', f'{{dropout = "none", label = "at", recipe = {recipe}}}', text=text)
    with pytest.raises(ConfigurationError, match=says):
        load_study(path)


def test_a_methods_recipe_is_the_studys_with_changes(tmp_path: Path) -> None:
    study = load_study(study_with(tmp_path, '"none"', OWN))
    plain, own = (study.recipe_of(method) for method in study.methods)
    assert plain == study.recipe
    adversarial = AdversarialTraining(attack="fast", eps=0.02)
    assert own == study.recipe.model_copy(update={"epochs": 1, "adversarial": adversarial})
    described = describe_study(study)
    assert "recipe" not in described["methods"][0]
    assert described["methods"][1]["recipe"] == {"epochs": 1, "adversarial": adversarial.model_dump()}
    assert "adversarial" not in described["recipe"]


SMALLER = ("attacks=[{name = 'fgsm', eps = {linf = [0.1]}}]", "engines=['foolbox']", "test_images=12")
SAP = '{dropout = "sap", eot_samples = 1}'
SAP_OWN = '{dropout = "sap", label = "sap-own", eot_samples = 1, recipe = {epochs = 1}}'


@pytest.mark.usefixtures("quarters_registered")
def test_each_method_is_trained_and_known_by_its_own_recipe(tmp_path: Path) -> None:
    path = study_with(tmp_path, OWN, '"none"', SAP, SAP_OWN)
    study = load_study(path, SMALLER)
    run = run_evaluation(path, out=tmp_path / "run", overrides=SMALLER)
    models = {method.label: run / "models" / f"{method.label}--seed0.safetensors" for method in study.methods}
    for method in study.methods:
        made_of = read_checkpoint(models[method.label]).provenance
        assert Recipe.model_validate(made_of["recipe"]) == study.recipe_of(method), method.label
    # The layer of test time is put into the network of the same recipe, not into another one without dropout.
    assert read_checkpoint(models["sap"]).provenance["weights_of"] == "none--seed0.safetensors"
    assert "weights_of" not in read_checkpoint(models["sap-own"]).provenance
    weights = {label: weights_digest(load_model(file)) for label, file in models.items()}
    assert weights["sap"] == weights["none"]
    assert len(set(weights.values())) == 3

    def stamps() -> dict[str, int]:
        return {label: file.stat().st_mtime_ns for label, file in models.items()}

    before = stamps()
    run_evaluation(path, out=run, overrides=SMALLER)
    assert stamps() == before


@pytest.mark.usefixtures("quarters_registered")
def test_a_run_of_before_is_the_same_run(run: Path, study_file: Path) -> None:
    """Its manifest and its checkpoints say nothing of adversarial training, nor of any later default."""
    manifest = read_json(run / "manifest.json")
    assert "adversarial" not in manifest["study"]["recipe"]
    assert all("recipe" not in method for method in manifest["study"]["methods"])
    model = run / "models" / "none--seed0.safetensors"
    checkpoint = read_checkpoint(model)
    assert "adversarial" not in checkpoint.provenance["recipe"]
    shorter = {key: value for key, value in checkpoint.provenance["recipe"].items() if key != "precision"}
    save_model(load_model(model), model, {**checkpoint.provenance, "recipe": shorter})
    history = model.with_suffix(".json")
    write_json(history, {**read_json(history), "sha256": read_checkpoint(model).sha256})
    stamp = model.stat().st_mtime_ns
    run_evaluation(study_file, out=run)
    assert model.stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("quarters_registered")
def test_a_crafted_image_costs_as_many_input_gradients_as_steps(
    tmp_path: Path, quarters: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: dict[str, float] = {}

    def stop(total: float, console: object) -> None:
        totals["now"] = total
        raise StopIteration

    monkeypatch.setattr("robustfdd.evaluation.Display", stop)

    def total(*methods: str) -> float:
        with pytest.raises(StopIteration):
            run_evaluation(study_with(tmp_path, *methods), out=tmp_path / str(len(totals)) / methods[0][-9:-2])
        return totals["now"]

    fast, plain = (
        total(f'{{dropout = "none", label = "x", recipe = {{epochs = 2{more}}}}}', '"spatial"')
        for more in (", adversarial = {attack = 'fast', eps = 0.1}", "")
    )
    assert fast - plain == pytest.approx(2 * len(quarters.train))


@pytest.mark.usefixtures("quarters_registered")
def test_analyses_see_the_recipe_of_the_method(
    tmp_path: Path, quarters: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = '{dropout = "original", label = "at", recipe = {epochs = 1, adversarial = {attack = "fast", eps = 0.02}}}'
    path = study_with(tmp_path, own, '"none"')
    run = run_evaluation(path, out=tmp_path / "run", overrides=SMALLER)
    seen: dict[str, Recipe] = {}

    def look(trained: TrainedModel) -> Mapping[str, pd.DataFrame]:
        seen[trained.model.config.dropout] = trained.recipe
        return {"looked": pd.DataFrame({"there": [1]})}

    cost = replace(ANALYSES["cost"], name="look", tables=("looked",), compute=look, applies=lambda config: True)
    monkeypatch.setattr(analysis_run, "ANALYSES", {"look": cost})
    assert analyse_run(run, dataset=quarters) == []
    study = load_study(path, SMALLER)
    assert seen == {method.dropout: study.recipe_of(method) for method in study.methods}
