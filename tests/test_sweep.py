"""A sweep over epsilon at once: the same as its radii one by one, the same through every engine, in fewer passes."""

from __future__ import annotations

import pytest
import torch
from conftest import TinyNet, short
from torch import Tensor, nn

from robustfdd import build_model, get_engine
from robustfdd.catalogue import load_attack
from robustfdd.datasets import Dataset
from robustfdd.datasets.base import to_pixels
from robustfdd.errors import ConfigurationError
from robustfdd.measure import CleanOutcome, Measurement, clean_outcome, measure, measure_sweep
from robustfdd.preparation import prepare
from robustfdd.records import Outcome
from robustfdd.specs import ENGINES
from robustfdd.threat import NORMS, Norm, Threat


@pytest.fixture
def clean(tiny_net: TinyNet) -> CleanOutcome:
    """Images of which the network has most right, and not all."""
    images = torch.randint(0, 256, (30, 1, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = tiny_net(to_pixels(images)).argmax(1)
    labels[::7] = (labels[::7] + 1) % 4
    return clean_outcome(tiny_net, images, labels, n_classes=4, batch_size=16)


def radii(norm: Norm) -> list[Threat]:
    return [Threat(norm, eps * (1 if norm == "linf" else 8)) for eps in (0.0, 0.01, 0.03, 0.08)]


def same(one: Measurement, two: Measurement) -> None:
    assert one.outcome.tolist() == two.outcome.tolist()
    assert one.prediction.tolist() == two.prediction.tolist()
    assert one.distance == pytest.approx(two.distance, abs=1e-5)


class Counting(nn.Module):
    """Counts the images that pass forward, with a gradient to follow or without."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.with_gradient = self.without = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.with_gradient += len(x)
        else:
            self.without += len(x)
        logits: Tensor = self.model(x)
        return logits


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_a_sweep_is_its_radii_one_by_one(
    name: str, norm: Norm, engine: str, tiny_net: TinyNet, clean: CleanOutcome
) -> None:
    options = {"engine": get_engine(engine), "seed": 4, "batch_size": 8}
    together = measure_sweep(tiny_net, clean, load_attack(name), radii(norm), **options)
    apart = [measure(tiny_net, clean, load_attack(name), threat, **options) for threat in radii(norm)]
    for one, two in zip(together, apart, strict=True):
        same(one, two)
    assert together[-1].robust_accuracy < together[0].robust_accuracy == float(clean.correct.double().mean())


@pytest.mark.parametrize("protocol", ["paper", "strong"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fgsm", "bim"])
def test_the_engines_agree_image_by_image(
    name: str, norm: Norm, protocol: str, tiny_net: TinyNet, clean: CleanOutcome
) -> None:
    results = {
        engine: measure_sweep(
            tiny_net, clean, load_attack(name), radii(norm), engine=get_engine(engine), batch_size=7, protocol=protocol
        )
        for engine in ENGINES
    }
    for k in range(len(radii(norm))):
        for engine in ("foolbox", "art"):
            native, other = results["native"][k], results[engine][k]
            if protocol == "paper":
                same(native, other)
            else:  # native stops at the first adversarial iterate, the others go on
                assert native.outcome.tolist() == other.outcome.tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_attacks_on_the_copy_are_those_on_the_model(engine: str, quarters: Dataset) -> None:
    """On a network whose every batch norm is folded, judged by the network itself."""
    model = build_model(quarters, "none", width=4).train()
    with torch.no_grad():
        for _ in range(20):  # statistics to fold
            model(to_pixels(quarters.train.images[:64]))
    model.eval()
    images, labels = quarters.test.images[:24], model(to_pixels(quarters.test.images[:24])).argmax(1)
    clean = clean_outcome(model, images, labels, n_classes=4, batch_size=16)
    threats = [Threat("l2", eps) for eps in (0.02, 0.1, 0.4, 1.5)]
    quick = prepare(model, to_pixels(images))
    assert quick is not model
    runs = [
        measure_sweep(model, clean, load_attack("bim"), threats, engine=get_engine(engine), prepared=prepared)
        for prepared in (model, quick)
    ]
    assert 0 < sum(result.robust_accuracy for result in runs[0]) < len(threats)
    for one, two in zip(*runs, strict=True):
        assert one.outcome.tolist() == two.outcome.tolist()
        assert one.distance == pytest.approx(two.distance, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "steps", "shared"), [("fgsm", 1, True), ("bim", 10, True), ("pgd", 10, False), ("transfer", 20, True)]
)
def test_the_first_gradient_is_computed_once_for_all_radii(
    name: str, steps: int, shared: bool, tiny_net: TinyNet, clean: CleanOutcome
) -> None:
    source = tiny_net if name == "transfer" else None
    crafted_on, n = Counting(tiny_net), int(clean.correct.sum())
    engine = get_engine("native")
    options = {"engine": engine, "batch_size": 8, "source": source, "prepared": crafted_on}
    results = measure_sweep(tiny_net, clean, load_attack(name), radii("linf"), **options)
    expected = [0, n * steps, *[n * (steps - 1 if shared else steps)] * 2]
    assert [result.gradient_passes for result in results] == expected
    assert crafted_on.with_gradient == sum(expected)
    assert crafted_on.without == 0  # what became of the images is asked of the model itself


def test_parts_of_the_images_share_by_themselves(
    tiny_net: TinyNet, clean: CleanOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little memory for what is shared: the images are swept in parts, with the same result and as few gradients."""
    engine, fgsm = get_engine("native"), load_attack("fgsm")
    whole = measure_sweep(tiny_net, clean, fgsm, radii("l2"), engine=engine, batch_size=4)
    monkeypatch.setattr("robustfdd.measure._SHARED_BYTES", 4 * 100 * 5)  # of five images
    parts = measure_sweep(tiny_net, clean, fgsm, radii("l2"), engine=engine, batch_size=4)
    for one, two in zip(whole, parts, strict=True):
        same(one, two)
        assert one.gradient_passes == two.gradient_passes


@pytest.mark.parametrize("name", ["bim", "pgd"])
def test_strong_leaves_alone_what_is_broken(name: str, tiny_net: TinyNet, clean: CleanOutcome) -> None:
    spec = load_attack(name).strengthened()
    crafted_on = Counting(tiny_net)
    options = {"engine": get_engine("native"), "protocol": "strong", "batch_size": 8}
    threats = [Threat("linf", eps) for eps in (0.03, 0.06, 0.12)]
    results = measure_sweep(tiny_net, clean, spec, threats, prepared=crafted_on, **options)
    broken = [int((result.outcome == Outcome.BROKEN).sum()) for result in results]
    assert 0 < broken[0] < broken[1] < broken[2]
    most = sum(result.gradient_passes for result in results)
    assert crafted_on.with_gradient < most  # some stopped on the way
    left = int(clean.correct.sum()) - broken[1]
    if name == "bim":
        assert results[2].gradient_passes == left * 9  # the first gradient is known
    else:
        assert left * 10 < results[2].gradient_passes <= left * 30  # three starts, the later ones on what is left


@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_is_another_attack_and_the_same_judge(
    engine: str, tiny_net: TinyNet, clean: CleanOutcome
) -> None:
    sample = to_pixels(clean.images[:8])
    half, full = (prepare(tiny_net, sample, precision=p) for p in ("bf16", "fp32"))
    assert half(sample).dtype == torch.float32
    difference = (half(sample) - full(sample)).abs().max()
    assert 1e-5 < float(difference) < 0.1
    for result in measure_sweep(tiny_net, clean, short("bim"), radii("linf"), engine=get_engine(engine), prepared=half):
        assert (result.distance <= 0.08 * 1.0001).all()


def test_gradients_of_a_random_forward_are_not_shared(tiny_net: TinyNet) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = tiny_net(x)
            return logits + 0.1 * torch.randn_like(logits)

    model = Noisy()
    images = torch.randint(0, 256, (12, 1, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = tiny_net(to_pixels(images)).argmax(1)
    clean = clean_outcome(model, images, labels, n_classes=4, batch_size=16, eot_samples=2)
    engine = get_engine("native")
    results = measure_sweep(model, clean, load_attack("fgsm"), radii("linf"), engine=engine, prepared=model)
    assert [result.gradient_passes for result in results] == [0, *[2 * int(clean.correct.sum())] * 3]


@pytest.mark.parametrize("threats", [[0.1, 0.1], [0.2, 0.1]])
def test_radii_must_ascend(threats: list[float], tiny_net: TinyNet, clean: CleanOutcome) -> None:
    with pytest.raises(ConfigurationError, match="strictly ascending"):
        measure_sweep(
            tiny_net,
            clean,
            load_attack("fgsm"),
            [Threat("linf", eps) for eps in threats],
            engine=get_engine("native"),
        )
