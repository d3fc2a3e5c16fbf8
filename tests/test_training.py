from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from robustfdd import preparation
from robustfdd.datasets.base import Dataset, Split
from robustfdd.dropouts import Dropout
from robustfdd.errors import CheckpointError, ConfigurationError, DatasetError, TrainingError
from robustfdd.models import build_model, load_model
from robustfdd.specs import Recipe
from robustfdd.training import fit, train

RECIPE = Recipe(epochs=2, batch_size=32, learning_rate=0.05, weight_decay=0.0)


class Logistic(nn.Module):
    """A linear classifier whose SGD can be followed by hand."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1))


def numpy_sgd(split: Split, recipe: Recipe, n_classes: int) -> np.ndarray:
    """SGD with momentum, weight decay and cosine annealing in float64, on batches that hold the whole split."""
    x = split.images.numpy().reshape(len(split.labels), -1).astype(np.float64) / 255
    x = np.hstack((x, np.ones((len(x), 1))))
    y = np.eye(n_classes)[split.labels.numpy()]
    weight = np.zeros((x.shape[1], n_classes))
    velocity = np.zeros_like(weight)
    for step in range(recipe.epochs):
        logits = x @ weight
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        gradient = x.T @ (p - y) / len(x) + recipe.weight_decay * weight
        velocity = recipe.momentum * velocity + gradient
        rate = recipe.learning_rate
        if recipe.schedule == "cosine":
            rate *= (1 + np.cos(np.pi * step / recipe.epochs)) / 2
        weight -= rate * velocity
    return weight


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_recipe_is_sgd_as_the_textbook_has_it(quarters: Dataset, schedule: str) -> None:
    recipe = Recipe(epochs=6, batch_size=160, learning_rate=0.3, schedule=schedule, momentum=0.8, weight_decay=0.01)
    model = Logistic(64, 4)
    fit(model, quarters.train, recipe, seed=0)
    expected = numpy_sgd(quarters.train, recipe, 4)
    assert pytest.approx(expected[:-1], abs=1e-5) == model.linear.weight.detach().numpy().T
    assert model.linear.bias.detach().numpy() == pytest.approx(expected[-1], abs=1e-5)


def test_training_learns_and_tells_its_history(quarters: Dataset, tmp_path: Path) -> None:
    model = build_model(quarters, "fdd-2d", width=4)
    out = tmp_path / "m.safetensors"
    recipe = RECIPE.model_copy(update={"epochs": 4})
    seen: list[int] = []
    checkpoint = train(model, quarters, recipe, seed=0, out=out, advance=seen.append)
    history = json.loads(out.with_suffix(".json").read_text())
    assert sum(seen) == 4 * 160
    assert [e["epoch"] for e in history["epochs"]] == [1, 2, 3, 4]
    assert history["epochs"][-1]["loss"] < history["epochs"][0]["loss"]
    assert history["epochs"][-1]["learning_rate"] == pytest.approx(0, abs=1e-9)
    assert history["sha256"] == checkpoint.sha256
    with torch.no_grad():
        prediction = load_model(out)(quarters.test.images.float() / 255).argmax(1)
    assert history["clean_accuracy"] == float((prediction == quarters.test.labels).double().mean()) > 0.5
    assert checkpoint.provenance["recipe"] == recipe.model_dump()


def test_any_classifier_can_be_trained_and_its_weights_loaded(quarters: Dataset, tmp_path: Path) -> None:
    model = Logistic(64, 4)
    checkpoint = train(model, quarters, RECIPE, seed=0, out=tmp_path / "m.safetensors")
    assert checkpoint.config is None
    fresh = Logistic(64, 4)
    fresh.load_state_dict(load_file(checkpoint.path))
    assert torch.equal(fresh.linear.weight, model.linear.weight)
    with pytest.raises(CheckpointError, match="not of this package"):
        load_model(checkpoint.path)


def test_what_cannot_work_is_found_before_training(quarters: Dataset, tmp_path: Path) -> None:
    seen: list[int] = []
    model = build_model(quarters, "none", width=1)
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file" / "m.safetensors", tmp_path):
        with pytest.raises(OSError, match=str(tmp_path)):
            train(model, quarters, RECIPE, seed=0, out=out, advance=seen.append)
    other = replace(quarters, classes=("a", "b", "c", "d"))
    with pytest.raises(DatasetError, match="trained for 'quarters'"):
        train(model, other, RECIPE, seed=0, out=tmp_path / "m.safetensors", advance=seen.append)
    assert seen == []
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_one_seed_gives_the_same_weights_twice(quarters: Dataset, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"augmentation": "crop-flip"})

    def run(seed: int, name: str) -> str:
        torch.rand(len(name))  # another global state must not matter
        model = build_model(quarters, "original", width=2, seed=0)
        return train(model, quarters, recipe, seed=seed, out=tmp_path / f"{name}.safetensors").sha256

    torch.manual_seed(5)
    one = run(3, "one")
    # The file also names the seed; compare weights of the same provenance only.
    assert run(3, "again") == one
    assert run(4, "other-seed") != one


def test_the_global_random_state_is_left(quarters: Dataset) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fit(build_model(quarters, "original", width=1), quarters.train, RECIPE, seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_divergence_is_an_error_and_writes_nothing(quarters: Dataset, tmp_path: Path) -> None:
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=1e20, schedule="constant")
    with pytest.raises(TrainingError, match=r"lower recipe\.learning_rate"):
        train(build_model(quarters, "none", width=1), quarters, recipe, seed=0, out=tmp_path / "m.safetensors")
    assert list(tmp_path.glob("m*")) == []


def test_a_last_batch_of_one_image_is_left_out(quarters: Dataset) -> None:
    split = Split(quarters.train.images[:9], quarters.train.labels[:9])
    seen: list[int] = []
    fit(build_model(quarters, "none", width=1), split, Recipe(epochs=1, batch_size=4), seed=0, advance=seen.append)
    assert seen == [4, 4]


# --- dropouts that follow the training -------------------------------------------------------------------------------


def test_layers_are_told_how_far_training_is(quarters: Dataset) -> None:
    split = Split(quarters.train.images[:20], quarters.train.labels[:20])
    model = build_model(quarters, "guided", width=1, placement="stages")
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    seen: list[list[tuple[float, float]]] = [[] for _ in layers]
    for layer, told in zip(layers, seen, strict=True):
        layer.register_forward_hook(lambda layer, *_, told=told: told.append((layer.progress, layer.rate)))
    fit(model, split, Recipe(epochs=3, batch_size=8), seed=0)
    expected = [(epoch + images / 20) / 3 for epoch in range(3) for images in (0, 8, 16)]
    assert len(layers) == 4
    for told in seen:
        assert [progress for progress, _ in told] == pytest.approx(expected)
        assert [rate for _, rate in told] == [0.2] * 3 + [0.15] * 3 + [0.1] * 3


def test_strengths_are_learned_kept_in_the_checkpoint_and_used(quarters: Dataset, tmp_path: Path) -> None:
    model = build_model(quarters, "guided", width=2)
    train(model, quarters, RECIPE, seed=0, out=tmp_path / "m.safetensors")
    strength = model.feature_dropout.strength.detach()
    assert (strength != 1).all()
    loaded = load_model(tmp_path / "m.safetensors")
    assert torch.equal(loaded.feature_dropout.strength, strength)
    x = quarters.test.images[:4].float() / 255
    with torch.no_grad():
        expected = loaded.classifier(loaded.features(x) * strength)
        torch.testing.assert_close(loaded(x), expected)


# --- bfloat16 --------------------------------------------------------------------------------------------------------

BF16 = RECIPE.model_copy(update={"precision": "bf16"})


@pytest.mark.parametrize("name", ["none", "fdd-2d", "guided"])
def test_training_in_bfloat16_gives_weights_in_single_precision(quarters: Dataset, tmp_path: Path, name: str) -> None:
    out = tmp_path / "m.safetensors"
    model = build_model(quarters, name, width=4)
    checkpoint = train(model, quarters, BF16.model_copy(update={"epochs": 4}), seed=0, out=out)
    assert checkpoint.provenance["recipe"]["precision"] == "bf16"
    for tensors in (model.state_dict(), load_file(out)):
        assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
    history = json.loads(out.with_suffix(".json").read_text())
    assert history["epochs"][-1]["loss"] < history["epochs"][0]["loss"]
    # What is measured afterwards is in single precision.
    loaded = load_model(out)
    with torch.no_grad():
        logits = loaded(quarters.test.images.float() / 255)
    assert logits.dtype == torch.float32
    assert history["clean_accuracy"] == float((logits.argmax(1) == quarters.test.labels).double().mean()) > 0.5


def test_one_seed_gives_the_same_weights_twice_in_bfloat16(quarters: Dataset, tmp_path: Path) -> None:
    digests = [
        train(
            build_model(quarters, "fdd-1d", width=2), quarters, BF16, seed=3, out=tmp_path / f"{k}.safetensors"
        ).sha256
        for k in range(2)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_convolutions_and_products_are_in_bfloat16(quarters: Dataset, precision: str) -> None:
    seen: dict[str, set[torch.dtype]] = {"convolution": set(), "dropout": set(), "gradient": set()}
    model = build_model(quarters, "fdd-2d", width=2)
    model.stem[0].register_forward_hook(lambda *call: seen["convolution"].add(call[2].dtype))
    model.map_dropout.register_forward_pre_hook(lambda _, inputs: seen["dropout"].add(inputs[0].dtype))
    model.stem[0].weight.register_hook(lambda gradient: seen["gradient"].add(gradient.dtype))
    fit(model, quarters.train, RECIPE.model_copy(update={"epochs": 1, "precision": precision}), seed=0)
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    # Densities are counted from maps in single precision, though the values that come in were rounded before.
    assert seen == {"convolution": {half}, "dropout": {torch.float32}, "gradient": {torch.float32}}


def test_bfloat16_differs_from_single_precision_by_little(quarters: Dataset) -> None:
    """A model without batch norm, whose training is no chaos: the weights differ by rounding and no more."""
    recipe = Recipe(epochs=6, batch_size=40, learning_rate=0.1, momentum=0.5)
    weights = {}
    for precision in ("fp32", "bf16"):
        model = Logistic(64, 4)
        losses = [
            epoch.loss
            for epoch in fit(model, quarters.train, recipe.model_copy(update={"precision": precision}), seed=0)
        ]
        assert losses[-1] < 0.8 * losses[0]
        weights[precision] = model.linear.weight.detach()
    difference = float((weights["bf16"] - weights["fp32"]).norm() / weights["fp32"].norm())
    # bfloat16 has 8 bits: every product is off by up to 2 ** -9, which averages out and does not grow.
    assert 0 < difference < 2**-7


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match="'fp32' or 'bf16'"):
        Recipe(epochs=1, precision="fp16")  # type: ignore[arg-type]  # the mistake that is tested


# --- torch.compile ---------------------------------------------------------------------------------------------------

ADVERSARIAL: dict[str, Any] = {"attack": "pgd", "eps": 0.05, "steps": 2}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Every graph that is compiled; they run as they were traced, so that there is no rounding to tell them by."""
    traced: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        traced.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, *, dynamic, options: real(model, dynamic=dynamic, backend=backend)
    )
    return traced


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("name", ["guided", "fdd-3d"])
def test_a_training_is_compiled_once(
    quarters: Dataset, graphs: list[torch.fx.GraphModule], name: str, adversarial: bool
) -> None:
    """Not anew for a last smaller batch, nor when a rate changes; and nothing runs outside the graph."""
    split = Split(quarters.train.images[:20], quarters.train.labels[:20])
    recipe = Recipe(epochs=3, batch_size=8, adversarial=ADVERSARIAL if adversarial else None)
    found = []
    for compiled in (False, True):
        model = build_model(quarters, name, width=1)
        history = fit(model, split, recipe, seed=0, compile=compiled)
        found.append(([epoch.loss for epoch in history], model.state_dict()))
    # The attack has a graph of its own, of the model in evaluation mode.
    assert len(graphs) == 1 + adversarial
    (losses, weights), (compiled_losses, compiled_weights) = found
    assert losses == compiled_losses
    assert list(weights) == list(compiled_weights)
    assert all(torch.equal(weights[key], compiled_weights[key]) for key in weights)


