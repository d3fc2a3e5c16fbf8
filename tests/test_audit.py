"""Each indicator on a model of which the answer is known, and the audit as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustfdd
from robustfdd import ModelContractError, Threat, records
from robustfdd.audit import INDICATORS, AuditedAttack, Evidence, Finding
from robustfdd.audit.base import graded
from robustfdd.audit.indicators.noisy_surface import roughness
from robustfdd.audit.run import clean_of
from robustfdd.classifier import frozen
from robustfdd.datasets.base import Dataset, RawData, Split
from robustfdd.errors import ConfigurationError
from robustfdd.units import TestSet

EPS = 0.03
"""Radius of most audits here, in L-infinity."""


class Wrapped(nn.Module):
    """The linear model of the test's data, and something in front of it or behind it."""

    def __init__(self, weight: Tensor, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        logits = (self.before(x).flatten(1) - 0.5) @ self.weight.T
        return self.after(logits - torch.tensor([0.0, 0.0, 5.0], device=x.device))


def linear_dataset() -> tuple[Dataset, Tensor]:
    """Images around mid-grey and the weights of a linear model of three classes that is right on all of them.

    The third class is out of reach within the box, so the margin is that between the first two.
    """
    rng = np.random.default_rng(11)
    w = rng.normal(size=16).astype(np.float32)
    w *= 3 / np.abs(w).sum()
    images = rng.integers(90, 166, (160, 1, 4, 4), dtype=np.uint8)
    heights = (images.reshape(160, 16) / 255 - 0.5) @ w
    keep = np.abs(heights) > 0.01
    split = Split(torch.from_numpy(images[keep]), torch.from_numpy((heights[keep] > 0).astype(np.int64)))
    raw = RawData(("low", "high", "neither"), split, split, "made here")
    weight = torch.from_numpy(np.stack([-w / 2, w / 2, 0 * w]))
    return Dataset.from_raw(raw, name="linear", title="Linear"), weight


def same(x: Tensor) -> Tensor:
    return x


@pytest.fixture(scope="module")
def case() -> tuple[Dataset, Tensor]:
    """Images in a narrow band around mid-grey, and the weights of the linear model that labels them."""
    return linear_dataset()


def found(
    case: tuple[Dataset, Tensor],
    name: str,
    *,
    before: Callable[[Tensor], Tensor] = same,
    after: Callable[[Tensor], Tensor] = same,
    attack: AuditedAttack | None = None,
    eot_samples: int = 0,
    sibling: nn.Module | None = None,
    threat: Threat | None = None,
) -> Finding:
    """What one indicator finds in the wrapped linear model."""
    dataset, weight = case
    model = Wrapped(weight, before, after)
    test = TestSet.choose(dataset, None)
    clean = clean_of(model, test, eot_samples, 64)
    with frozen(model):
        evidence = Evidence(
            model,
            clean,
            threat or Threat("linf", EPS),
            attack=attack or AuditedAttack(),
            sibling=sibling,
            seed=0,
            batch_size=64,
        )
        return INDICATORS[name].compute(evidence)


def noise(x: Tensor) -> Tensor:
    return x + 0.05 * torch.randn_like(x)


def test_a_plain_linear_model_is_believable(case: tuple[Dataset, Tensor]) -> None:
    dataset, weight = case
    model = Wrapped(weight, same, same)
    audit = robustfdd.audit(model, dataset, Threat("linf", EPS), test_images=None)
    assert audit.verdict == "believable", [(i.name, i.finding) for i in audit.failed]
    # A linear model of two classes loses exactly the images whose margin the radius can cross.
    x = dataset.test.images.double() / 255
    w = (weight[1] - weight[0]).double()
    height = (x.flatten(1) - 0.5) @ w * torch.where(dataset.test.labels == 1, 1.0, -1.0)
    survivors = (height > EPS * w.abs().sum()).double().mean()
    assert 0.1 < float(survivors) < 0.9
    assert audit.audited_accuracy == pytest.approx(float(survivors))
    assert audit.worst_accuracy == pytest.approx(float(survivors))
    assert audit.clean_accuracy == 1.0


def test_every_indicator_is_there_once() -> None:
    assert sorted(indicator.number for indicator in INDICATORS.values()) == list(range(1, 18))
    for indicator in INDICATORS.values():
        assert indicator.source
        assert indicator.threshold
        assert indicator.advice


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, "passed"), (1.0, "passed"), (1.5, "warning"), (10.0, "warning"), (10.5, "alarm")]
)
def test_levels(value: float, expected: str) -> None:
    assert graded(value, warning=1.0, alarm=10.0) == expected


