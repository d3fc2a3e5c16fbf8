"""Every attack, norm and engine against closed forms and NumPy references, and against each other."""

from __future__ import annotations

import inspect
import random

import numpy as np
import pytest
import torch
from conftest import OFFERED, LinearModel, TinyNet, short
from torch import nn

from robustfdd.catalogue import load_attack
from robustfdd.classifier import frozen
from robustfdd.engines import get_engine
from robustfdd.engines.base import random_start
from robustfdd.errors import ConfigurationError, ModelContractError
from robustfdd.measure import attack
from robustfdd.specs import ENGINES, LIBRARIES, AttackSpec
from robustfdd.threat import NORMS, Threat, in_box

#: Those that climb whatever they are given, so that every perturbation raises the loss.
CLIMBING = {"fgsm", "bim", "pgd"}


def linear_case(n: int = 12, seed: int = 0) -> tuple[LinearModel, torch.Tensor, torch.Tensor]:
    """A linear model and images far enough from the box that no perturbation of 0.1 in L-inf touches it."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, 1, 5, 4, generator=generator)
    x = 0.3 + 0.4 * torch.rand(n, 1, 5, 4, generator=generator)
    return LinearModel(weight, 0.2), x, torch.arange(n) % 2


def margins(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Logit of the true class minus the other, in float64; negative is misclassified."""
    logits = model.double()(x.double())
    model.float()
    return (logits[:, 1] - logits[:, 0]) * (2 * y - 1)


def test_the_catalogue_has_what_the_paper_needs() -> None:
    assert set(OFFERED) >= {(a, n, e) for a in ("fgsm", "bim", "pgd") for n in ("linf", "l2") for e in ENGINES}


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fgsm", "bim"])
def test_deterministic_attacks_reach_the_optimum_of_a_linear_model(
    name: str, norm: str, engine: str, batch_size: int
) -> None:
    """By Hoelder, eps lowers the margin by at most eps times the dual norm of w; on a linear model both reach it."""
    model, x, y = linear_case()
    eps = 0.1
    x_adv = attack(model, x, y, name, Threat(norm, eps), engine=engine, batch_size=batch_size)
    dual = float(model.weight.detach().abs().sum() if norm == "linf" else model.weight.detach().norm())
    lowered = margins(model, x, y) - margins(model, x_adv, y)
    assert lowered.detach().numpy() == pytest.approx(np.full(len(x), eps * dual), rel=1e-5)


