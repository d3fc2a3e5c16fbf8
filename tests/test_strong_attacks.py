"""Attacks beyond FGSM, BIM and PGD, and protocol ``strong``: against the libraries, references and by hand."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import OFFERED, STUDY, LinearModel, TinyNet, short
from torch import Tensor, nn

from robustfdd.catalogue import load_attack, load_study, resolve_attacks
from robustfdd.datasets.base import Dataset, to_pixels
from robustfdd.engines import Perturb, get_engine
from robustfdd.errors import ConfigurationError, RunDirectoryError
from robustfdd.evaluation import evaluate, plan
from robustfdd.iterates import BestIterate
from robustfdd.measure import CleanOutcome, attack, clean_outcome, measure, measure_sweep, n_starts
from robustfdd.records import Outcome, load_run, read_key
from robustfdd.report import combine, write_report
from robustfdd.specs import ENGINES, AttackSpec
from robustfdd.threat import NORMS, Threat

IMAGE_SHAPE = (1, 10, 10)


@pytest.fixture
def clean(tiny_net: TinyNet) -> CleanOutcome:
    """Images of which the network has most right, and not all."""
    images = torch.randint(0, 256, (30, *IMAGE_SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = tiny_net(to_pixels(images)).argmax(1)
    labels[::7] = (labels[::7] + 1) % 4
    return clean_outcome(tiny_net, images, labels, n_classes=4, batch_size=16)


# --- the libraries themselves ----------------------------------------------------------------------------------------


@pytest.fixture
def through_art(tiny_net: TinyNet) -> Iterator[object]:
    """The network as anybody would give it to ART."""
    from art.estimators.classification import PyTorchClassifier  # noqa: PLC0415

    state = np.random.get_state()  # noqa: NPY002 - the generator that ART uses
    yield PyTorchClassifier(
        tiny_net, nn.CrossEntropyLoss(reduction="sum"), IMAGE_SHAPE, 4, clip_values=(0.0, 1.0), device_type="cpu"
    )
    np.random.set_state(state)  # noqa: NPY002


def apgd_of_art(classifier: object, norm: str, eps: float, loss: str | None) -> object:
    from art.attacks.evasion import AutoProjectedGradientDescent  # noqa: PLC0415

    return AutoProjectedGradientDescent(
        classifier,
        norm="inf" if norm == "linf" else 2,
        eps=eps,
        eps_step=2 * eps,
        max_iter=10,
        nb_random_init=2,
        loss_type=loss,
        batch_size=100,
        verbose=False,
    )


def images_of(net: TinyNet) -> tuple[Tensor, Tensor]:
    x = torch.rand(12, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        return x, net(x).argmax(1)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("name", "loss"), [("apgd-ce", None), ("apgd-dlr", "difference_logits_ratio")])
def test_apgd_is_that_of_art(name: str, loss: str | None, norm: str, tiny_net: TinyNet, through_art: object) -> None:
    x, y = images_of(tiny_net)
    eps = 0.05 if norm == "linf" else 0.4
    mine = attack(tiny_net, x, y, short(name), Threat(norm, eps), engine="art", seed=7)
    np.random.seed(7)  # noqa: NPY002
    theirs = apgd_of_art(through_art, norm, eps, loss).generate(x.numpy(), y.numpy())
    assert mine.numpy() == pytest.approx(theirs, abs=1e-6)
    assert not torch.equal(mine, x)


@pytest.mark.parametrize("norm", NORMS)
def test_autoattack_is_that_of_art(norm: str, tiny_net: TinyNet, through_art: object) -> None:
    from art.attacks.evasion import AutoAttack, DeepFool, SquareAttack  # noqa: PLC0415

    x, y = images_of(tiny_net)
    eps = 0.03 if norm == "linf" else 0.3
    mine = attack(tiny_net, x, y, short("art-autoattack"), Threat(norm, eps), engine="art", seed=7)
    assert 0 < int((tiny_net(mine).argmax(1) != y).sum()) < len(x)
    parts = [
        apgd_of_art(through_art, norm, eps, None),
        apgd_of_art(through_art, norm, eps, "difference_logits_ratio"),
        DeepFool(through_art, max_iter=10, epsilon=1e-3, nb_grads=1000, batch_size=100, verbose=False),
    ]
    if norm == "linf":
        parts.append(SquareAttack(through_art, "inf", max_iter=20, eps=eps, batch_size=100, verbose=False))
    whole = AutoAttack(through_art, "inf" if norm == "linf" else 2, eps, 2 * eps, attacks=parts, batch_size=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "multiprocess", sys)  # imported by ART, and not used
        np.random.seed(7)  # noqa: NPY002
        theirs = whole.generate(x.numpy(), y.numpy())
    assert mine.numpy() == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_what_autoattack_lets_out_is_drawn_back(norm: str, tiny_net: TinyNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """ART's ensemble accepts examples a little outside; those inside are not touched."""
    from art.attacks.evasion import AutoAttack  # noqa: PLC0415

    x = 0.3 + 0.4 * torch.rand(2, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
    threat = Threat(norm, 0.1)
    unit = torch.ones(IMAGE_SHAPE) if norm == "linf" else torch.ones(IMAGE_SHAPE) / 10
    out = torch.stack((x[0] + 0.1 * (1 + 4e-4) * unit, x[1] + 0.05 * unit))
    assert threat.within(x, out).tolist() == [False, True]
    monkeypatch.setattr(AutoAttack, "generate", lambda self, x, y: out.numpy().copy())
    result = attack(tiny_net, x, torch.zeros(2, dtype=torch.int64), short("art-autoattack"), threat, engine="art")
    assert bool(threat.within(x, result).all())
    assert float(threat.distance(x, result)[0]) == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(result[1], out[1])


@pytest.mark.parametrize(("name", "norm", "engine"), OFFERED)
def test_same_seed_same_result(name: str, norm: str, engine: str, tiny_net: TinyNet) -> None:
    x, y = images_of(tiny_net)
    spec, threat = short(name), Threat(norm, 0.1 if norm == "linf" else 0.8)
    source = tiny_net if spec.access == "transfer" else None
    one, again = (attack(tiny_net, x, y, spec, threat, engine=engine, seed=5, source=source) for _ in range(2))
    assert torch.equal(one, again)


# --- noise and random search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "norm"), [("noise-uniform", "linf"), ("noise-uniform", "l2"), ("noise-gaussian", "l2")]
)
def test_noise_is_the_first_draw_of_an_images_own_stream_that_breaks_it(name: str, norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(1, 1, 4, 4, generator=generator)
    x = 0.4 + 0.2 * torch.rand(40, 1, 4, 4, generator=generator)
    bias = -float((weight * 0.5).sum())  # the boundary runs through the images
    model = LinearModel(weight, bias)
    y = model(x).argmax(1)
    threat = Threat(norm, 0.05 if norm == "linf" else 0.1)
    found = attack(model, x, y, short(name), threat, seed=11, batch_size=7)
    broken = 0
    for i in range(len(x)):
        rng = np.random.default_rng([11, i])
        expected = x[i].numpy()
        for _ in range(4):
            draw = rng.standard_normal((1, 4, 4)) if name == "noise-gaussian" else rng.uniform(-1, 1, (1, 4, 4))
            length = np.abs(draw).max() if norm == "linf" else np.linalg.norm(draw)
            candidate = x[i].numpy() + threat.eps * draw / length
            score = float((weight[0].numpy() * candidate).sum()) + bias
            if (score > 0) != bool(y[i]):
                expected, broken = candidate, broken + 1
                break
        assert found[i].numpy() == pytest.approx(expected, abs=1e-6)
    assert 5 < broken < 35


def test_square_needs_no_gradient(tiny_net: TinyNet) -> None:
    """It breaks a network whose gradients lead nowhere, on which BIM breaks nothing."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return tiny_net(x.detach()) + 0 * x.flatten(1)[:, :4]

    model = Masked()
    x, y = images_of(tiny_net)
    threat = Threat("linf", 0.3)
    broken = {
        name: int((model(attack(model, x, y, short(name), threat, engine="art")).argmax(1) != y).sum())
        for name in ("bim", "square")
    }
    assert broken["bim"] == 0
    assert broken["square"] >= 3


# --- protocol strong -------------------------------------------------------------------------------------------------


def broken(result: object) -> np.ndarray:
    return result.outcome == Outcome.BROKEN


@pytest.mark.parametrize(
    ("name", "norm", "engine"),
    [
        *itertools.product(("fgsm", "bim", "pgd"), NORMS, ("foolbox", "native")),
        ("pgd", "linf", "art"),
        ("square", "linf", "art"),
    ],
)
def test_strong_is_not_above_paper_and_never_rises(
    name: str, engine: str, norm: str, tiny_net: TinyNet, clean: CleanOutcome
) -> None:
    spec = short(name)
    threats = [Threat(norm, eps * (1 if norm == "linf" else 8)) for eps in (0.0, 0.01, 0.03, 0.08)]
    options = {"engine": get_engine(engine), "seed": 3, "batch_size": 16}
    paper = measure_sweep(tiny_net, clean, spec, threats, **options)
    strong = measure_sweep(tiny_net, clean, spec.strengthened(), threats, protocol="strong", **options)
    accuracies = {"paper": [r.robust_accuracy for r in paper], "strong": [r.robust_accuracy for r in strong]}
    for smaller, larger in itertools.pairwise(strong):
        before = broken(smaller)
        assert broken(larger)[before].all()
        assert (larger.prediction[before] == smaller.prediction[before]).all()
        assert (larger.distance[before] == smaller.distance[before]).all()
    for threat, result in zip(threats, strong, strict=True):
        assert result.distance.max() <= threat.eps * 1.0001 + 1e-5
        assert (result.outcome[~clean.correct.numpy()] == Outcome.MISCLASSIFIED).all()
    assert accuracies["strong"][0] == accuracies["paper"][0] == float(clean.correct.double().mean())
    assert all(s <= p for s, p in zip(accuracies["strong"], accuracies["paper"], strict=True))
    assert accuracies["strong"] == sorted(accuracies["strong"], reverse=True)
    assert accuracies["strong"][-1] < accuracies["strong"][0]


@pytest.mark.parametrize("engine", ENGINES)
def test_strong_does_not_depend_on_the_batch_size(engine: str, tiny_net: TinyNet, clean: CleanOutcome) -> None:
    spec, threat = load_attack("pgd").with_parameters({"steps": 4}).strengthened(), Threat("linf", 0.03)
    one, two = (
        measure(tiny_net, clean, spec, threat, engine=get_engine(engine), seed=1, batch_size=n, protocol="strong")
        for n in (4, 30)
    )
    assert one.outcome.tolist() == two.outcome.tolist()
    assert one.gradient_passes == two.gradient_passes


class VisitingEngine:
    """Asks the model about what it is told to, and returns the images as they are."""

    name = "foolbox"
    keeps_best = False

    def __init__(self, visited: Callable[[Tensor], Tensor]) -> None:
        self.visited = visited
        self.n_calls = 0

    def prepare(self, model: nn.Module, attack: AttackSpec, threat: Threat, **_: object) -> Perturb:
        def perturb(x: Tensor, y: Tensor) -> Tensor:
            self.n_calls += 1
            model(self.visited(x))
            return x

        return perturb


@pytest.mark.parametrize(("step", "n_broken"), [(0.1, 2), (0.101, 0), (0.02, 0)])
def test_an_adversarial_image_on_the_way_counts_only_in_strong_and_inside_the_budget(
    step: float, n_broken: int
) -> None:
    model = LinearModel(torch.ones(1, 1, 2, 2), -2.0)  # class 1 where the mean is above 0.5
    images = torch.tensor([115, 140, 10, 240], dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 2, 2)
    clean = clean_outcome(model, images, torch.tensor([0, 1, 0, 1]), n_classes=2, batch_size=4)
    threat = Threat("linf", 0.1)

    def across(x: Tensor) -> Tensor:
        return (x + step * (0.5 - x).sign()).clamp(0, 1)

    paper = measure(model, clean, load_attack("bim"), threat, engine=VisitingEngine(across))
    strong = measure(model, clean, load_attack("bim"), threat, engine=VisitingEngine(across), protocol="strong")
    assert broken(paper).sum() == 0
    assert broken(strong).tolist() == [n_broken > 0, n_broken > 0, False, False]
    assert strong.distance[:2].tolist() == pytest.approx([step if n_broken or step < 0.1 else 0] * 2, rel=1e-4)


def test_the_best_iterate_is_that_of_the_largest_margin() -> None:
    model = BestIterate(LinearModel(torch.ones(1, 1, 1, 1), -0.5), Threat("linf", 0.2))
    x = torch.tensor([0.4, 0.6]).view(2, 1, 1, 1)
    model.watch(x, torch.tensor([0, 1]))
    for shift in ([0.05, 0.05], [0.15, -0.05], [0.1, -0.15], [0.3, -0.3]):
        model(x + torch.tensor(shift).view(2, 1, 1, 1))
    model(x[:1])  # of another shape: not looked at
    assert model.best().flatten().tolist() == pytest.approx([0.55, 0.45])


def test_random_starts_are_repeated_only_in_strong(tiny_net: TinyNet, clean: CleanOutcome) -> None:
    starts = {name: n_starts(load_attack(name), "strong") for name, _, _ in OFFERED}
    assert {name: n for name, n in starts.items() if n > 1} == {"pgd": 3}
    assert n_starts(load_attack("pgd"), "paper") == 1
    engine = VisitingEngine(lambda x: x)
    result = measure(tiny_net, clean, load_attack("pgd"), Threat("linf", 0.1), engine=engine, protocol="strong")
    assert engine.n_calls == 3
    assert result.gradient_passes == 3 * 10 * int(clean.correct.sum())


def test_what_strong_changes_in_an_attack() -> None:
    assert load_attack("pgd").strengthened().parameters == {"steps": 10, "relative_step": 0.25}
    assert load_attack("pgd").strengthened(given=["relative_step"]).parameters["relative_step"] == 0.1
    assert load_attack("fgsm").strengthened() == load_attack("fgsm")
    assert load_attack("apgd-ce").strengthened().parameters["restarts"] == 3
    assert load_attack("art-autoattack").strengthened().parameters["restarts"] == 5


# --- studies and records ---------------------------------------------------------------------------------------------


def test_a_strong_study(study_file: Path) -> None:
    study = load_study(study_file, ["protocol=strong"])
    by_name = {spec.name: spec for _, spec in resolve_attacks(study)}
    assert by_name["pgd"].parameters == {"steps": 3, "relative_step": 2.5 / 3}
    assert {unit.protocol for unit in plan(study)} == {"strong"}


def test_attacks_run_through_the_engines_that_offer_them(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    square = '[[attacks]]\nname = "square"\neps.linf = [0.1]\n'
    margin = '[[attacks]]\nname = "apgd-margin"\neps.l2 = [0.1]\nengines = ["native"]\n'
    path.write_text(f"{STUDY}\n{square}\n{margin}")
    engines: dict[str, list[str]] = {}
    for unit in plan(load_study(path)):
        if unit.method == "none":
            engines.setdefault(unit.attack.name, []).append(unit.engine)
    assert engines == {
        "fgsm": ["foolbox", "art"],
        "pgd": ["foolbox", "art"],
        "square": ["art"],
        "apgd-margin": ["native"],
        "transfer": ["foolbox", "foolbox"],  # from another network, in both norms
    }
    for text, says in [
        ('name = "square"\neps.l2 = [0.1]', r"attacks\.2: attack 'square' is offered by none of .* in norm 'l2'; "),
        ('name = "apgd-margin"\neps.l2 = [0.1]', "none of the engines foolbox, art .* offered: native: linf, l2"),
        ('name = "bim"\neps.l2 = [1]\nengines = ["art", "art"]', "engines: art is given more than once"),
    ]:
        path.write_text(f"{STUDY}\n[[attacks]]\n{text}\n")
        with pytest.raises(ConfigurationError, match=says):
            load_study(path)


def test_what_a_file_may_say_of_costs(tmp_path: Path) -> None:
    content = load_attack("apgd-ce").model_dump(by_alias=True)
    spec = AttackSpec.model_validate({**content, "gradient_evaluations": "2 * $steps * $restarts + 10 * $steps"})
    assert spec.n_gradients == 2 * 100 + 10 * 100
    assert AttackSpec.model_validate({**content, "images_per_call": "$steps"}).call_size == 100
    for wrong in ("$stepz", "1.5", "$steps - 1"):
        with pytest.raises(ValueError, match="forward_evaluations has the factor"):
            AttackSpec.model_validate({**content, "forward_evaluations": wrong})


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_the_keys_of_earlier_results_are_as_they_were(name: str) -> None:
    """What an attack file says enters the key of a result; what it leaves out does not."""
    content = load_attack(name).model_dump(mode="json", exclude_defaults=True)
    assert list(content) == [
        *("name", "title", "summary", "reference", "deterministic", "gradient_evaluations", "parameters", "engines")
    ]
    spellings = [spelling for norms in content["engines"].values() for spelling in norms.values()]
    assert {tuple(spelling) for spelling in spellings} == {("class_", "arguments")}


def test_evaluate_strong(tiny_net: TinyNet, quarters: Dataset, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    threats = [Threat("linf", eps) for eps in (0.01, 0.03, 0.1)]
    options = {"engines": ("foolbox", "native"), "test_images": 16, "protocol": "strong"}
    frame = evaluate(model, quarters, [short("pgd"), short("apgd-margin")], threats, out=tmp_path / "run", **options)
    assert set(frame.protocol) == {"strong"}
    assert set(zip(frame.attack, frame.engine, strict=True)) == {
        ("pgd", "foolbox"),
        ("pgd", "native"),
        ("apgd-margin", "native"),
    }
    found = load_run(tmp_path / "run").manifest["study"]
    assert found["protocol"] == "strong"
    assert found["attacks"][0]["parameters"]["relative_step"] == 0.25
    for _, cells in frame.groupby(["attack", "engine"]):
        curve = cells.sort_values("eps_pixel").robust_accuracy
        assert curve.is_monotonic_decreasing
    with pytest.raises(ConfigurationError, match="'art-autoattack' is offered by none of the engines foolbox, native"):
        evaluate(model, quarters, ["art-autoattack"], threats, **options)


def test_half_precision_is_marked_in_records_and_report(quarters: Dataset, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    options = {"engines": ("native",), "test_images": 8}
    threats = [Threat("linf", 0.03)]
    full = evaluate(model, quarters, ["fgsm"], threats, out=tmp_path / "full", **options)
    half = evaluate(model, quarters, ["fgsm"], threats, out=tmp_path / "half", precision="bf16", **options)
    assert set(full.precision) == {"fp32"}
    assert set(half.precision) == {"bf16"}
    keys = {read_key(next((tmp_path / run / "results").glob("*.parquet"))) for run in ("full", "half")}
    assert len(keys) == 2
    for run, marked in (("full", False), ("half", True)):
        report = write_report(tmp_path / run).parent
        for path in (report / "index.html", *report.glob("tables/*.md")):
            assert ("attacks crafted in bfloat16" in path.read_text(encoding="utf-8")) == marked
    with pytest.raises(RunDirectoryError, match="attack_precision"):
        combine([load_run(tmp_path / "full"), load_run(tmp_path / "half")])
