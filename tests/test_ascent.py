"""Gradient ascent against closed forms and against plain loops over one image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustfdd import Threat
from robustfdd.ascent import (
    LOSSES,
    apgd,
    difference_of_logits_ratio,
    direction,
    input_gradient,
    margin,
    pgd,
    project,
    tempered_cross_entropy,
)
from robustfdd.errors import ModelContractError

THREATS = [Threat("linf", 0.06), Threat("l2", 0.3)]


class Linear(nn.Module):
    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        weights = np.random.default_rng(0).normal(size=(3, 12))
        self.weight = nn.Parameter(scale * torch.tensor(weights, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Curved(nn.Module):
    """Wiggly enough that steps of one length overshoot."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 4))
        with torch.no_grad():
            self.net[1].weight.mul_(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def images(n: int = 7) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).uniform(0.35, 0.65, (n, 3, 2, 2))).float()


def labels(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)


def test_margin_and_dlr_are_those_of_their_papers() -> None:
    logits = torch.tensor([[3.0, 1.0, -2.0, 0.5], [0.0, 4.0, 2.5, 1.0]])
    y = torch.tensor([0, 2])
    assert margin(logits, y).tolist() == [-2.0, 1.5]
    # Croce & Hein, equation 6: -(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3)
    expected = [-(3.0 - 1.0) / (3.0 - 0.5), -(2.5 - 4.0) / (4.0 - 1.0)]
    assert difference_of_logits_ratio(logits, y).tolist() == pytest.approx(expected)


def test_dlr_does_not_depend_on_the_scale_of_the_logits() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 3, 4])
    found = difference_of_logits_ratio(1000 * logits, y)
    assert torch.allclose(difference_of_logits_ratio(logits, y), found, rtol=1e-5)


def test_temperature_divides_the_logits() -> None:
    logits, y = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([0])
    expected = -math.log(math.exp(0.2) / (math.exp(0.2) + math.exp(-0.1) + math.exp(0.05)))
    assert float(tempered_cross_entropy(10.0)(logits, y)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_projection_is_the_nearest_point_of_the_ball(threat: Threat) -> None:
    x = images()
    far = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    found = project(x, far, threat).numpy()
    for i in range(len(x)):
        delta = far[i].numpy().astype(float) - x[i].numpy()
        if threat.norm == "linf":
            delta = np.minimum(np.maximum(delta, -threat.eps), threat.eps)
        elif np.sqrt((delta**2).sum()) > threat.eps:
            delta = delta * threat.eps / np.sqrt((delta**2).sum())
        np.testing.assert_allclose(found[i], np.clip(x[i].numpy() + delta, 0, 1), atol=1e-6)
    inside = x + 1e-3
    assert torch.allclose(project(x, inside, threat), inside)


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e-25])
def test_direction_has_unit_length_however_small_the_gradient(size: float) -> None:
    gradient = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(4)) * size
    length = torch.linalg.vector_norm(direction(gradient, "l2").flatten(1), dim=1)
    assert torch.allclose(length, torch.ones(4), atol=1e-5)
    cosine = (direction(gradient, "l2").double() * gradient.double()).flatten(1).sum(1)
    assert torch.allclose(cosine, torch.linalg.vector_norm(gradient.double().flatten(1), dim=1), rtol=1e-4)
    assert torch.equal(direction(gradient, "linf"), torch.sign(gradient))
    assert not direction(torch.zeros_like(gradient), "l2").any()


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
@pytest.mark.parametrize("loss", ["ce", "margin"])  # of two classes DLR is constant
def test_two_classes_of_a_linear_model_are_climbed_to_the_optimum(threat: Threat, loss: str) -> None:
    model = Linear()
    model.weight.data = model.weight.data[:2]
    x = images()
    y = labels(model, x)
    w = (model.weight[1] - model.weight[0]).detach().double()
    toward = torch.where(y == 0, 1.0, -1.0).double()
    reach = threat.eps * (w.abs().sum() if threat.norm == "linf" else w.norm())
    before = margin(model(x), y).double()
    for found in (
        pgd(model, x, y, threat, steps=20, relative_step=0.2, loss=LOSSES[loss]),
        apgd(model, x, y, threat, steps=40, loss=LOSSES[loss]),
    ):
        assert torch.allclose(found.margin.double(), before + reach, atol=2e-3)
        moved = (found.x_adv - x).flatten(1).double() @ w * toward
        assert torch.allclose(moved, reach.expand(len(x)), atol=2e-3)
        assert bool(threat.within(x, found.x_adv).all())


