"""Attacks where they are not defined: few classes, logits that are one value, images of awkward shapes, one class."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import OFFERED, ROOT, LinearModel, make_dataset, short
from torch import Tensor, nn

from robustfdd.ascent import difference_of_logits_ratio, margin
from robustfdd.audit import audit
from robustfdd.catalogue import load_attack
from robustfdd.datasets.base import to_pixels
from robustfdd.engines import get_engine
from robustfdd.errors import ConfigurationError, EngineError, ModelContractError
from robustfdd.evaluation import evaluate
from robustfdd.measure import attack, clean_outcome, measure
from robustfdd.records import load_run
from robustfdd.report import write_report
from robustfdd.specs import AttackSpec, Scalar
from robustfdd.threat import NORMS, Threat, in_box

#: Of those that see no gradient a test can ask only that they find what is far inside their radius.
REACH = {"gradient": 1.1, "transfer": 2.0, "score": 6.0, "decision": 6.0, "noise": 12.0}
SHAPE = (1, 8, 8)


def two_classes(scale: float = 1.0) -> tuple[LinearModel, Tensor, Tensor]:
    """A linear model, images around the middle of the box and all as far from its boundary, and their classes."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, *SHAPE, generator=generator)
    x = 0.45 + 0.1 * torch.rand(4, *SHAPE, generator=generator)
    wanted = torch.tensor([1.0, -1.0, 1.0, -1.0])
    off = ((x - 0.5) * weight).flatten(1).sum(1) - 0.1 * wanted
    x = x - (off / (weight**2).sum())[:, None, None, None] * weight
    model = LinearModel(scale * weight, -scale * float((weight * 0.5).sum()))
    return model, x, (wanted > 0).long()


def distance(model: LinearModel, norm: str, scale: float = 1.0) -> float:
    """To the boundary: the margin over the dual norm of w."""
    weight = model.weight.detach() / scale
    return 0.1 / float(weight.abs().sum() if norm == "linf" else weight.norm())


@pytest.mark.parametrize(("name", "norm", "engine"), OFFERED)
def test_every_attack_is_right_about_two_classes(name: str, norm: str, engine: str) -> None:
    """Below the distance to the boundary nothing is broken, above it everything."""
    model, x, y = two_classes()
    spec = load_attack(name) if name in ("ddn", "deepfool", "fmn") else short(name)
    reach = 2.5 if name == "pgd" else REACH[spec.access]  # PGD's steps come to a radius, from wherever it starts
    longer: dict[str, dict[str, Scalar]] = {
        "cw": {"search_steps": 6, "steps": 150, "learning_rate": 0.01},
        "hopskipjump": {"steps": 10, "initial_evaluations": 40},
        "noise-gaussian": {"draws": 100},
        "noise-uniform": {"draws": 100},
        "square": {"steps": 200},
    }
    spec = spec.with_parameters(longer.get(name, {}))
    source = model if spec.access == "transfer" else None
    for factor, broken in ((0.97, 0), (reach, 4)):
        threat = Threat(norm, factor * distance(model, norm))
        x_adv = attack(model, x, y, spec, threat, engine=engine, source=source)
        assert int((model(x_adv).argmax(1) != y).sum()) == broken


@pytest.mark.parametrize("engine", ["native", "art"])
@pytest.mark.parametrize("norm", NORMS)
def test_dlr_of_two_classes_is_free_of_scale(norm: str, engine: str) -> None:
    """Logits so large that the cross-entropy has no gradient at all."""
    model, x, y = two_classes(1e6)
    threat = Threat(norm, 1.1 * distance(model, norm, 1e6))
    broken = {
        name: int((model(attack(model, x, y, short(name), threat, engine=engine)).argmax(1) != y).sum())
        for name in ("apgd-ce", "apgd-dlr")
    }
    assert broken["apgd-dlr"] == len(x)
    assert broken["apgd-ce"] < len(x)


def test_dlr_takes_the_next_value_where_the_third_logit_is_the_second() -> None:
    logits = torch.tensor([[5.0, 2.0, 2.0, -1.0], [5.0, 2.0, 2.0, 2.0], [3.0, 3.0, 1.0, 0.0], [4.0, 4.0, 4.0, 4.0]])
    y = torch.zeros(4, dtype=torch.int64)
    expected = [-(5 - 2) / (5 - -1), -(5 - 2), 0.0, 0.0]
    assert difference_of_logits_ratio(logits, y).tolist() == pytest.approx(expected)
    two = torch.tensor([[3.0, 1.0], [-2.0, 0.5]])
    assert difference_of_logits_ratio(two, y[:2]).tolist() == margin(two, y[:2]).tolist() == [-2.0, 2.5]


@pytest.mark.parametrize("n_classes", [2, 3, 6])
def test_dlr_has_a_gradient_wherever_the_margin_has_one(n_classes: int) -> None:
    """Logits with many ties, as a last layer that cuts at 0 gives them, and values that differ by rounding only."""
    generator = torch.Generator().manual_seed(n_classes)
    logits = torch.randn(200, n_classes, generator=generator).clamp_min(0)
    logits[::3] = logits[::3, :1]  # all of them one value
    logits[1::3, 1:] = logits[1::3, 1:2] * (1 + 1e-7 * torch.randn(67, n_classes - 1, generator=generator))
    y = logits.argmax(1)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(difference_of_logits_ratio(leaf, y).sum(), leaf)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient.abs().amax(1) > 1e-3).all())


