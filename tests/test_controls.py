"""The controls of the audit: each broken defence has the property that breaks it, and its images keep their classes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import controls
import numpy as np
import pytest
import torch
from conftest import TinyNet, make_dataset
from controls import (
    CONTROLS,
    KWinnersTakeAll,
    QuantisedInput,
    RandomNoise,
    RandomResize,
    SaturatingActivation,
    ScaledLogits,
    SmallCNN,
    distil,
    fit_to_probabilities,
    replace_activations,
    smoothed,
)
from torch import Tensor, nn
from torch.nn import functional as F

from robustfdd.classifier import check_classifier, predict, weights_digest
from robustfdd.datasets.base import Dataset, Split, to_pixels
from robustfdd.dropouts import Dropout
from robustfdd.errors import ConfigurationError
from robustfdd.models import build_model
from robustfdd.specs import Recipe
from robustfdd.training import fit

RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return gradient


@pytest.fixture(scope="module")
def trained(quarters: Dataset) -> TinyNet:
    torch.manual_seed(2)
    net = TinyNet()
    net(to_pixels(quarters.train.images[:2]))  # settles the lazy layer
    fit(net, quarters.train, RECIPE, seed=0)
    return net


@pytest.fixture(scope="module")
def images(quarters: Dataset) -> tuple[Tensor, Tensor]:
    return to_pixels(quarters.test.images), quarters.test.labels


# --- wrappers --------------------------------------------------------------------------------------------------------


def test_scaled_logits_keep_every_prediction_and_lose_their_gradients(
    trained: TinyNet, images: tuple[Tensor, Tensor]
) -> None:
    x, y = images
    scaled = ScaledLogits(trained, 1000.0)
    with torch.no_grad():
        torch.testing.assert_close(scaled(x), 1000 * trained(x))
    right = trained(x).argmax(1) == y
    assert (input_gradient(trained, x, y)[right].flatten(1).abs().amax(1) > 0).all()
    assert (input_gradient(scaled, x, y)[right].flatten(1).abs().amax(1) == 0).double().mean() > 0.9
    # What divides the logits again finds them again.
    (gradient,) = torch.autograd.grad(
        F.cross_entropy(scaled(leaf := x.clone().requires_grad_()) / 1000, y, reduction="sum"), leaf
    )
    torch.testing.assert_close(gradient, input_gradient(trained, x, y), rtol=1e-4, atol=1e-6)


def test_rounding_leaves_no_gradient(trained: TinyNet, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    seen: list[Tensor] = []
    handle = trained.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    quantised = QuantisedInput(trained, 8)
    assert not input_gradient(quantised, x, y).any()
    handle.remove()
    assert seen[0].unique().numpy() * 7 == pytest.approx(np.unique(np.round(7 * x.numpy())), abs=1e-5)
    assert float((seen[0] - x).abs().max()) <= 0.5 / 7 + 1e-6
    assert check_classifier(quantised, x[:8]) == 4
    accuracy = [(predict(model, x) == y).double().mean() for model in (quantised, trained)]
    assert accuracy[0] > accuracy[1] - 0.1


@pytest.mark.parametrize("wrap", [RandomResize, lambda net: RandomNoise(net, 0.1)], ids=["resize", "noise"])
def test_random_defences_draw_for_every_image(wrap: object) -> None:
    data = make_dataset(n_train=4, n_test=4, size=28)
    model = wrap(build_model(data, "none", width=2)).eval()  # type: ignore[operator]  # a class or a function
    x = to_pixels(data.test.images[:1]).expand(40, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        first, second = model(x), model(x)
        torch.manual_seed(0)
        again = model(x)
    assert torch.equal(first, again)
    assert (first != second).any(1).double().mean() > 0.7
    assert len(first.unique(dim=0)) > 5
    assert check_classifier(model, x, random=True) == 4
    assert input_gradient(model, x, torch.zeros(40, dtype=torch.int64)).flatten(1).any(1).all()


class Frame(nn.Module):
    """Keeps what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.mean((2, 3))