def reference_apgd(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, start: Tensor) -> float:
    """Algorithm 1 of Croce & Hein 2020 on one image, in NumPy's double precision; the largest loss."""

    def loss_and_gradient(point: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.tensor(point, dtype=torch.float64)[None].requires_grad_()
        value = torch.nn.functional.cross_entropy(double(leaf), y)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient[0].numpy()

    double = Curved().double()
    double.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    origin = x[0].double().numpy()

    def put(point: np.ndarray) -> np.ndarray:
        delta = point - origin
        if threat.norm == "linf":
            delta = np.clip(delta, -threat.eps, threat.eps)
        else:
            delta = delta * min(1.0, threat.eps / max(np.sqrt((delta**2).sum()), 1e-30))
        return np.clip(origin + delta, 0, 1)

    def unit(gradient: np.ndarray) -> np.ndarray:
        return np.sign(gradient) if threat.norm == "linf" else gradient / np.sqrt((gradient**2).sum())

    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    looks = sorted({math.ceil(value * steps) for value in p if value <= 1})[1:]

    eta = 2 * threat.eps
    current = put(origin + start[0].double().numpy())
    previous = current
    value, gradient = loss_and_gradient(current)
    best, best_point, best_gradient = value, current, gradient
    history = [value]
    last, eta_then, best_then = 0, eta, -math.inf
    for k in range(steps):
        if k in looks:
            rises = sum(history[i] > history[i - 1] for i in range(last + 1, k + 1))
            halve = rises < 0.75 * (k - last) or (eta_then == eta and best_then == best)
            last, eta_then, best_then = k, eta, best
            if halve:
                eta, current, gradient = eta / 2, best_point, best_gradient
        z = put(current + eta * unit(gradient))
        new = z if k == 0 else put(current + 0.75 * (z - current) + 0.25 * (current - previous))
        previous, current = current, new
        value, gradient = loss_and_gradient(current)
        history.append(value)
        if value > best:
            best, best_point, best_gradient = value, current, gradient
    return best


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_apgd_is_algorithm_1_of_croce_and_hein(threat: Threat) -> None:
    model, x = Curved(), images()
    y = labels(model, x)
    start = 0.5 * threat.eps * direction(torch.randn(x.shape, generator=torch.Generator().manual_seed(5)), threat.norm)
    found = apgd(model, x, y, threat, steps=25, start=start)
    for i in range(len(x)):
        expected = reference_apgd(model, x[i : i + 1], y[i : i + 1], threat, 25, start[i : i + 1])
        assert float(found.losses[:, i].max()) == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_an_image_does_not_depend_on_its_batch(attack: object) -> None:
    model, x = Curved(), images()
    y = labels(model, x)
    more = {"relative_step": 0.2} if attack is pgd else {}
    whole = attack(model, x, y, THREATS[1], steps=15, stop=True, **more)  # type: ignore[operator]
    for i in range(len(x)):
        alone = attack(model, x[i : i + 1], y[i : i + 1], THREATS[1], steps=15, stop=True, **more)  # type: ignore[operator]
        # A sum of another batch is rounded in another way, which twenty steps on a curved surface make larger.
        assert torch.allclose(alone.x_adv[0], whole.x_adv[i], atol=1e-3)


def test_the_best_iterate_and_the_last_one() -> None:
    model, x = Curved(), images(40)
    y = labels(model, x)
    step = {"steps": 6, "relative_step": 1.7}
    last = pgd(model, x, y, THREATS[1], **step)
    best = pgd(model, x, y, THREATS[1], **step, best_iterate=True)
    assert torch.equal(last.margins, best.margins)
    assert torch.equal(last.margin, last.margins[-1])
    assert torch.equal(best.margin, best.margins.max(0).values)
    assert bool((best.margin > last.margin).any())
    assert torch.allclose(margin(model(best.x_adv), y), best.margin, atol=1e-5)


def test_stopping_leaves_a_broken_image_alone_and_costs_less() -> None:
    model, x = Curved(), images(40)
    y = labels(model, x)
    through = pgd(model, x, y, THREATS[1], steps=20, relative_step=0.125, best_iterate=True)
    stopped = pgd(model, x, y, THREATS[1], steps=20, relative_step=0.125, stop=True)
    broken = (through.margins > 0).any(0)
    assert torch.equal(stopped.margin > 0, broken)
    assert bool(broken.any())
    assert not bool(broken.all())
    first = (through.margins > 0).float().argmax(0)
    expected = int((first[broken] + 1).clamp_max(20).sum()) + 20 * int((~broken).sum())
    assert stopped.gradient_passes == expected
    at_first = through.margins.gather(0, first[None])[0]
    assert torch.allclose(stopped.margin[broken], at_first[broken])


def test_confident_predictions_still_have_a_direction() -> None:
    model, x = Linear(scale=60.0), images()
    y = labels(model, x)
    gap = -margin(model(x), y)
    assert bool((gap > 17).any())  # the probability of the true class rounds to 1
    *_, gradient = input_gradient(model, x, y, LOSSES["ce"])
    assert bool((gradient.flatten(1).abs().amax(1) > 0)[gap < 80].all())


def test_nan_is_named() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * math.nan

    x = images()
    with pytest.raises(ModelContractError, match="NaN"):
        pgd(Broken(), x, torch.zeros(len(x), dtype=torch.int64), THREATS[0], steps=2, relative_step=0.5)