def test_one_image_of_few_decides_nothing() -> None:
    assert graded(2.0, warning=1.0, alarm=10.0, least=2.0) == "passed"
    assert graded(4.0, warning=1.0, alarm=10.0, least=2.0) == "warning"


def test_1_a_random_forward(case: tuple[Dataset, Tensor]) -> None:
    assert found(case, "random-forward").status == "passed"
    assert found(case, "random-forward", before=noise).status == "warning"


def test_3_no_gradient(case: tuple[Dataset, Tensor]) -> None:
    result = found(case, "zero-gradient", before=lambda x: torch.round(x * 255) / 255 + 0 * x)
    assert (result.status, result.value) == ("alarm", 1.0)
    assert len(result.images) == len(case[0].test.labels)
    assert found(case, "zero-gradient").value == 0


def test_4_a_search_without_gradients_finds_what_rounding_hides(case: tuple[Dataset, Tensor]) -> None:
    result = found(case, "black-box", before=lambda x: torch.round(x * 100) / 100 + 0 * x)
    assert result.status == "alarm"
    assert result.value is not None
    assert result.value > 20
    assert found(case, "black-box").value == 0


def test_5_and_6_an_attack_that_cannot_win(case: tuple[Dataset, Tensor]) -> None:
    for name in ("unbounded", "curve"):
        assert found(case, name).status == "passed"
        flat = found(case, name, after=lambda z: torch.round(z * 50) / 50 + 0 * z)
        assert flat.status == "alarm", flat.text


def test_6_a_curve_that_rises(case: tuple[Dataset, Tensor]) -> None:
    def returning(x: Tensor) -> Tensor:
        """Beyond the radius the image comes back: an adversary with more room is led astray."""
        delta = x - 0.5
        far = ((x - x.detach().clamp(0.35, 0.66)).abs().flatten(1).amax(1) > 0.1).view(-1, 1, 1, 1)
        return torch.where(far, 0.5 - delta, x)

    result = found(case, "curve", before=returning)
    assert result.status in ("warning", "alarm")


def test_7_one_step_reaches_what_short_ones_do_not(case: tuple[Dataset, Tensor]) -> None:
    short = AuditedAttack(steps=2, relative_step=0.05, random_start=False, best_iterate=False)
    result = found(case, "one-step", attack=short)
    assert result.status == "alarm"
    assert result.value is not None
    assert len(result.images) == round(result.value * len(case[0].test.labels) / 100)
    assert found(case, "one-step").value == 0


def test_8_and_9_too_few_steps(case: tuple[Dataset, Tensor]) -> None:
    short = AuditedAttack(steps=4, relative_step=0.1, random_start=False, best_iterate=False)
    more = found(case, "more-steps", attack=short)
    assert more.status == "warning"
    assert found(case, "more-steps").value == 0
    assert found(case, "convergence", attack=short).status == "warning"
    rising = AuditedAttack(steps=20, relative_step=0.04, random_start=False, best_iterate=False)
    result = found(case, "convergence", attack=rising)
    # A linear margin rises by the same in every step, so half of the gain comes in the last ten of twenty.
    assert result.value == pytest.approx(0.5, abs=0.02)
    assert found(case, "convergence").status == "passed"


def test_10_adversarial_on_the_way_only(case: tuple[Dataset, Tensor]) -> None:
    def periodic(z: Tensor) -> Tensor:
        turned = 3 * torch.sin((z[:, 1] - z[:, 0]) * 40)
        return torch.stack([-turned, turned, z[:, 2]], 1)

    over = AuditedAttack(steps=5, relative_step=0.7, random_start=False, best_iterate=False)
    result = found(case, "silent-success", after=periodic, attack=over)
    assert result.value is not None
    assert result.value > 1
    best = AuditedAttack(steps=3, relative_step=1.0, random_start=False, best_iterate=True)
    assert found(case, "silent-success", after=periodic, attack=best).value == 0