def test_a_split_smaller_than_a_batch_is_compiled_too(quarters: Dataset, graphs: list[torch.fx.GraphModule]) -> None:
    split = Split(quarters.train.images[:6], quarters.train.labels[:6])
    fit(Logistic(64, 4), split, Recipe(epochs=2, batch_size=8), seed=0, compile=True)
    assert len(graphs) == 1


def test_without_a_compiler_nothing_is_trained(
    quarters: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation.shutil, "which", lambda name: None)
    seen: list[int] = []
    out = tmp_path / "m.safetensors"
    with pytest.raises(ConfigurationError, match=r"torch\.compile needs a C\+\+ compiler"):
        train(Logistic(64, 4), quarters, RECIPE, seed=0, out=out, advance=seen.append, compile=True)
    assert seen == []
    assert list(tmp_path.glob("m*")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "tolerance"), [("fdd-2d", "fp32", 1e-4), ("original", "bf16", 1e-2)])
def test_compilation_changes_rounding_only(
    quarters: Dataset, tmp_path: Path, name: str, precision: str, tolerance: float
) -> None:
    """The loss of the first step, which crops and mask decide, and of the second, which the gradients decide too."""
    recipe = Recipe(epochs=2, batch_size=160, augmentation="crop-flip", precision=precision)
    losses, names = {}, []
    for run, seed, compiled in (("plain", 0, False), ("compiled", 0, True), ("other seed", 1, False)):
        out = tmp_path / f"{run}.safetensors"
        train(build_model(quarters, name, width=2), quarters, recipe, seed=seed, out=out, compile=compiled)
        losses[run] = [epoch["loss"] for epoch in json.loads(out.with_suffix(".json").read_text())["epochs"]]
        names.append(list(load_model(out).state_dict()))
    assert losses["compiled"][0] == pytest.approx(losses["plain"][0], rel=tolerance)
    assert losses["other seed"][0] != pytest.approx(losses["plain"][0], rel=tolerance)
    # A unit that is 0 to rounding before a ReLU lets its gradient through or does not.
    assert losses["compiled"][1] == pytest.approx(losses["plain"][1], rel=10 * tolerance)
    assert names[0] == names[1]
