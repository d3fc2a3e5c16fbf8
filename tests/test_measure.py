"""Success is decided by measuring, never by a library's word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import LinearModel
from torch import Tensor

from robustfdd.catalogue import load_attack
from robustfdd.engines import Perturb, get_engine
from robustfdd.errors import EngineError, ModelContractError
from robustfdd.measure import CleanOutcome, clean_outcome, measure
from robustfdd.records import Outcome
from robustfdd.specs import LIBRARIES
from robustfdd.threat import NORMS, Threat

FGSM = load_attack("fgsm")


class FakeEngine:
    """Returns what it is told to, and remembers what it was asked to attack."""

    name = "foolbox"
    keeps_best = False

    def __init__(self, change) -> None:
        self.change = change
        self.seen: list[Tensor] = []

    def wrap(self, model, *, n_classes, image_shape):
        raise NotImplementedError

    def prepare(self, model, attack, threat, **_) -> Perturb:
        def perturb(x: Tensor, y: Tensor) -> Tensor:
            self.seen.append(x)
            return self.change(x)

        return perturb


@pytest.fixture
def linear() -> LinearModel:
    """Class 1 where the first pixel is above 0.5."""
    weight = torch.zeros(1, 1, 2, 2)
    weight[0, 0, 0, 0] = 1.0
    return LinearModel(weight, -0.5)


@pytest.fixture
def clean(linear: LinearModel) -> CleanOutcome:
    """First pixels 0.2, 0.4, 0.6, 0.8 (in steps of 1/255); the last label is wrong on purpose."""
    images = torch.full((4, 1, 2, 2), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([51, 102, 153, 204])
    return clean_outcome(linear, images, torch.tensor([0, 0, 1, 0]), n_classes=2, batch_size=3)


@pytest.mark.parametrize("engine", LIBRARIES)
@pytest.mark.parametrize("norm", NORMS)
def test_every_figure_by_hand(linear: LinearModel, clean: CleanOutcome, norm: str, engine: str) -> None:
    """One pixel counts: eps = 0.15 crosses 0.5 from 0.4 and 0.6, not from 0.2; the fourth is not attacked."""
    result = measure(linear, clean, FGSM, Threat(norm, 0.15), engine=get_engine(engine), batch_size=2)
    assert result.outcome.tolist() == [Outcome.SURVIVED, Outcome.BROKEN, Outcome.BROKEN, Outcome.MISCLASSIFIED]
    assert result.prediction.tolist() == [0, 1, 0, 1]
    assert result.distance.tolist() == pytest.approx([0.15, 0.15, 0.15, 0], rel=1e-5)
    assert result.robust_accuracy == 0.25
    assert result.gradient_passes == 3


def test_eps_zero_is_the_clean_accuracy_and_runs_nothing(linear: LinearModel, clean: CleanOutcome) -> None:
    engine = FakeEngine(lambda x: 1 - x)
    result = measure(linear, clean, FGSM, Threat("linf", 0), engine=engine)
    assert engine.seen == []
    assert result.robust_accuracy == 0.75
    assert result.outcome.tolist() == [1, 1, 1, 0]
    assert result.distance.max() == 0


def test_only_correct_images_are_attacked(linear: LinearModel, clean: CleanOutcome) -> None:
    engine = FakeEngine(lambda x: x)
    result = measure(linear, clean, FGSM, Threat("linf", 0.1), engine=engine, batch_size=2)
    assert torch.cat(engine.seen)[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert result.outcome.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: (x + 0.2).clamp(0, 1), "left its linf budget of 0.1 on 3 of 3"),
        (lambda x: torch.where(x > 0.45, x + 0.1, x + 0.1001).clamp(0, 1), "left its linf budget of 0.1 on 2 of 3"),
        (lambda x: x - 0.55, "left the box"),
        (lambda x: x * float("nan"), "left the box"),
        (lambda x: x[:, :, :1], "returned shape"),
        (lambda x: x.copy_((x + 0.2).clamp(0, 1)), "left its linf budget"),
    ],
)
def test_an_engine_that_cheats_yields_no_number(linear: LinearModel, clean: CleanOutcome, change, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        measure(linear, clean, FGSM, Threat("linf", 0.1), engine=FakeEngine(change))


def test_rounding_out_of_the_box_is_put_back(linear: LinearModel) -> None:
    images = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    clean = clean_outcome(linear, images, torch.tensor([1]), n_classes=2, batch_size=1)
    result = measure(linear, clean, FGSM, Threat("linf", 0.1), engine=FakeEngine(lambda x: x + 3e-7))
    assert result.distance.tolist() == [0]


def test_a_break_counts_even_where_the_library_saw_none(linear: LinearModel, clean: CleanOutcome) -> None:
    """Measured against the true label: a changed prediction is a break whatever the engine thinks of it."""
    result = measure(linear, clean, FGSM, Threat("linf", 0.7), engine=FakeEngine(lambda x: 1 - x))
    assert (result.outcome == Outcome.BROKEN).sum() == 3


class Returns(torch.nn.Module):
    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


@pytest.mark.parametrize(
    ("f", "says"),
    [
        (lambda x: x.flatten(1)[:, :3], "must return 2 logits"),
        (lambda x: x.flatten(1)[:, :1], "must return 2 logits"),
        (lambda x: x, "shape"),
        (lambda x: x.flatten(1)[:1, :2], "shape"),
        (lambda x: (x, x), "tuple"),
        (lambda x: x.flatten(1)[:, :2].softmax(1), "probabilities"),
        (lambda x: x.flatten(1)[:, :2].double(), "float32 logits"),
        (lambda x: x.flatten(1)[:, :2] - x.flatten(1)[:, :2].mean(0), "depend on the other images"),
        (lambda x: x.flatten(1)[:, :2].detach(), "no gradient"),
        (lambda x: x.flatten(1)[:, :2] / 0, "NaN or infinite"),
        (lambda x: x.flatten(1)[:, :2] * torch.rand(len(x), 2), "random in evaluation mode"),
        (lambda x: x.reshape(len(x), 7), "fails on a batch of 4 images of shape"),
    ],
)
def test_models_that_break_the_contract_are_named(f, says: str) -> None:
    images = torch.arange(64, dtype=torch.uint8).reshape(4, 1, 4, 4)
    with pytest.raises(ModelContractError, match=says):
        clean_outcome(Returns(f), images, torch.tensor([0, 1, 0, 1]), n_classes=2, batch_size=4)


def test_prediction_of_bytes_and_of_floats_is_the_same(linear: LinearModel) -> None:
    from robustfdd.classifier import predict  # noqa: PLC0415

    images = torch.randint(0, 256, (33, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = (images[:, 0, 0, 0].numpy() / 255 > 0.5).astype(np.int64)
    assert predict(linear, images, batch_size=7).tolist() == expected.tolist()
    assert predict(linear, images.float() / 255).tolist() == expected.tolist()