@pytest.mark.parametrize(("side", "frame"), [(28, 31), (8, 9), (20, 22)])
def test_a_resized_image_is_somewhere_in_its_frame(side: int, frame: int) -> None:
    x = torch.rand(60, 3, side, side) + 0.1
    model = RandomResize(Frame())
    torch.manual_seed(1)
    model(x)
    seen = model.model.seen
    assert seen.shape == (60, 3, frame, frame)
    sizes, places = set(), set()
    for image, found in zip(x, seen, strict=True):
        rows, columns = (found.sum(0).any(axis).nonzero().flatten() for axis in (1, 0))
        top, left, size = int(rows[0]), int(columns[0]), len(rows)
        assert len(columns) == size == int(rows[-1]) - top + 1
        inside = found[:, top : top + size, left : left + size]
        assert torch.equal(inside, F.interpolate(image[None], size=(size, size), mode="nearest")[0])
        sizes.add(size)
        places.add((top, left))
    assert sizes == set(range(side, frame))
    assert len(places) > 3


def test_noise_is_gaussian_of_the_stated_deviation() -> None:
    model = RandomNoise(Frame(), 0.2)
    torch.manual_seed(0)
    model(torch.full((50, 1, 20, 20), 0.5))
    noise = model.model.seen - 0.5
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.2, rel=0.03)
    assert float((noise.abs() < 0.2).double().mean()) == pytest.approx(0.683, abs=0.015)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ScaledLogits(Frame(), 0), "factor"),
        (lambda: QuantisedInput(Frame(), 1), "levels"),
        (lambda: RandomResize(Frame(), 1.0), "ratio"),
        (lambda: RandomNoise(Frame(), -0.1), "sigma"),
        (lambda: KWinnersTakeAll(0.0), "fraction"),
    ],
)
def test_mistakes_are_refused(make: object, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        make()  # type: ignore[operator]  # a function


# --- activations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_winners_take_all(fraction: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 5, 4, 4)
    found = KWinnersTakeAll(fraction)(x).flatten(1).numpy()
    for values, kept in zip(x.flatten(1).numpy(), found, strict=True):
        winners = np.argsort(values)[-round(fraction * 80) :]
        expected = np.zeros_like(values)
        expected[winners] = values[winners]
        assert np.array_equal(kept, expected)


def test_a_saturated_unit_has_no_derivative_in_evaluation() -> None:
    x = torch.linspace(-3, 3, 601).requires_grad_()
    layer = SaturatingActivation(100.0).eval()
    (derivative,) = torch.autograd.grad(layer(x).sum(), x)
    expected = 1 / (1 + np.exp(-100 * x.detach().numpy().astype(np.float64)))
    assert layer(x).detach().numpy() == pytest.approx(expected, abs=1e-5)
    assert derivative.numpy() == pytest.approx(100 * expected * (1 - expected), abs=1e-2)
    assert float((derivative < 1e-6).double().mean()) > 0.9
    # In training the values are the same; the derivative is that of a gentle sigmoid, so that something is learned.
    layer.train()
    torch.testing.assert_close(layer(x).detach(), torch.from_numpy(expected).float(), atol=1e-5, rtol=0)
    (derivative,) = torch.autograd.grad(layer(x).sum(), x)
    gentle = torch.sigmoid(2 * x.detach())
    torch.testing.assert_close(derivative, 2 * gentle * (1 - gentle))


def test_every_relu_is_replaced(quarters: Dataset) -> None:
    model = replace_activations(build_model(quarters, "none", width=1), lambda: KWinnersTakeAll(0.2))
    assert sum(isinstance(module, nn.ReLU) for module in model.modules()) == 0
    assert sum(isinstance(module, KWinnersTakeAll) for module in model.modules()) == 1 + 8


# --- trainings -------------------------------------------------------------------------------------------------------


def test_training_on_certain_probabilities_is_training_on_labels(quarters: Dataset) -> None:
    split = Split(quarters.train.images[:48], quarters.train.labels[:48])
    nets = []
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    for targets in (None, F.one_hot(split.labels, 4).float()):
        nets.append(copy.deepcopy(net))
        if targets is None:
            fit(nets[-1], split, RECIPE, seed=3)
        else:
            fit_to_probabilities(nets[-1], split, targets, RECIPE, seed=3)
    torch.testing.assert_close(nets[0][1].weight, nets[1][1].weight)
    assert not torch.equal(net[1].weight, nets[1][1].weight)


def test_smoothed_labels() -> None:
    found = smoothed(torch.tensor([1, 0]), 4, 0.2)
    torch.testing.assert_close(found, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.85, 0.05, 0.05, 0.05]]))


