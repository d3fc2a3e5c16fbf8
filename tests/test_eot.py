"""Models that are random in evaluation: attacked through the mean of several passes, predicted several times."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import STUDY, LinearModel, TinyNet, registered
from torch import Tensor, nn
from torch.nn import functional as F

from robustfdd import units
from robustfdd.catalogue import load_attack
from robustfdd.classifier import ExpectedPrediction, check_classifier
from robustfdd.datasets.base import Dataset
from robustfdd.dropouts import build_dropout
from robustfdd.engines import get_engine
from robustfdd.errors import ConfigurationError, ModelContractError, RunDirectoryError
from robustfdd.evaluation import evaluate, run_evaluation
from robustfdd.measure import REPEATED_PREDICTIONS, CleanOutcome, attack, clean_outcome, measure
from robustfdd.models import load_model, read_checkpoint
from robustfdd.records import SCHEMA, Outcome, Run, load_run, read_json
from robustfdd.specs import LIBRARIES
from robustfdd.threat import Threat

FGSM = load_attack("fgsm")


class KnownDraws(nn.Module):
    """A linear model whose passes, in turn, are perturbed by numbers that the test knows, of shape (passes, N, K)."""

    def __init__(self, weight: Tensor, noise: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.noise = itertools.cycle(noise)

    def forward(self, x: Tensor) -> Tensor:
        # The noise multiplies: it changes the gradient and not only the logits.
        return (x.flatten(1) @ self.weight) * next(self.noise)


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    p: npt.NDArray[np.float64] = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p


# --- the mean prediction ---------------------------------------------------------------------------------------------


def test_the_expected_prediction_by_hand() -> None:
    """Loss and gradient: -log of the mean probability, and its derivative, in NumPy."""
    rng = np.random.default_rng(0)
    n, k, samples, d = 3, 4, 5, 6
    weight, noise = rng.normal(size=(d, k)), 1 + rng.normal(size=(samples, n, k))
    x, y = rng.normal(size=(n, d)), np.array([2, 0, 3])

    logits = (x @ weight) * noise  # (samples, n, k)
    p = softmax(logits)
    mean = p.mean(0)
    loss = -np.log(mean[np.arange(n), y])
    # d p_y / d logits = p_y (onehot_y - p); d logits_j / d x = weight_j noise_j
    p_y = np.take_along_axis(p, y[None, :, None], 2)
    d_logits = p_y * (np.eye(k)[y] - p)
    gradient = -((d_logits * noise) @ weight.T).mean(0) / mean[np.arange(n), y][:, None]

    model = ExpectedPrediction(KnownDraws(torch.from_numpy(weight), torch.from_numpy(noise)), samples)
    xt = torch.from_numpy(x).view(n, 1, 2, 3).requires_grad_()
    out = model(xt)
    np.testing.assert_allclose(out.detach().exp().numpy(), mean, rtol=1e-12)
    losses = F.cross_entropy(out, torch.from_numpy(y), reduction="none")
    np.testing.assert_allclose(losses.detach().numpy(), loss, rtol=1e-12)
    losses.sum().backward()
    assert xt.grad is not None
    np.testing.assert_allclose(xt.grad.view(n, d).numpy(), gradient, rtol=1e-10)
    assert torch.autograd.gradcheck(
        lambda z: F.cross_entropy(model(z), torch.from_numpy(y), reduction="sum"), xt.detach().requires_grad_()
    )


def test_the_gradient_is_a_mean_of_gradients_weighted_by_what_each_pass_says() -> None:
    """Passes that see the true class count more: a pass that is fooled already has nothing to add."""
    weight, noise = torch.eye(2).double(), torch.tensor([[1.0, 1.0], [8.0, 8.0]]).double()
    x = torch.tensor([[[[0.5, 1.0]]]]).double().requires_grad_()
    y = torch.tensor([0])
    single = []
    for row in noise:
        (g,) = torch.autograd.grad(F.cross_entropy(KnownDraws(weight, row[None, None])(x), y), x)
        single.append(g)
    (g,) = torch.autograd.grad(F.cross_entropy(ExpectedPrediction(KnownDraws(weight, noise[:, None]), 2)(x), y), x)
    p = (x.detach().flatten(1) @ weight * noise).softmax(1)[:, 0]
    torch.testing.assert_close(g, (p[0] * single[0] + p[1] * single[1]) / p.sum())


def test_confident_passes_stay_finite() -> None:
    noise = torch.tensor([[1e4, -1e4], [1e4, 1e4], [-1e4, 1e4]])
    x = torch.ones(1, 1, 1, 2).requires_grad_()
    out = ExpectedPrediction(KnownDraws(torch.eye(2), noise[:, None]), 3)(x)
    torch.testing.assert_close(out.detach().exp(), torch.tensor([[0.5, 0.5]]))
    F.cross_entropy(out, torch.tensor([0])).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_mean_of_a_deterministic_model_is_its_prediction(tiny_net: TinyNet) -> None:
    x = torch.rand(4, 1, 10, 10, requires_grad=True)
    out = ExpectedPrediction(tiny_net, 3)(x)
    torch.testing.assert_close(out, tiny_net(x).log_softmax(1))


def test_every_pass_draws_anew() -> None:
    """With 1 of 2 units dropped in every pass of 64, the mean lies near what half of the units give."""
    model = nn.Sequential(build_dropout("original", active="always"), nn.Flatten()).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        p = ExpectedPrediction(model, 4000)(torch.tensor([[[[3.0, 0.0]]]])).detach().exp()
    # Inverted: the first logit is 6 or 0, each half of the time.
    expected = (1 / (1 + math.exp(-6)) + 0.5) / 2
    assert abs(float(p[0, 0]) - expected) <= 5 * 0.25 / math.sqrt(4000)


# --- what must be said, and what may not -----------------------------------------------------------------------------


class Noisy(nn.Module):
    """A model whose logits get noise of their own for every image, in every mode."""

    def __init__(self, inner: nn.Module, scale: float) -> None:
        super().__init__()
        self.inner = inner
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits + self.scale * torch.randn_like(logits)


@pytest.fixture
def linear() -> LinearModel:
    """Class 1 where the first pixel is above 0.5; its logits differ by 10 times the distance."""
    weight = torch.zeros(1, 1, 2, 2)
    weight[0, 0, 0, 0] = 10.0
    return LinearModel(weight, -5.0)


@pytest.fixture
def noisy(linear: LinearModel) -> Noisy:
    return Noisy(linear, 1.0)


def pictures(n: int = 40) -> tuple[Tensor, Tensor]:
    """First pixels spread over [0, 1]; the labels are those of ``linear``."""
    images = torch.full((n, 1, 2, 2), 128, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.linspace(0, 255, n).round().to(torch.uint8)
    return images, (images[:, 0, 0, 0] > 127).long()


def test_eot_is_for_random_models_and_random_models_need_it(
    linear: LinearModel, noisy: Noisy, quarters: Dataset, tmp_path: Path
) -> None:
    images, labels = pictures()
    x, threat = images.float() / 255, Threat("linf", 0.1)
    tiny = TinyNet().eval()
    tiny(quarters.test.images[:2].float() / 255)
    calls: list[tuple[Callable[..., Any], nn.Module, nn.Module]] = [
        (lambda model, **eot: check_classifier(model, x, random=bool(eot)), linear, noisy),
        (lambda model, **eot: clean_outcome(model, images, labels, n_classes=2, batch_size=9, **eot), linear, noisy),
        (lambda model, **eot: attack(model, x, labels, "fgsm", threat, **eot), linear, noisy),
        (
            lambda model, **eot: evaluate(model, quarters, ["fgsm"], [threat], out=tmp_path / "run", **eot),
            tiny,
            Noisy(tiny, 1.0),
        ),
    ]
    for call, quiet, random in calls:
        with pytest.raises(ModelContractError, match=r"eot_samples is given, but .* deterministic"):
            call(quiet, eot_samples=4)
        with pytest.raises(ModelContractError, match=r"random in evaluation mode.*: eot_samples, e\.g\. 16"):
            call(random)
    assert not (tmp_path / "run").exists()


def test_other_breaches_of_the_contract_are_found_in_random_models_too(linear: LinearModel) -> None:
    x = pictures()[0].float() / 255
    for model, says in (
        (nn.Sequential(Noisy(linear, 1.0), nn.Softmax(1)), "probabilities"),
        (Noisy(linear, math.inf), "NaN or infinite"),
    ):
        with pytest.raises(ModelContractError, match=says):
            check_classifier(model, x, random=True)


# --- measuring -------------------------------------------------------------------------------------------------------


def noisy_clean(noisy: Noisy, eot_samples: int = 4) -> CleanOutcome:
    images, labels = pictures()
    return clean_outcome(noisy, images, labels, n_classes=2, batch_size=16, eot_samples=eot_samples)


@pytest.mark.parametrize("engine", LIBRARIES)
def test_measure_repeats_its_predictions_and_counts_every_pass(noisy: Noisy, engine: str) -> None:
    clean = noisy_clean(noisy, eot_samples=3)
    assert clean.eot_samples == 3
    assert len(clean.repeated_accuracy) == REPEATED_PREDICTIONS == 10
    assert clean.repeated_accuracy[0] == float(clean.correct.double().mean())
    assert len(set(clean.repeated_accuracy)) > 1
    pgd = load_attack("pgd").with_parameters({"steps": 2})
    for spec in (FGSM, pgd):
        result = measure(noisy, clean, spec, Threat("linf", 0.1), engine=get_engine(engine), seed=1, batch_size=7)
        assert len(result.repeated_accuracy) == REPEATED_PREDICTIONS
        assert result.repeated_accuracy[0] == result.robust_accuracy
        assert len(set(result.repeated_accuracy)) > 1
        assert result.gradient_passes == int(clean.correct.sum()) * spec.n_gradients * 3
        assert ((result.outcome == Outcome.MISCLASSIFIED) == ~clean.correct.numpy()).all()


def test_eps_zero_repeats_the_clean_prediction(noisy: Noisy) -> None:
    clean = noisy_clean(noisy)
    result = measure(noisy, clean, FGSM, Threat("linf", 0), engine=get_engine("foolbox"))
    assert result.repeated_accuracy == clean.repeated_accuracy
    assert result.robust_accuracy == clean.repeated_accuracy[0]
    assert result.gradient_passes == 0


def test_a_deterministic_model_is_predicted_once(linear: LinearModel) -> None:
    images, labels = pictures()
    clean = clean_outcome(linear, images, labels, n_classes=2, batch_size=16)
    result = measure(linear, clean, FGSM, Threat("linf", 0.1), engine=get_engine("foolbox"))
    assert (clean.eot_samples, clean.repeated_accuracy, result.repeated_accuracy) == (0, (), ())


def test_repeated_predictions_have_the_frequencies_of_the_model(linear: LinearModel) -> None:
    """An image on the border is right in every second prediction; those far from it always."""
    images, labels = torch.full((900, 1, 2, 2), 128, dtype=torch.uint8), torch.ones(900, dtype=torch.int64)
    images[:, 0, 0, 0] = 128
    images[:300, 0, 0, 0] = 255
    on_the_border = LinearModel(linear.weight.detach(), -10 * 128 / 255)
    clean = clean_outcome(Noisy(on_the_border, 1e-2), images, labels, n_classes=2, batch_size=64, eot_samples=1)
    expected, spread = (300 + 600 / 2) / 900, math.sqrt(600 * 0.25) / 900
    assert all(abs(accuracy - expected) < 5 * spread for accuracy in clean.repeated_accuracy)
    assert abs(np.mean(clean.repeated_accuracy) - expected) < 5 * spread / math.sqrt(10)
    # The numbers come from generators that go on: no two predictions have the same masks.
    assert len(set(clean.repeated_accuracy)) > 5


@pytest.mark.parametrize("engine", LIBRARIES)
def test_one_seed_gives_the_same_result_twice(noisy: Noisy, engine: str) -> None:
    pgd = load_attack("pgd").with_parameters({"steps": 2})

    def once(seed: int, disturb: int) -> list[Any]:
        torch.manual_seed(disturb)  # another global state must not matter
        clean = noisy_clean(noisy)
        result = measure(noisy, clean, pgd, Threat("linf", 0.1), engine=get_engine(engine), seed=seed, batch_size=16)
        images, labels = pictures()
        x_adv = attack(
            noisy, images.float() / 255, labels, pgd, Threat("l2", 0.1), engine=engine, seed=seed, eot_samples=4
        )
        return [
            clean.prediction.tolist(),
            clean.repeated_accuracy,
            result.outcome.tolist(),
            result.repeated_accuracy,
            x_adv.tolist(),
        ]

    one = once(3, disturb=0)
    assert once(3, disturb=1) == one
    other = once(4, disturb=0)
    assert other[:2] == one[:2]
    assert other[3:] != one[3:]


def test_the_masks_of_the_prediction_are_not_those_of_the_attack(linear: LinearModel) -> None:
    """A model that records the random numbers it draws."""
    drawn: list[float] = []

    class Recording(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            drawn.append(float(torch.rand(())))
            return super().forward(x)

    model = Recording(linear, 1.0)
    clean = noisy_clean(model, eot_samples=2)
    drawn.clear()
    engine = get_engine("foolbox")
    measure(model, clean, FGSM, Threat("linf", 0.1), engine=engine, seed=5, batch_size=40, prepared=model)
    assert len(drawn) == 2 + REPEATED_PREDICTIONS
    assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("engine", LIBRARIES)
def test_measuring_leaves_the_global_random_state(noisy: Noisy, engine: str) -> None:
    clean = noisy_clean(noisy)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002 - the generator that is watched
    measure(noisy, clean, FGSM, Threat("linf", 0.1), engine=get_engine(engine))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002 - as above


def test_checking_and_attacking_leaves_the_global_random_state(noisy: Noisy) -> None:
    images, labels = pictures()
    before = torch.get_rng_state()
    noisy_clean(noisy)
    assert torch.equal(torch.get_rng_state(), before)
    attack(noisy, images.float() / 255, labels, "fgsm", Threat("linf", 0.1), eot_samples=2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("engine", LIBRARIES)
def test_attacking_a_random_model_warns_of_nothing(noisy: Noisy, engine: str, recwarn: pytest.WarningsRecorder) -> None:
    """Foolbox lets its warning of models in training mode through whatever filters are set."""
    images, labels = pictures()
    seen: list[bool] = []
    noisy.inner.register_forward_hook(lambda module, *_: seen.append(module.training))
    attack(noisy, images.float() / 255, labels, "fgsm", Threat("linf", 0.1), engine=engine, eot_samples=2)
    assert not any(seen)
    assert [str(warning.message) for warning in recwarn] == []


# --- where the mean matters ------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """Two classes, logits (0, b + sum m_i w_i x_i / (1 - p)): a linear model under original dropout of its pixels.

    The gradient of one pass is 0 for every pixel that was dropped, so FGSM moves the share 1 - p of them; the mean over
    k passes moves those that were kept at least once, the share 1 - p^k.
    """

    def __init__(self, weight: Tensor, bias: float, p: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = bias
        self.mask = build_dropout("original", p=p, active="always")

    def forward(self, x: Tensor) -> Tensor:
        score = (self.mask(x) * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack((torch.zeros_like(score), score), 1)


P, SIDE, EPS, MARGIN = 0.9, 128, 0.4, 0.2


@pytest.fixture(scope="module")
def masked() -> Masked:
    """The L1 norm of the weights is 1, so that moving all pixels by eps moves the score by eps."""
    d = SIDE * SIDE
    signs = torch.arange(d).remainder(2).double().mul(2).sub(1)
    return Masked((signs / d).float().view(1, 1, SIDE, SIDE), MARGIN, P).eval()


@pytest.mark.parametrize("engine", LIBRARIES)
@pytest.mark.parametrize("samples", [1, 3, 40])
def test_an_attack_on_one_pass_fails_where_the_mean_of_many_succeeds(masked: Masked, engine: str, samples: int) -> None:
    n, d = 6, SIDE * SIDE
    images = torch.full((n, 1, SIDE, SIDE), 128, dtype=torch.uint8)
    labels = torch.ones(n, dtype=torch.int64)
    x, threat = images.float() / 255, Threat("linf", EPS)
    x_adv = attack(masked, x, labels, "fgsm", threat, engine=engine, seed=2, eot_samples=samples)
    step = (x_adv - x).view(n, d)
    moved = step != 0
    # Exactly the pixels that some pass kept are moved, against the sign of their weight and by the whole of eps.
    expected = 1 - P**samples
    assert abs(float(moved.double().mean()) - expected) <= 5 * math.sqrt(expected * (1 - expected) / (n * d)) + 1e-9
    torch.testing.assert_close(step[moved], (-EPS * masked.weight.sign().view(1, d)).expand(n, d)[moved])
    # The score falls from the margin by eps times that share; its spread is far smaller than what is left.
    spread = math.sqrt(P / (1 - P) * d) * (0.5 + EPS) / d
    left = MARGIN - EPS * expected
    assert abs(left) > 4 * spread
    clean = clean_outcome(masked, images, labels, n_classes=2, batch_size=4, eot_samples=samples)
    assert clean.correct.all()
    result = measure(masked, clean, FGSM, threat, engine=get_engine(engine), seed=2, batch_size=4)
    assert set(result.repeated_accuracy) == {1.0 if left > 0 else 0.0}
    assert result.outcome.tolist() == [Outcome.SURVIVED if left > 0 else Outcome.BROKEN] * n


# --- SAP in a study --------------------------------------------------------------------------------------------------

SAP = '{dropout = "sap", placement = "stages", eot_samples = 2}'
BOTH = f'["none", {SAP}]'
SMALL = re.sub(r"(?m)^methods = .*$", "methods = METHODS", STUDY)
for old, new in (("test_images = 24", "test_images = 12"), ("epochs = 3", "epochs = 1"), ("steps = 3", "steps = 2")):
    SMALL = SMALL.replace(old, new)
#: One attack, one radius, one engine.
FAST = SMALL[: SMALL.index("[[attacks]]")] + '[[attacks]]\nname = "fgsm"\neps.linf = [0.1]\n'
FAST = FAST.replace("test_images", 'engines = ["foolbox"]\ntest_images')


def run_small(folder: Path, quarters: Dataset, methods: str = BOTH, text: str = FAST, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "small.toml"
    path.write_text(text.replace("METHODS", methods), encoding="utf-8")
    with registered(quarters):
        return run_evaluation(path, out=folder / "run", **options)


@pytest.fixture(scope="module")
def sap_run(quarters: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(run_small(tmp_path_factory.mktemp("sap"), quarters, text=SMALL))


def history(run: Path, method: str) -> dict[str, Any]:
    return read_json(run / "models" / f"{method}--seed0.json")


def test_a_study_records_what_was_random(sap_run: Run) -> None:
    assert sap_run.failures == []
    cells = sap_run.cells
    assert set(cells.method) == {"none", "sap"}
    n_gradients = {"fgsm": 1, "pgd": 2, "transfer": 20}
    for row in cells.itertuples():
        repeated = list(row.repeated_accuracy)
        samples = 2 if row.method == "sap" else 0
        assert row.eot_samples == samples
        assert len(repeated) == (REPEATED_PREDICTIONS if samples else 0)
        assert repeated[:1] == ([row.robust_accuracy] if samples else [])
        averaged = 1 if row.attack == "transfer" else max(samples, 1)  # crafted on a model that is not random
        passes = row.n_attacked * n_gradients[row.attack] * averaged if row.eps_pixel else 0
        assert row.gradient_passes == passes
    methods = {method["label"]: method for method in sap_run.manifest["study"]["methods"]}
    assert (methods["none"]["eot_samples"], methods["sap"]["eot_samples"]) == (0, 2)
    assert methods["sap"]["variant"]["dynamic"] is False


def test_sap_has_the_weights_of_the_study_s_network_without_dropout(sap_run: Run) -> None:
    none, sap = history(sap_run.path, "none"), history(sap_run.path, "sap")
    assert sap["weights_sha256"] == none["weights_sha256"]
    assert sap["epochs"] == none["epochs"]
    assert (sap["method"], sap["checkpoint"]) == ("sap", "sap--seed0.safetensors")
    assert sap["sha256"] != none["sha256"]  # the files also say which network it is
    checkpoint = read_checkpoint(sap_run.path / "models" / "sap--seed0.safetensors")
    assert checkpoint.provenance["weights_of"] == "none--seed0.safetensors"
    assert checkpoint.config is not None
    assert (checkpoint.config.dropout, checkpoint.config.placement) == ("sap", "stages")
    x = torch.rand(4, 1, 8, 8)
    model = load_model(checkpoint.path)
    assert not torch.equal(model(x), model(x))
    for module in model.modules():
        if hasattr(module, "active"):
            module.active = "never"
    assert torch.equal(model(x), load_model(sap_run.path / "models" / "none--seed0.safetensors")(x))


@pytest.mark.parametrize("methods", [f"[{SAP}]", f'[{SAP}, "none"]'])
def test_sap_trained_by_itself_comes_to_the_same_weights(
    sap_run: Run, quarters: Dataset, tmp_path: Path, methods: str
) -> None:
    run = run_small(tmp_path, quarters, methods)
    found = load_run(run)
    assert found.failures == []
    assert history(run, "sap")["weights_sha256"] == history(sap_run.path, "sap")["weights_sha256"]
    # The network without dropout is trained first, wherever the study names it.
    provenance = read_checkpoint(run / "models" / "sap--seed0.safetensors").provenance
    assert ("weights_of" in provenance) == ("none" in methods)
    if "none" in methods:
        assert history(run, "none")["weights_sha256"] == history(sap_run.path, "none")["weights_sha256"]
    # One seed, the same weights: the same outcomes, although everything was computed again.
    keys = ["method", "attack", "norm", "engine", "eps_pixel"]
    old = sap_run.cells.set_index(keys)
    again = found.cells.set_index(keys)
    assert len(again) == (6 if "none" in methods else 2)
    for key in again.index:
        for column in ("outcome", "prediction", "distance", "repeated_accuracy"):
            assert list(again.loc[key, column]) == list(old.loc[key, column])


def test_weights_of_another_recipe_seed_or_placement_of_none_are_told_apart(quarters: Dataset, tmp_path: Path) -> None:
    """Each seed takes over its own network; so does SAP from a network without dropout of another label."""
    methods = f'[{{dropout = "none", label = "plain", placement = "stages"}}, {SAP}]'
    run = run_small(tmp_path, quarters, methods, overrides=["seeds=[0, 1]"])
    for seed in (0, 1):
        digests = {
            label: read_json(run / "models" / f"{label}--seed{seed}.json")["weights_sha256"]
            for label in ("plain", "sap")
        }
        assert digests["plain"] == digests["sap"]
        checkpoint = read_checkpoint(run / "models" / f"sap--seed{seed}.safetensors")
        assert checkpoint.provenance["weights_of"] == f"plain--seed{seed}.safetensors"
        assert checkpoint.provenance["seed"] == seed
    assert history(run, "sap")["weights_sha256"] != read_json(run / "models" / "sap--seed1.json")["weights_sha256"]


def test_nothing_finished_is_done_again(quarters: Dataset, tmp_path: Path) -> None:
    run = run_small(tmp_path, quarters)
    files = [*run.glob("models/*"), *run.glob("results/*")]
    assert len(files) == 2 * 2 + 3  # models, and FGSM of both and transfer of one
    before = {path: path.stat().st_mtime_ns for path in files}
    run_small(tmp_path, quarters)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    victim = next(path for path in files if path.name == "sap--seed0.safetensors")
    victim.unlink()
    run_small(tmp_path, quarters)
    changed = {path.name for path in files if path.stat().st_mtime_ns != before[path]}
    # The weights are taken over again; the results stay, since the file is the same byte for byte.
    assert changed == {"sap--seed0.safetensors", "sap--seed0.json"}


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ('["sap"]', r"sap: the model is random in evaluation.*eot_samples = 16"),
        ('[{dropout = "original", options = {active = "always"}}]', r"original: the model is random in evaluation"),
        ('[{dropout = "none", eot_samples = 4}]', r"none: eot_samples is for models that are random in evaluation"),
        ('[{dropout = "sap", eot_samples = 4, options = {active = "never"}}]', "sap: eot_samples is for models that"),
        ('[{dropout = "sap", eot_samples = 0}]', r"eot_samples: .*greater than or equal to 1"),
        ('[{dropout = "sap", eot_samples = 2.5}]', r"eot_samples: .*valid integer"),
    ],
)
def test_a_study_must_state_the_passes_where_they_matter_and_only_there(
    quarters: Dataset, tmp_path: Path, methods: str, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        run_small(tmp_path, quarters, methods)
    assert not (tmp_path / "run").exists()


def test_any_random_dropout_can_be_studied(quarters: Dataset, tmp_path: Path) -> None:
    methods = '[{dropout = "original", eot_samples = 3, options = {active = "always", p = 0.2}}]'
    found = load_run(run_small(tmp_path, quarters, methods))
    assert found.failures == []
    assert set(found.cells.eot_samples) == {3}


# --- anybody's random model ------------------------------------------------------------------------------------------


def test_evaluate_takes_a_random_model(sap_run: Run, quarters: Dataset, tmp_path: Path) -> None:
    model = load_model(sap_run.path / "models" / "sap--seed0.safetensors")
    threats = [Threat("linf", 0.1)]
    arguments: dict[str, Any] = {"engines": LIBRARIES, "test_images": 8, "seed": 1}
    frame = evaluate(model, quarters, ["fgsm"], threats, eot_samples=2, **arguments)
    assert list(frame.columns) == SCHEMA.names
    assert set(frame.eot_samples) == {2}
    assert {len(repeated) for repeated in frame.repeated_accuracy} == {REPEATED_PREDICTIONS}
    run = tmp_path / "run"
    written = evaluate(model, quarters, ["fgsm"], threats, eot_samples=2, out=run, **arguments)
    for column in ("outcome", "repeated_accuracy"):
        assert [list(v) for v in written.sort_values(["engine", "eps_pixel"])[column]] == [
            list(v) for v in frame.sort_values(["engine", "eps_pixel"])[column]
        ]
    assert load_run(run).manifest["study"]["methods"][0]["eot_samples"] == 2
    with pytest.raises(RunDirectoryError, match=r"different: study\.methods"):
        evaluate(model, quarters, ["fgsm"], threats, eot_samples=3, out=run, **arguments)


def test_the_result_of_a_unit_depends_on_its_passes(quarters: Dataset) -> None:
    test = units.TestSet.choose(quarters, 4)
    unit = units.AttackUnit("sap", 0, FGSM, "linf", "art", (0.1,), "pixel", 2)
    subject = units.Subject("study", "sap", 0, 1.0, "weights", 2)
    key = units.unit_key(unit, subject, test, 0)
    assert units.unit_key(unit, dataclasses.replace(subject, eot_samples=3), test, 0) != key
    assert unit.cost(10) > dataclasses.replace(unit, eot_samples=0).cost(10)