def pgd_reference(
    model: LinearModel, x: torch.Tensor, y: torch.Tensor, start: np.ndarray, threat: Threat
) -> np.ndarray:
    """Ten steps of eps/10 from the start, in float64: on a linear model the gradient is w, up to its sign."""
    direction = model.weight.detach().numpy().astype(np.float64) * -(2 * y.numpy() - 1).reshape(-1, 1, 1, 1)
    x0 = x.numpy().astype(np.float64)
    point = np.clip(x0 + start, 0, 1)
    step = (
        np.sign(direction)
        if threat.norm == "linf"
        else direction / np.linalg.norm(direction.reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
    )
    for _ in range(10):
        delta = point + 0.1 * threat.eps * step - x0
        if threat.norm == "linf":
            delta = np.clip(delta, -threat.eps, threat.eps)
        else:
            length = np.linalg.norm(delta.reshape(len(x), -1), axis=1).reshape(-1, 1, 1, 1)
            delta *= np.minimum(1, threat.eps / length)
        point = x0 + delta
    return point


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("norm", NORMS)
def test_foolbox_pgd_from_its_seeded_start(norm: str, batch_size: int) -> None:
    model, x, y = linear_case()
    threat = Threat(norm, 0.1)
    start = random_start(np.random.default_rng(7), len(x), tuple(x.shape[1:]), threat)
    x_adv = attack(model, x, y, "pgd", threat, engine="foolbox", seed=7, batch_size=batch_size)
    assert x_adv.numpy() == pytest.approx(pgd_reference(model, x, y, start, threat), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
@pytest.mark.parametrize("norm", NORMS)
def test_native_pgd_from_its_seeded_start(norm: str, batch_size: int) -> None:
    model, x, y = linear_case()
    threat = Threat(norm, 0.1)
    start = random_start(np.random.default_rng([7, 0]), len(x), tuple(x.shape[1:]), threat)
    x_adv = attack(model, x, y, "pgd", threat, engine="native", seed=7, batch_size=batch_size)
    assert x_adv.numpy() == pytest.approx(pgd_reference(model, x, y, start, threat), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_art_pgd_from_its_seeded_start(batch_size: int) -> None:
    """ART draws L-inf starts uniformly from NumPy's legacy generator, as the reference does."""
    model, x, y = linear_case()
    threat = Threat("linf", 0.1)
    start = np.random.RandomState(7).uniform(-0.1, 0.1, (len(x), 20)).reshape(x.shape)
    x_adv = attack(model, x, y, "pgd", threat, engine="art", seed=7, batch_size=batch_size)
    assert x_adv.numpy() == pytest.approx(pgd_reference(model, x, y, start, threat), abs=1e-6)


@pytest.mark.parametrize(("name", "norm", "engine"), OFFERED)
def test_budget_box_and_batch_size(name: str, norm: str, engine: str, tiny_net: TinyNet) -> None:
    """A budget that meets the box: inside both, raises the loss where it climbs, and no batch size changes it."""
    x = torch.rand(9, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    y = torch.arange(9) % 4
    threat = Threat(norm, 0.3 if norm == "linf" else 1.5)
    spec = short(name)
    source = tiny_net if spec.access == "transfer" else None
    results = [
        attack(tiny_net, x, y, spec, threat, engine=engine, seed=3, batch_size=size, source=source)
        for size in (1, 4, 9)
    ]
    for x_adv in results:
        assert bool(threat.within(x, x_adv).all())
        assert bool(in_box(x_adv).all())
        assert float(x_adv.min()) >= 0
        assert float(x_adv.max()) <= 1
    loss = nn.CrossEntropyLoss(reduction="none")
    if name in CLIMBING:
        with torch.no_grad():
            assert bool((loss(tiny_net(results[0]), y) > loss(tiny_net(x), y)).all())
    # Float32 sums differ in their last bits with the batch; a sign of a vanishing gradient may flip, nothing else.
    for other in results[1:]:
        assert float((other - results[0]).abs().flatten(1).amax(1).median()) < 1e-5
        with torch.no_grad():
            assert tiny_net(other).argmax(1).tolist() == tiny_net(results[0]).argmax(1).tolist()
        if spec.call_size is not None:
            assert torch.equal(other, results[0])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fgsm", "bim"])
def test_the_engines_agree_sample_by_sample(name: str, norm: str, tiny_net: TinyNet) -> None:
    x = torch.rand(40, 1, 10, 10, generator=torch.Generator().manual_seed(2))
    y = torch.arange(40) % 4
    threat = Threat(norm, 0.08 if norm == "linf" else 0.6)
    native, *others = (attack(tiny_net, x, y, name, threat, engine=engine) for engine in ("native", "foolbox", "art"))
    for other in others:
        assert float((native - other).abs().max()) < 1e-5


@pytest.mark.parametrize(("name", "norm", "engine"), OFFERED)
def test_model_and_random_states_are_left_as_they_were(name: str, norm: str, engine: str, tiny_net: TinyNet) -> None:
    tiny_net.train()
    tiny_net.body[1].eval()
    tiny_net.head.weight.requires_grad_(False)
    tiny_net.body[0].weight.grad = torch.ones_like(tiny_net.body[0].weight)
    before = {k: v.clone() for k, v in tiny_net.state_dict().items()}
    modes = [m.training for m in tiny_net.modules()]
    needs = [p.requires_grad for p in tiny_net.parameters()]
    x, y = torch.rand(3, 1, 10, 10), torch.tensor([0, 1, 2])

    def seed() -> None:
        torch.manual_seed(11)
        np.random.seed(11)  # noqa: NPY002
        random.seed(11)

    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    seed()
    expected = draw()
    seed()
    spec = short(name)
    source = tiny_net if spec.access == "transfer" else None
    attack(tiny_net, x, y, spec, Threat(norm, 0.1), engine=engine, source=source)
    assert draw() == expected
    assert [m.training for m in tiny_net.modules()] == modes
    assert [p.requires_grad for p in tiny_net.parameters()] == needs
    assert torch.equal(tiny_net.body[0].weight.grad, torch.ones_like(tiny_net.body[0].weight))
    assert all(torch.equal(v, before[k]) for k, v in tiny_net.state_dict().items())


@pytest.mark.parametrize(("norm", "engine"), [(n, e) for n in NORMS for e in LIBRARIES])
def test_same_seed_same_start_other_seed_other_start(norm: str, engine: str, tiny_net: TinyNet) -> None:
    x, y = torch.rand(6, 1, 10, 10, generator=torch.Generator().manual_seed(4)), torch.arange(6) % 4
    one, again, other = (
        attack(tiny_net, x, y, "pgd", Threat(norm, 0.3), engine=engine, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_is_uniform_in_the_ball(norm: str) -> None:
    """In d dimensions the share of a uniform ball within a fraction r of its radius is r ** d."""
    threat = Threat(norm, 0.5)
    points = random_start(np.random.default_rng(0), 20_000, (1, 1, 3), threat).reshape(-1, 3)
    radius = np.abs(points).max(1) if norm == "linf" else np.linalg.norm(points, axis=1)
    assert radius.max() <= 0.5
    for fraction in (0.5, 0.8):
        share = fraction**3
        assert (radius <= fraction * 0.5).mean() == pytest.approx(share, abs=5 * (share * (1 - share) / 20_000) ** 0.5)
    assert np.abs(points.mean(0)).max() < 5 * 0.5 / 20_000**0.5


def test_random_start_does_not_depend_on_the_cut_into_batches() -> None:
    for norm in NORMS:
        threat = Threat(norm, 0.5)
        whole = random_start(np.random.default_rng(0), 10, (1, 3, 3), threat)
        rng = np.random.default_rng(0)
        parts = np.concatenate([random_start(rng, n, (1, 3, 3), threat) for n in (3, 1, 6)])
        assert np.array_equal(whole, parts)


@pytest.mark.parametrize(("name", "norm", "engine"), OFFERED)
def test_no_library_default_is_in_play(name: str, norm: str, engine: str, tiny_net: TinyNet) -> None:
    """The attack file names every argument of the constructors but the classifier and ART's worker processes."""
    spelled = load_attack(name).spelled(engine, Threat(norm, 0.1), 8)
    if engine == "foolbox":
        import foolbox as library  # noqa: PLC0415

        library = library.attacks
    elif engine == "art":
        import art.attacks.evasion as library  # noqa: PLC0415
    else:
        from robustfdd.engines import native as library  # noqa: PLC0415
    given = {"self", "estimator", "classifier", "parallel", "parallel_pool_size"}
    components = [component for value in spelled.arguments.values() if isinstance(value, list) for component in value]
    for part in (spelled, *components):
        signature = inspect.signature(getattr(library, part.class_name).__init__)
        assert set(part.arguments) == set(signature.parameters) - given


def test_sequential_subclass_keeps_its_own_forward() -> None:
    """ART calls the children of an ``nn.Sequential`` one by one; the model must not lose its normalisation by that."""

    class Shifted(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward((x - 0.5) * 40)

    torch.manual_seed(0)
    model = Shifted(nn.Flatten(), nn.Linear(20, 2), nn.Tanh(), nn.Linear(2, 2)).eval()
    x, y = torch.rand(9, 1, 5, 4), torch.arange(9) % 2
    one, two = (attack(model, x, y, "fgsm", Threat("l2", 0.2), engine=engine) for engine in ("foolbox", "art"))
    assert float((one - two).abs().max()) < 1e-5


def test_wrapped_classifiers_are_the_libraries_own(tiny_net: TinyNet) -> None:
    import foolbox  # noqa: PLC0415
    from art.estimators.classification import PyTorchClassifier  # noqa: PLC0415

    x = torch.rand(4, 1, 10, 10)
    with frozen(tiny_net), torch.no_grad():
        logits = tiny_net(x)
        through_art = get_engine("art").wrap(tiny_net, n_classes=4, image_shape=(1, 10, 10))
        through_foolbox = get_engine("foolbox").wrap(tiny_net, n_classes=4, image_shape=(1, 10, 10))
        assert isinstance(through_art, PyTorchClassifier)
        assert isinstance(through_foolbox, foolbox.PyTorchModel)
        assert through_art.predict(x.numpy()) == pytest.approx(logits.numpy(), abs=1e-6)
        assert through_foolbox(x).numpy() == pytest.approx(logits.numpy(), abs=1e-6)


def test_parameters_of_a_study_reach_both_libraries(tiny_net: TinyNet) -> None:
    """BIM of one step of relative length 1 is FGSM."""
    x, y = torch.rand(8, 1, 10, 10, generator=torch.Generator().manual_seed(6)), torch.arange(8) % 4
    one_step = load_attack("bim").with_parameters({"steps": 1, "relative_step": 1.0})
    for engine in LIBRARIES:
        for norm in NORMS:
            threat = Threat(norm, 0.2)
            assert torch.allclose(
                attack(tiny_net, x, y, one_step, threat, engine=engine),
                attack(tiny_net, x, y, "fgsm", threat, engine=engine),
                atol=1e-6,
            )


@pytest.mark.parametrize("norm", NORMS)
def test_vanishing_gradients_move_the_image_all_the_same(norm: str) -> None:
    """FGSM does not depend on the length of the gradient; here it is far below where Foolbox stops normalising."""
    model, x, y = linear_case()
    with torch.no_grad():
        model.weight.mul_(1e-15)
    eps = 0.1
    for engine in LIBRARIES:
        x_adv = attack(model, x, y, "fgsm", Threat(norm, eps), engine=engine)
        assert Threat(norm, eps).distance(x, x_adv).numpy() == pytest.approx(np.full(len(x), eps), rel=1e-5)


@pytest.mark.parametrize("engine", LIBRARIES)
def test_gradients_switched_off_outside_do_not_matter(engine: str, tiny_net: TinyNet) -> None:
    x, y = torch.rand(3, 1, 10, 10), torch.tensor([0, 1, 2], dtype=torch.int32)
    expected = attack(tiny_net, x, y, "bim", Threat("l2", 0.5), engine=engine)
    with torch.no_grad():
        assert torch.equal(attack(tiny_net, x, y, "bim", Threat("l2", 0.5), engine=engine), expected)
    with torch.inference_mode():
        assert torch.equal(attack(tiny_net, x, y, "bim", Threat("l2", 0.5), engine=engine), expected)


def test_zero_epsilon_changes_nothing(tiny_net: TinyNet) -> None:
    x, y = torch.rand(4, 1, 10, 10), torch.arange(4)
    assert torch.equal(attack(tiny_net, x, y, "pgd", Threat("linf", 0)), x)


def spelled_as(class_name: str) -> AttackSpec:
    content = load_attack("fgsm").model_dump(by_alias=True)
    for engine in content["engines"].values():
        for spelling in engine.values():
            spelling["class"] = class_name
    return AttackSpec.model_validate(content)


@pytest.mark.parametrize("engine", LIBRARIES)
@pytest.mark.parametrize("class_name", ["NoSuchAttack", "base", "np"])
def test_an_attack_file_can_name_nothing_but_an_attack(engine: str, class_name: str, tiny_net: TinyNet) -> None:
    with pytest.raises(ConfigurationError, match="has no attack class"):
        attack(
            tiny_net,
            torch.rand(1, 1, 10, 10),
            torch.zeros(1, dtype=torch.int64),
            spelled_as(class_name),
            Threat("linf", 0.1),
            engine=engine,
        )


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (torch.rand(2, 1, 10, 10) * 255, torch.tensor([0, 1]), r"\[0, 1\]"),
        (torch.rand(2, 1, 10, 10) - 0.5, torch.tensor([0, 1]), r"\[0, 1\]"),
        (torch.rand(2, 10, 10), torch.tensor([0, 1]), "shape"),
        (torch.zeros(2, 1, 10, 10, dtype=torch.uint8), torch.tensor([0, 1]), "float"),
        (torch.rand(2, 1, 10, 10), torch.tensor([0, 4]), "from 0 to 3"),
        (torch.rand(2, 1, 10, 10), torch.tensor([0.0, 1.0]), "integer"),
        (torch.rand(2, 1, 10, 10), torch.tensor([0, 1, 2]), "shape"),
    ],
)
def test_bad_images_and_labels_are_named(x: torch.Tensor, y: torch.Tensor, says: str, tiny_net: TinyNet) -> None:
    with pytest.raises(ModelContractError, match=says):
        attack(tiny_net, x, y, "fgsm", Threat("linf", 0.1))


def test_unknown_names_are_named(tiny_net: TinyNet) -> None:
    x, y = torch.rand(1, 1, 10, 10), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ConfigurationError, match=r"unknown attack 'fsgm'.*'fgsm'"):
        attack(tiny_net, x, y, "fsgm", Threat("linf", 0.1))
    with pytest.raises(ConfigurationError, match=r"unknown engine 'cleverhans'.*foolbox, art"):
        attack(tiny_net, x, y, "fgsm", Threat("linf", 0.1), engine="cleverhans")
