"""Minimum-norm attacks: the optimum of a linear model, one run for all radii, and what a failed search becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OFFERED, STUDY, LinearModel, short
from torch import Tensor, nn

from robustfdd.catalogue import load_attack, load_study
from robustfdd.datasets.base import Dataset, to_pixels
from robustfdd.engines import Perturb, get_engine
from robustfdd.errors import ConfigurationError, EngineError
from robustfdd.evaluation import evaluate
from robustfdd.measure import CleanOutcome, attack, clean_outcome, measure, measure_minimum_norm, whole_box
from robustfdd.records import Outcome
from robustfdd.specs import AttackSpec, Scalar
from robustfdd.threat import NORMS, Norm, Threat

NEAREST = [case for case in OFFERED if load_attack(case[0]).kind == "minimum-norm"]
#: Parameters with which each comes close to the optimum of a linear model, and is quick.
CLOSE: dict[str, dict[str, Scalar]] = {
    "cw": {"search_steps": 6, "steps": 150, "learning_rate": 0.01},
    "deepfool": {"overshoot": 0.002},
    "hopskipjump": {"steps": 30, "initial_evaluations": 60, "gamma": 0.1},
}


def linear_case(n: int = 6) -> tuple[LinearModel, Tensor, Tensor]:
    """A linear model, images around the middle of the box and near the boundary, and the classes predicted."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 1, 5, 4, generator=generator)
    x = 0.4 + 0.2 * torch.rand(n, 1, 5, 4, generator=generator)
    model = LinearModel(weight, 0.8 - float((weight * 0.5).sum()))
    return model, x, model(x).argmax(1)


def optimum(model: LinearModel, x: Tensor, norm: str) -> Tensor:
    """The distance to the boundary: the margin over the dual norm of w."""
    weight = model.weight.detach()
    return model(x)[:, 1].detach().abs() / (weight.abs().sum() if norm == "linf" else weight.norm())


@pytest.mark.parametrize(("name", "norm", "engine"), NEAREST)
def test_the_distance_is_within_2_percent_of_the_optimum(name: str, norm: Norm, engine: str) -> None:
    model, x, y = linear_case(3 if name == "hopskipjump" else 6)
    spec, best = load_attack(name).with_parameters(CLOSE.get(name, {})), optimum(model, x, norm)
    x_adv = attack(model, x, y, spec, whole_box(norm, (1, 5, 4)), engine=engine)
    assert (model(x_adv).argmax(1) != y).all()
    ratio = Threat(norm, 0).distance(x, x_adv) / best
    assert float(ratio.min()) > 1 - 1e-4
    assert float(ratio.max()) < 1.02


@pytest.fixture
def linear() -> LinearModel:
    """Class 1 where the first pixel is above 0.5."""
    weight = torch.zeros(1, 1, 2, 2)
    weight[0, 0, 0, 0] = 1.0
    return LinearModel(weight, -0.5)


@pytest.fixture
def clean(linear: LinearModel) -> CleanOutcome:
    """First pixels 0.2, 0.4, 0.6, 0.8, so that distances to the boundary are 0.3, 0.1, 0.1; the last label is wrong."""
    images = torch.full((4, 1, 2, 2), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([51, 102, 153, 204])
    return clean_outcome(linear, images, torch.tensor([0, 0, 1, 0]), n_classes=2, batch_size=3)


class FakeEngine:
    """Returns what it is told to, and remembers what it was asked to attack."""

    name = "foolbox"
    keeps_best = False

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change
        self.seen: list[Tensor] = []
        self.threats: list[Threat] = []

    def prepare(self, model: nn.Module, attack: AttackSpec, threat: Threat, **_: object) -> Perturb:
        self.threats.append(threat)

        def perturb(x: Tensor, y: Tensor) -> Tensor:
            self.seen.append(x)
            return self.change(x)

        return perturb


RADII = (0.0, 0.05, 0.11, 0.35)
S, B, M = Outcome.SURVIVED, Outcome.BROKEN, Outcome.MISCLASSIFIED


@pytest.mark.parametrize("norm", NORMS)
def test_one_run_gives_the_outcome_at_every_radius(linear: LinearModel, clean: CleanOutcome, norm: Norm) -> None:
    def across(x: Tensor) -> Tensor:
        """Just over the boundary at 0.5, in the pixel that counts."""
        x = x.clone()
        x[:, 0, 0, 0] = torch.where(x[:, 0, 0, 0] > 0.5, 0.499, 0.501)
        return x

    engine, spec = FakeEngine(across), load_attack("deepfool")
    advanced: list[float] = []
    results = measure_minimum_norm(
        linear, clean, spec, [Threat(norm, eps) for eps in RADII], engine=engine, batch_size=2, advance=advanced.append
    )
    assert len(engine.threats) == 1
    assert torch.cat(engine.seen)[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert [r.outcome.tolist() for r in results] == [[S, S, S, M], [S, S, S, M], [S, B, B, M], [B, B, B, M]]
    assert [r.robust_accuracy for r in results] == [0.75, 0.75, 0.25, 0]
    assert [r.prediction.tolist() for r in results] == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 0, 1]]
    distances = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0.101, 0.101, 0], [0.301, 0.101, 0.101, 0]]
    for result, expected in zip(results, distances, strict=True):
        assert result.distance.tolist() == pytest.approx(expected, abs=1e-6)
    # All passes are counted once.
    assert [r.gradient_passes for r in results] == [0, 3 * spec.n_gradients, 0, 0]
    assert sum(advanced) == 3 * spec.n_gradients
    single = measure(linear, clean, spec, Threat(norm, RADII[2]), engine=engine)
    assert single.outcome.tolist() == results[2].outcome.tolist()