def test_distillation_makes_the_logits_as_many_times_larger_as_the_temperature(quarters: Dataset) -> None:
    """Exactly so for a linear classifier that begins at 0: with f = T g, a rate of T^2 for f is a rate of 1 for g."""
    x, y = to_pixels(quarters.test.images), quarters.test.labels
    nets = {}
    for temperature in (1.0, 8.0):
        nets[temperature] = net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        nn.init.zeros_(net[1].weight)
        nn.init.zeros_(net[1].bias)
        recipe = RECIPE.changed({"learning_rate": 0.02 * temperature**2, "weight_decay": 0.0})
        distil(net, quarters.train, recipe, temperature=temperature, seed=0)
        assert not net.training
    torch.testing.assert_close(nets[8.0][1].weight, 8 * nets[1.0][1].weight, rtol=1e-3, atol=1e-4)
    assert float((predict(nets[8.0], x) == y).double().mean()) > 0.8
    with torch.no_grad():
        probabilities = nets[1.0](x).softmax(1)
    # The student learned the teacher's probabilities, which are less certain than the labels.
    taught = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.zeros_(taught[1].weight)
    nn.init.zeros_(taught[1].bias)
    fit(taught, quarters.train, RECIPE.changed({"learning_rate": 0.02, "weight_decay": 0.0}), seed=0)
    with torch.no_grad():
        assert probabilities.amax(1).mean() < taught(x).softmax(1).amax(1).mean()


# --- the list --------------------------------------------------------------------------------------------------------


def test_every_kind_is_there_tuned_and_held_out() -> None:
    assert {(control.kind, control.held_out) for control in CONTROLS.values()} == {
        (kind, held_out) for kind in ("negative", "positive", "plain") for held_out in (False, True)
    }
    for control in CONTROLS.values():
        assert bool(control.flaw) == (control.kind == "negative"), control.name


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, quarters: Dataset) -> Dataset:
    """A data set so small that every control is trained in a moment."""
    few = Split(quarters.train.images[:16], quarters.train.labels[:16])
    return replace(quarters, train=few)


@pytest.mark.parametrize("name", list(CONTROLS))
def test_every_control_is_a_classifier_and_is_kept(name: str, short: Dataset, tmp_path: Path) -> None:
    control = CONTROLS[name]
    training = replace(control.training, recipe=control.training.recipe.changed({"epochs": 1, "batch_size": 8}))
    control = replace(control, training=training)
    model = control.build(short, 0, 1, cache=tmp_path / "cache")
    x = to_pixels(short.test.images[:16])
    random = control.eot_samples > 0 or (control.kind == "negative" and "random" in control.flaw)
    assert check_classifier(model, x, 4, random=random) == 4
    assert not any(module.training for module in model.modules())
    (kept,) = (tmp_path / "cache").glob("*.safetensors")
    stamp = kept.stat().st_mtime_ns
    again = control.build(short, 0, 1, cache=tmp_path / "cache")
    assert weights_digest(again) == weights_digest(model)
    assert kept.stat().st_mtime_ns == stamp
    with torch.no_grad():
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        torch.testing.assert_close(again(x), expected)


def test_weights_are_kept_apart_by_everything_they_depend_on(short: Dataset, tmp_path: Path) -> None:
    training = replace(CONTROLS["small-cnn"].training, recipe=Recipe(epochs=1, batch_size=8))
    other = replace(training, settings={"more": 1.0})
    longer = replace(training, recipe=Recipe(epochs=2, batch_size=8))
    for how, seed, width in ((training, 0, 1), (training, 1, 1), (training, 0, 2), (other, 0, 1), (longer, 0, 1)):
        how.trained(short, seed, width, tmp_path)
    training.trained(replace(short, sha256="1" * 64), 0, 1, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 6


def test_sap_prunes_after_every_stage_of_the_trained_network(short: Dataset) -> None:
    control = CONTROLS["sap"]
    assert control.training is CONTROLS["none"].training
    training = replace(control.training, recipe=Recipe(epochs=1, batch_size=8))
    model = replace(control, training=training).build(short, 0, 1)
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    assert [layer.active for layer in layers] == ["test"] * 4
    assert weights_digest(model) == weights_digest(training.trained(short, 0, 1, None))


def test_the_small_network_is_another_architecture(quarters: Dataset) -> None:
    model = CONTROLS["small-cnn"].training.network(quarters, 0, 2)
    assert isinstance(model, SmallCNN)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model(to_pixels(quarters.test.images[:3])).shape == (3, 4)
    assert controls.RECIPE.epochs == 4