def test_11_roughness_is_the_way_over_the_height() -> None:
    slope = torch.linspace(0, 3, 33)[:, None]
    assert float(roughness(slope)) == pytest.approx(1)
    valley = torch.linspace(-1, 1, 33).abs()[:, None]
    assert float(roughness(valley)) == pytest.approx(2)
    saw = torch.tensor([0.0, 1.0] * 16 + [0.0])[:, None]
    assert float(roughness(saw)) == pytest.approx(32)
    assert float(roughness(torch.zeros(5, 1))) == 0


def test_11_a_noisy_surface(case: tuple[Dataset, Tensor]) -> None:
    assert found(case, "noisy-surface").value == pytest.approx(1, abs=0.05)
    rough = found(case, "noisy-surface", before=lambda x: x + 0.3 * torch.sin(2000 * x))
    assert rough.status == "warning"


def test_12_a_sibling_shows_what_the_model_hides(case: tuple[Dataset, Tensor]) -> None:
    plain = Wrapped(case[1], same, same)
    assert found(case, "transfer").status == "not applicable"
    assert found(case, "transfer", sibling=plain).value == 0
    hidden = found(case, "transfer", before=lambda x: torch.round(x * 100) / 100 + 0 * x, sibling=plain)
    assert hidden.status == "alarm"


def test_13_noise_beats_an_attack_that_goes_the_wrong_way(case: tuple[Dataset, Tensor]) -> None:
    def backwards(x: Tensor) -> Tensor:
        return x.detach() * 2 - x  # the right values, and the derivative of minus them

    assert found(case, "noise", before=backwards, threat=Threat("linf", 0.2)).status in ("warning", "alarm")
    assert found(case, "noise").value == 0


def test_14_only_averaging_sees_through_noise(case: tuple[Dataset, Tensor]) -> None:
    assert found(case, "averaged-gradient").status == "not applicable"

    def loud(x: Tensor) -> Tensor:
        """The gradient is drowned in noise that leaves the prediction alone."""
        g = torch.randn(x.shape, device=x.device)
        return x + 40 * g * (x - x.detach()) + 1e-2 * torch.randn_like(x)

    single = AuditedAttack(steps=10, random_start=False)
    result = found(case, "averaged-gradient", before=loud, attack=single)
    assert result.value is not None
    assert result.value > 1


def test_15_logits_out_of_scale(case: tuple[Dataset, Tensor]) -> None:
    assert found(case, "logit-scale").value == 0
    result = found(case, "logit-scale", after=lambda z: 3000 * z)
    assert result.status == "alarm"
    assert result.value is not None
    assert result.value > 20


def test_16_the_worst_case(case: tuple[Dataset, Tensor]) -> None:
    assert found(case, "worst-case").value == 0
    short = AuditedAttack(steps=4, relative_step=0.1, random_start=False, best_iterate=False)
    assert found(case, "worst-case", attack=short).status == "warning"
    assert found(case, "worst-case", after=lambda z: 3000 * z).status == "alarm"


def test_an_audit_leaves_the_model_and_the_random_state_alone(case: tuple[Dataset, Tensor]) -> None:
    dataset, weight = case
    model = Wrapped(weight, same, same).train()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = robustfdd.audit(model, dataset, Threat("l2", 0.3), test_images=20)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert model.weight.requires_grad
    assert model.weight.grad is None
    second = robustfdd.audit(model, dataset, Threat("l2", 0.3), test_images=20, batch_size=7)
    assert [(i.name, i.status, i.value) for i in first.indicators] == [
        (i.name, i.status, pytest.approx(i.value, nan_ok=True, abs=1e-4) if i.value is not None else None)
        for i in second.indicators
    ]