def test_dlr_climbs_on_where_the_true_class_is_the_third() -> None:
    """The quotient is 1 there; what is left of its own gradient is rounding, which would lead an attack back."""
    logits = torch.tensor([[0.0, 3.0, 1.0], [1.0, 4.0, 4.0]], requires_grad=True)
    found = difference_of_logits_ratio(logits, torch.tensor([0, 0]))
    assert found.tolist() == [1.0, 1.0]
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[0].tolist() == pytest.approx([-1 / 3, 1 / 3, 0.0])
    assert gradient[1].tolist() == pytest.approx([-1 / 3, 1 / 6, 1 / 6])


class CutOff(nn.Module):
    """Four logits, of which all but that of the true class are one value: a last layer that cuts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, math.prod(SHAPE)))

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.weight[:1].T
        return torch.cat((score, torch.zeros_like(score).expand(-1, 3) - score), 1).clamp_min(0)


@pytest.mark.parametrize("engine", ["native", "art"])
def test_apgd_on_dlr_moves_images_whose_second_and_third_logits_are_one(engine: str) -> None:
    model = CutOff()
    x, y = torch.full((3, *SHAPE), 0.51), torch.zeros(3, dtype=torch.int64)
    x_adv = attack(model, x, y, short("apgd-dlr"), Threat("linf", 0.02), engine=engine)
    assert model(x_adv).argmax(1).tolist() == [1, 1, 1]


# --- what is said of it ----------------------------------------------------------------------------------------------


def test_a_loss_that_stands_for_another_is_stated_in_record_and_report(tmp_path: Path) -> None:
    data = make_dataset(n_classes=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, :4] = model[1].weight[1, 4:8] = 1.0
    attacks = [short("apgd-dlr"), short("art-autoattack"), short("apgd-margin")]
    options = {"engines": ("native", "art"), "test_images": 4}
    frame = evaluate(model, data, attacks, [Threat("linf", 0.6)], out=tmp_path / "run", **options)
    assert frame[frame.eps_pixel > 0].robust_accuracy.tolist() == [0.0] * 4
    manifest = load_run(tmp_path / "run").manifest
    described = {entry["name"]: entry for entry in manifest["study"]["attacks"]}
    assert described["apgd-dlr"]["title"] == "APGD-DLR (margin for DLR)"
    assert described["art-autoattack"]["title"] == "ART's own mix (margin for DLR)"
    says = "DLR) is not defined for 2 classes: this attack climbs the margin in its place"
    assert says in described["apgd-dlr"]["note"]
    assert "note" not in described["apgd-margin"]
    page = write_report(tmp_path / "run")
    table = (page.parent / "tables" / "robust-accuracy-linf.md").read_text(encoding="utf-8")
    for text in (page.read_text(encoding="utf-8"), table):
        assert "APGD-DLR (margin for DLR)" in text
        assert says in text


def test_enough_classes_change_nothing() -> None:
    for name in ("apgd-dlr", "art-autoattack", "fgsm"):
        spec = load_attack(name)
        assert spec.for_classes(3) is spec
    fewer = load_attack("apgd-dlr").for_classes(2)
    assert fewer.engines["native"]["linf"].arguments["loss"] == "margin"
    assert fewer.engines["art"]["l2"].loss == "margin"
    assert load_attack("art-autoattack").for_classes(2).engines["art"]["linf"].components[1].loss == "margin"
    assert load_attack("fgsm").for_classes(2) == load_attack("fgsm")


def test_an_attack_file_with_the_ratio_of_art_is_refused_for_two_classes() -> None:
    content = load_attack("apgd-ce").model_dump(by_alias=True)
    content["engines"]["art"]["linf"]["arguments"]["loss_type"] = "difference_logits_ratio"
    spec = AttackSpec.model_validate(content)
    model, x, y = two_classes()
    says = "attack 'apgd-ce': the difference of logits ratio of ART is not defined for 2 classes"
    with pytest.raises(ConfigurationError, match=says):
        attack(model, x, y, spec, Threat("linf", 0.1), engine="art")
    with pytest.raises(ConfigurationError, match=says):
        evaluate(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
            make_dataset(n_classes=2),
            [spec],
            [Threat("linf", 0.1)],
            engines=("art",),
        )


def test_the_audit_of_two_classes_climbs_what_is_defined() -> None:
    """Logits so large that the cross-entropy breaks nothing: only the margin shows it."""
    data = make_dataset(n_classes=2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        for k, (row, column) in enumerate(((0, 0), (0, 4))):
            mask = torch.zeros(8, 8)
            mask[row : row + 4, column : column + 4] = 3e3
            model[1].weight[k] = mask.flatten()
    found = audit(model, data, Threat("linf", 0.3), test_images=12, batch_size=12)
    assert found.audited_accuracy == 1.0
    assert found.worst_accuracy == 0.0
    assert found.verdict == "not believable"


def test_deepfool_needs_two_candidates() -> None:
    """The first one is the class that is predicted already."""
    with pytest.raises(ConfigurationError, match=r"parameters\.candidates must be a number from 2, not 1"):
        load_attack("deepfool").with_parameters({"candidates": 1})
    model, x, y = two_classes()  # more candidates than classes are all classes
    x_adv = attack(model, x, y, "deepfool", Threat("l2", 3.0))
    assert bool((model(x_adv).argmax(1) != y).all())


def test_one_class_is_refused_everywhere() -> None:
    model, data, threat = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), make_dataset(), Threat("linf", 0.1)
    x, y = to_pixels(data.test.images[:4]), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ModelContractError, match="must return at least two logits an image"):
        attack(model, x, y, "fgsm", threat)
    for run in (lambda: evaluate(model, data, ["fgsm"], [threat]), lambda: audit(model, data, threat)):
        with pytest.raises(ModelContractError, match="must return 4 logits an image"):
            run()


# --- images ----------------------------------------------------------------------------------------------------------


class Sums(nn.Module):
    """Three classes, linear, on images of any shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(math.prod(shape), 3, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x.flatten(1) @ self.weight


def refused_by_art(name: str, shape: tuple[int, ...]) -> bool:
    """ART draws the corner of a square from 0 to the side of the image less that of the square, this excluded."""
    side = max(round(math.sqrt(0.8 * shape[1] * shape[2])), 1)
    return name in ("square", "art-autoattack") and side >= min(shape[1:])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 8), (1, 4, 4), (3, 6, 15), (3, 9, 9)])