@pytest.mark.parametrize(("name", "norm", "engine"), NEAREST)
def test_every_attack_by_its_radii(name: str, norm: Norm, engine: str) -> None:
    """Radii that lie between the distances to the boundary of a linear model, and far enough from each."""
    model, x, y = linear_case(5)
    images = (x * 255).round().to(torch.uint8)
    y[0] = 1 - y[0]
    clean = clean_outcome(model, images, y, n_classes=2, batch_size=2)
    best = optimum(model, to_pixels(images), norm)
    near, far = sorted(best[1:].tolist())[::3]
    threats = [Threat(norm, eps) for eps in (0.0, 0.9 * near, (near + far) / 2, 1.1 * far)]
    spec = load_attack(name).with_parameters({**CLOSE, "hopskipjump": {"steps": 5}}.get(name, {}))
    results = measure_minimum_norm(model, clean, spec, threats, engine=get_engine(engine), batch_size=2)
    for threat, result in zip(threats, results, strict=True):
        expected = [M, *(B if float(distance) < threat.eps else S for distance in best[1:])]
        assert result.outcome.tolist() == expected
    assert results[2].robust_accuracy not in (0, 0.8)


def test_what_is_no_image_yields_no_number(linear: LinearModel, clean: CleanOutcome) -> None:
    for change, says in [
        (lambda x: x * float("nan"), "left the box"),
        (lambda x: x + 0.7, "left the box"),
        (lambda x: x[:1], "returned shape"),
    ]:
        with pytest.raises(EngineError, match=says):
            measure_minimum_norm(
                linear, clean, load_attack("cw"), [Threat("l2", 0.1)], engine=FakeEngine(change), batch_size=2
            )


def test_an_image_for_which_nothing_is_found_is_not_broken(linear: LinearModel, clean: CleanOutcome) -> None:
    """The image itself, or another that the model has right, however near, breaks nothing."""
    for change in (lambda x: x, lambda x: x + 0.001 * (x - 0.5).sign()):
        results = measure_minimum_norm(
            linear, clean, load_attack("fmn"), [Threat("linf", e) for e in RADII], engine=FakeEngine(change)
        )
        assert {tuple(r.outcome.tolist()) for r in results} == {(S, S, S, M)}
        assert {float(r.distance.max()) for r in results} == {0.0}


def test_hopskipjump_without_a_start_leaves_the_image() -> None:
    """No noise is misclassified by a model that knows one class only; Foolbox alone would raise an error."""
    model = LinearModel(torch.full((1, 1, 3, 3), 1e-3), 5.0)
    x = torch.rand(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    y = torch.ones(2, dtype=torch.int64)
    assert torch.equal(attack(model, x, y, short("hopskipjump"), whole_box("l2", (1, 3, 3))), x)


def test_attack_returns_examples_within_the_radius_and_images_else() -> None:
    model, x, y = linear_case()
    best = optimum(model, x, "l2")
    y = torch.where(torch.arange(len(x)) == 2, 1 - y, y)  # misclassified as it is
    radius = 0.15  # far from all of them
    x_adv = attack(model, x, y, "ddn", Threat("l2", radius))
    distance = Threat("l2", 0).distance(x, x_adv)
    for i in range(len(x)):
        if float(best[i]) < radius and i != 2:
            assert float(distance[i]) == pytest.approx(float(best[i]), rel=0.01)
            assert int(model(x_adv[i : i + 1]).argmax(1)) != int(y[i])
        else:
            assert torch.equal(x_adv[i], x[i])
    assert 0 < int((distance > 0).sum()) < len(x) - 1


def test_a_unit_is_one_run(quarters: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    module = sys.modules["robustfdd.measure"]  # the package has a function of that name
    real = module.measure_minimum_norm
    monkeypatch.setattr(module, "measure_minimum_norm", lambda *a, **o: calls.append(1) or real(*a, **o))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    threats = [Threat("l2", eps) for eps in (0.05, 0.2, 0.8)]
    frame = evaluate(model, quarters, ["ddn"], threats, test_images=24, out=tmp_path / "run")
    assert len(calls) == 1
    assert len(frame) == 4
    curve = frame.sort_values("eps_pixel").robust_accuracy.to_numpy()
    assert (np.diff(curve) <= 0).all()
    assert curve[-1] < curve[0] == frame.clean_accuracy.iloc[0]


def test_norms_that_no_library_has_soundly_are_named(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    for attack_name, norm, says in [
        ("fmn", "l2", "attack 'fmn' is offered by none of .* offered: foolbox: linf"),
        ("cw", "linf", "attack 'cw' is offered by none of .* offered: foolbox: l2"),
    ]:
        path.write_text(f'{STUDY}\n[[attacks]]\nname = "{attack_name}"\neps.{norm} = [0.1]\n')
        with pytest.raises(ConfigurationError, match=says):
            load_study(path)