def test_the_tables_of_an_audit(case: tuple[Dataset, Tensor]) -> None:
    dataset, weight = case
    audit = robustfdd.audit(Wrapped(3000 * weight, same, same), dataset, Threat("linf", EPS), test_images=30)
    frames = audit.frames(eps_scale=0.5)
    (verdict,) = frames["audit_verdict"].to_dict("records")
    assert verdict["eps_normalized"] == pytest.approx(2 * EPS)
    assert verdict["verdict"] == "not believable"
    assert list(verdict["failed"]) == [i.name for i in audit.failed]
    indicators = frames["audit_indicators"]
    assert list(indicators["number"]) == list(range(1, 18))
    chosen = set(TestSet.choose(dataset, 30).index.tolist())
    for images in indicators["images"]:
        assert set(images.tolist()) <= chosen
    surface = frames["audit_pictures"].set_index("picture").loc["loss-surface"]
    assert len(surface["z"]) == len(surface["x"]) * len(surface["y"])
    assert set(frames["audit_pictures"]["picture"]) == {
        "loss-along-attack",
        "loss-surface",
        "unbounded",
        "steps",
        "logit-scale",
    }


def test_verdicts_of_all_kinds_go_into_one_run(case: tuple[Dataset, Tensor], tmp_path: Path) -> None:
    dataset, weight = case
    for method, scale in (("plain", 1), ("scaled", 3000)):
        audit = robustfdd.audit(Wrapped(scale * weight, same, same), dataset, Threat("linf", EPS), test_images=60)
        for table, frame in audit.frames().items():
            records.write_analysis(tmp_path, table, frame, method=method, seed=0, key="k")
    study = {"name": "s", "dataset": "linear", "eps_unit": "pixel", "protocol": "paper", "engines": [], "attacks": []}
    study["methods"] = [{"label": "plain"}, {"label": "scaled"}]
    manifest = {"format": records.FORMAT, "study": study, "eps_scale": 1.0, "units": []}
    records.write_json(tmp_path / "manifest.json", manifest)
    found = records.load_run(tmp_path).analyses["audit_verdict"].set_index("method")
    assert dict(found["verdict"]) == {"plain": "believable", "scaled": "not believable"}
    assert len(found.loc["plain", "failed"]) == 0
    assert "logit-scale" in found.loc["scaled", "failed"]


def test_a_model_without_a_right_answer_has_nothing_to_audit(case: tuple[Dataset, Tensor]) -> None:
    dataset, weight = case
    audit = robustfdd.audit(Wrapped(-weight, same, same), dataset, Threat("linf", EPS), test_images=20)
    assert audit.clean_accuracy == 0
    assert {i.status for i in audit.indicators} == {"not applicable"}
    assert not audit.pictures


class NoGradient(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: NoGradient(w, same, same), "no gradient"),
        (lambda w: Wrapped(w, same, lambda z: z.softmax(1)), "probabilities"),
        (lambda w: Wrapped(w, same, lambda z: z * math.nan), "NaN"),
        (lambda w: Wrapped(w, same, lambda z: z - z.mean(0)), "other images of the batch"),
    ],
)
def test_bad_models_are_named_and_give_no_number(
    case: tuple[Dataset, Tensor], make: Callable[[Tensor], nn.Module], message: str
) -> None:
    with pytest.raises(ModelContractError, match=message):
        robustfdd.audit(make(case[1]), case[0], Threat("linf", EPS))


def test_wrong_questions(case: tuple[Dataset, Tensor]) -> None:
    model = Wrapped(case[1], same, same)
    with pytest.raises(ConfigurationError, match="radius above 0"):
        robustfdd.audit(model, case[0], Threat("linf", 0))
    with pytest.raises(ModelContractError, match="eot_samples"):
        robustfdd.audit(model, case[0], Threat("linf", EPS), eot_samples=4)
    sibling = Wrapped(case[1], same, lambda z: z.softmax(1))
    with pytest.raises(ModelContractError, match="probabilities"):
        robustfdd.audit(model, case[0], Threat("linf", EPS), sibling=sibling)


def test_random_points_are_the_same_for_the_same_salt(case: tuple[Dataset, Tensor]) -> None:
    dataset, weight = case
    model = Wrapped(weight, same, same)
    test = TestSet.choose(dataset, 10)
    clean = clean_of(model, test, 0, 64)
    threat = Threat("l2", 0.3)
    evidence = Evidence(model, clean, threat, attack=AuditedAttack(), sibling=None, seed=0, batch_size=64)
    first, again = evidence.start(1, 10, threat), evidence.start(1, 10, threat)
    assert torch.equal(first, again)
    assert not torch.equal(first, evidence.start(2, 10, threat))
    assert np.all(torch.linalg.vector_norm(first.flatten(1), dim=1).numpy() <= threat.eps * (1 + 1e-6))