@pytest.mark.parametrize("name", sorted({name for name, _, _ in OFFERED}))
def test_every_attack_takes_images_of_any_shape_or_says_that_it_does_not(name: str, shape: tuple[int, ...]) -> None:
    model = Sums(shape)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    spec = short(name)
    source = model if spec.access == "transfer" else None
    for norm, engine in [(norm, engine) for other, norm, engine in OFFERED if other == name]:
        threat = Threat(norm, 0.1 if norm == "linf" else 0.4)
        if engine == "art" and norm == "linf" and refused_by_art(name, shape):
            h, w = shape[1:]
            says = rf"attack '{name}' through art: .* {h} x {w} pixels.* '?native'?"
            with pytest.raises(ConfigurationError, match=says):
                attack(model, x, y, spec, threat, engine=engine)
            continue
        x_adv = attack(model, x, y, spec, threat, engine=engine, source=source)
        assert bool(threat.within(x, x_adv).all())
        assert bool(in_box(x_adv).all())


def test_what_art_cannot_attack_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = make_dataset(size=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(ConfigurationError, match=r"attack 'square' through art: .* 4 x 4 pixels.* use engine 'native'"):
        evaluate(model, data, ["fgsm", "square"], [Threat("linf", 0.1)], engines=("art",), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_library_raises_is_said_in_words_of_ours() -> None:
    class Raising:
        name = "art"
        keeps_best = False

        def prepare(self, *_: object, **__: object) -> object:
            def perturb(x: Tensor, y: Tensor) -> Tensor:
                raise ValueError("high <= 0")

            return perturb

    model = Sums((3, 6, 15))
    images = torch.randint(0, 256, (4, 3, 6, 15), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(to_pixels(images)).argmax(1)
    clean = clean_outcome(model, images, labels, n_classes=3, batch_size=4)
    with pytest.raises(EngineError) as error:
        measure(model, clean, load_attack("square"), Threat("linf", 0.1), engine=Raising())
    assert str(error.value) == (
        "attack 'square' through art failed on images of 3 x 6 x 15 (channels, height, width): ValueError: "
        "high <= 0. It is also offered through: native"
    )


@pytest.mark.parametrize(
    ("name", "engine", "parameters", "says"),
    [
        (
            "square",
            "art",
            {"p_init": 1.5},
            "attack 'square': SquareAttack of ART refuses an argument of its file: .*p_init",
        ),
        ("deepfool", "art", {"overshoot": -0.5}, "attack 'deepfool': DeepFool of ART refuses an argument"),
    ],
)
def test_arguments_that_a_library_refuses_are_refused_in_words_of_ours(
    name: str, engine: str, parameters: dict[str, float], says: str
) -> None:
    spec, norm = load_attack(name).with_parameters(parameters), load_attack(name).norms(engine)[0]
    with pytest.raises(ConfigurationError, match=says):
        get_engine(engine).check(spec, Threat(norm, 0.1), n_classes=3, image_shape=(1, 9, 9))


# --- names -----------------------------------------------------------------------------------------------------------


def test_arts_mix_is_not_called_autoattack() -> None:
    """Its former name leads to the present one."""
    with pytest.raises(ConfigurationError, match="unknown attack 'autoattack'; did you mean 'art-autoattack'"):
        load_attack("autoattack")
    assert "AutoAttack" not in load_attack("art-autoattack").title
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in readme.splitlines():
        assert "AutoAttack" not in line or "not AutoAttack" in line
