"""What people bring: models whose own code remembers, raises, draws, mixes or divides by zero, and the right answer.

In class k channel k is brighter by 0.1 or more, and models compare means of channels: what an attack leaves is known.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robustfdd
from robustfdd import Threat
from robustfdd.catalogue import load_attack
from robustfdd.classifier import ExpectedPrediction, check_classifier, tensor_digest
from robustfdd.datasets.base import Dataset, Split
from robustfdd.errors import EngineError, ModelContractError, UndefinedGradientError
from robustfdd.preparation import is_same_function, prepare
from robustfdd.randomness import GlobalRandomness, get_state
from robustfdd.specs import ENGINES

N_CLASSES = 3
#: Reaches no image, and every image: half of the least and more than half of the largest distance of two means.
NONE, ALL = Threat("linf", 0.02), Threat("linf", 0.15)


def _split(n: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % N_CLASSES
    images = rng.normal(0.45, 0.02, (n, 3, 8, 8))
    images[np.arange(n), labels] += 0.1 + 0.1 * rng.random((n, 1, 1))
    bytes_ = np.clip(255 * images, 0, 255).round().astype(np.uint8)
    return Split(torch.from_numpy(bytes_), torch.from_numpy(labels))


@pytest.fixture(scope="module")
def colours() -> Dataset:
    return Dataset(
        name="colours",
        title="Colours",
        classes=("red", "green", "blue"),
        train=_split(6, 0),
        test=_split(33, 1),  # a last batch of a single image, for batches of 16 or 32
        mean=0.5,
        std=0.25,
        sha256="colours",
        source="made for this test",
    )


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 20 * x.mean((2, 3))


def robust_accuracies(
    model: nn.Module, dataset: Dataset, engine: str, attack: str = "bim", **options: object
) -> list[float]:
    """At radius 0, where nothing is broken, and where everything is."""
    frame = robustfdd.evaluate(model, dataset, [attack], [NONE, ALL], engines=[engine], **options)
    return frame["robust_accuracy"].tolist()


# --- a copy that is not the model ------------------------------------------------------------------------------------


class RemembersInAHook(nn.Module):
    """Features are taken by a hook that is a closure over the model: a copy reads what the model left in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.feature = torch.zeros(1, 3)

        def keep(module: nn.Module, given: tuple[Tensor], got: Tensor) -> None:
            self.feature = got.mean((2, 3))

        self.body.register_forward_hook(keep)

    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        feature = self.feature
        self.feature = feature.detach()  # a tensor with a history cannot be copied
        return 20 * feature if len(feature) == len(x) else 20 * feature[:1].expand(len(x), -1)


class AnotherGradientInItsCopy(Means):
    """The copy has the same logits, and a gradient that leads nowhere."""

    copied = False

    def __deepcopy__(self, memo: object) -> AnotherGradientInItsCopy:
        other = AnotherGradientInItsCopy()
        other.copied = True
        return other

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach() + 0 * x) if self.copied else super().forward(x)


class IsItsOwnCopy(nn.Module):
    """Whatever is done to the copy would be done to the model."""

    def __init__(self) -> None:
        super().__init__()
        with GlobalRandomness(0):
            self.conv, self.norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3).eval()
        with torch.no_grad():
            self.conv.weight.copy_(torch.eye(3)[:, :, None, None])

    def __deepcopy__(self, memo: object) -> IsItsOwnCopy:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return 20 * self.norm(self.conv(x)).mean((2, 3))


class NoChannelsLast(Means):
    """A weight of five dimensions, for which there is no such layout."""

    def __init__(self) -> None:
        super().__init__()
        with GlobalRandomness(0):
            self.conv = nn.Conv3d(1, 4, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01 * self.conv(x.unsqueeze(1)).mean()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [Means, RemembersInAHook, AnotherGradientInItsCopy, IsItsOwnCopy, NoChannelsLast])
def test_a_model_is_attacked_and_not_what_became_of_its_copy(
    make: Callable[[], nn.Module], engine: str, colours: Dataset
) -> None:
    assert robust_accuracies(make(), colours, engine) == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("make", [RemembersInAHook, AnotherGradientInItsCopy, IsItsOwnCopy])
def test_what_is_not_shown_to_be_the_model_is_not_used(make: Callable[[], nn.Module]) -> None:
    model, x = make().eval(), torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model(x)  # it has seen the images that the copy is tried on
    assert prepare(model, x).model is model


def test_another_gradient_is_another_function() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model, other = Means(), AnotherGradientInItsCopy()
    assert is_same_function(model, other, x)
    other.copied = True
    assert torch.equal(model(x), other(x))
    assert not is_same_function(model, other, x)


def test_a_compiler_that_fails_leaves_the_model_as_it_is(colours: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise RuntimeError("no such backend\nand much more")

    monkeypatch.setattr(torch, "compile", fails)
    monkeypatch.setattr("robustfdd.preparation.check_compiler", lambda device: None)
    with pytest.warns(UserWarning, match=r"without torch.compile.*RuntimeError: no such backend\)"):
        assert robust_accuracies(Means(), colours, "native", compile=True) == [1.0, 1.0, 0.0]


# --- code of the model that raises, or does something else than is expected ------------------------------------------


class ReturnsNothingFromTrain(Means):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


class TrainsInTrain(Means):
    def train(self, loader: object, epochs: int) -> None:  # type: ignore[override]
        raise AssertionError("nobody asked for a training")


class WritesIntoItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 5 * x.sub_(0.5).div_(0.25).mean((2, 3))


class HasASparseBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return 20 * torch.sparse.mm(self.mix, x.mean((2, 3)).T).T


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("make", [ReturnsNothingFromTrain, TrainsInTrain, WritesIntoItsInput, HasASparseBuffer])
def test_unusual_models_are_attacked(make: Callable[[], nn.Module], engine: str, colours: Dataset) -> None:
    assert robust_accuracies(make(), colours, engine) == [1.0, 1.0, 0.0]


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar")  # by torch.jit.trace
def test_scripts_and_exported_programs_are_attacked(colours: Dataset) -> None:
    traced = torch.jit.trace(Means().eval(), torch.rand(2, 3, 8, 8))
    dims = ({0: torch.export.Dim("n")},)
    exported = torch.export.export(Means().eval(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=dims).module()
    for model in (traced, exported):
        for engine in ENGINES:
            assert robust_accuracies(model, colours, engine) == [1.0, 1.0, 0.0]


def test_sparse_tensors_have_digests_of_their_own() -> None:
    one, two = torch.eye(3).to_sparse(), torch.diag(torch.tensor([1.0, 1.0, 2.0])).to_sparse()
    assert tensor_digest({"mix": one}) == tensor_digest({"mix": one.clone()})
    assert len({tensor_digest({"mix": each}) for each in (one, two, one.to_dense())}) == 3


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return 20 * x.mean((2, 3))


class FailsIf(Means):
    """Raises where a condition on the batch holds."""

    def __init__(self, condition: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.condition = condition

    def forward(self, x: Tensor) -> Tensor:
        if self.condition(x):
            raise ZeroDivisionError("the reason")
        return super().forward(x)


class Lambda(nn.Module):
    def __init__(self, f: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> object:
        return self.f(x)


BROKEN = {
    "always": (
        lambda: FailsIf(lambda x: True),
        "fails on a batch of 32 images of shape .* ZeroDivisionError: the reason",
    ),
    "alone": (lambda: FailsIf(lambda x: len(x) == 1), "fails on a single image .* ZeroDivisionError: the reason"),
    "with a gradient": (lambda: FailsIf(lambda x: x.requires_grad), "no gradient .* ZeroDivisionError: the reason"),
    "leaves torch": (lambda: Lambda(lambda x: torch.from_numpy(x.numpy().mean((2, 3)))), "no gradient .*numpy"),
    "no backward": (lambda: Lambda(_NoBackward.apply), "no gradient .* backward pass fails: NotImplementedError"),
    "unused input": (lambda: Lambda(lambda x: x.detach().mean((2, 3)).requires_grad_()), "no gradient"),
    "squeezes": (lambda: Lambda(lambda x: x.mean((2, 3)).squeeze()), r"not a tensor of shape \(3,\).*squeeze"),
    "tuple": (lambda: Lambda(lambda x: (x.mean((2, 3)), x)), "not a tuple. Wrap it"),
    "exits": (lambda: Lambda(lambda x: sys.exit("bye")), "SystemExit: bye"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "parameters without values .*1.weight"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_attack_audit_and_evaluation_refuse_in_the_same_words(case: str, colours: Dataset) -> None:
    make, says = BROKEN[case]
    x, y = colours.test.images[:32].float() / 255, colours.test.labels[:32]
    calls: tuple[Callable[[nn.Module], object], ...] = (
        lambda model: robustfdd.evaluate(model, colours, ["fgsm"], [ALL]),
        lambda model: robustfdd.audit(model, colours, ALL),
        lambda model: robustfdd.attack(model, x, y, "fgsm", ALL),
    )
    said = set()
    for call in calls:
        with pytest.raises(ModelContractError, match=f"(?s){says}") as caught:
            call(make())
        said.add(str(caught.value))
    assert len(said) == 1


def test_a_model_that_fails_in_the_middle_of_an_attack_is_named(colours: Dataset) -> None:
    """It takes images of bytes, and no others."""

    def is_perturbed(x: Tensor) -> bool:
        return bool(((255 * x) - (255 * x).round()).detach().abs().max() > 1e-2)

    with pytest.raises(ModelContractError, match="ZeroDivisionError: the reason"):
        robust_accuracies(FailsIf(is_perturbed), colours, "foolbox")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_library_raises_says_which_attack_it_was(
    engine: str, colours: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
            return x.view_as(x)

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            if len(gradient) == 16:
                raise ZeroDivisionError("the reason")
            return gradient

    model = Lambda(lambda x: 20 * Broken.apply(x).mean((2, 3)))
    with pytest.raises(EngineError, match=f"'bim' through {engine} failed on images .* ZeroDivisionError: the reason"):
        robust_accuracies(model, colours, engine, batch_size=16)


# --- images of a batch that see each other ---------------------------------------------------------------------------


def _mixing(f: Callable[[Tensor], Tensor]) -> nn.Module:
    return Lambda(lambda x: 20 * f(x).mean((2, 3)))


@pytest.mark.parametrize(
    "model",
    [
        _mixing(lambda x: x / x.max()),
        _mixing(lambda x: x - x[-1:] / 8),  # only the last image is looked at
        _mixing(lambda x: x - x[:1] / 8),
        _mixing(lambda x: x * (1 + 0.1 * (torch.arange(len(x)) % 2).view(-1, 1, 1, 1))),  # the place in the batch
        _mixing(lambda x: x if len(x) > 1 else x * 1.1),  # whether it is alone
        _mixing(lambda x: x + 0.1 * x.roll(16, 0)),  # across the halves
    ],
)
@pytest.mark.parametrize("brightest", [0, 20, 31])
def test_mixing_is_found_wherever_it_is(model: nn.Module, brightest: int) -> None:
    x = 0.5 * torch.rand(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[brightest] += 0.4
    with pytest.raises(ModelContractError, match="depend on the other images of the batch"):
        check_classifier(model, x, 3)


# --- random models ---------------------------------------------------------------------------------------------------


class DrawsOnceForABatch(nn.Module):
    """One draw of each pass decides for all of its images whether the first or the second half of the rows is read."""

    def forward(self, x: Tensor) -> Tensor:
        top = 0 if float(torch.rand(())) < 0.5 else x.shape[2] // 2
        return 20 * x[:, :, top : top + x.shape[2] // 2].mean((2, 3))


def test_passes_that_are_averaged_have_draws_of_their_own() -> None:
    """The mean prediction of an image whose halves say the opposite; of one shared draw it is one of them."""
    x = torch.zeros(1, 3, 8, 8)
    x[:, 0, :4], x[:, 1, 4:] = 1.0, 1.0
    with GlobalRandomness(0):
        p = ExpectedPrediction(DrawsOnceForABatch(), 400)(x).exp()[0]
    # Each half gives its class all but certainly; 5 standard deviations of a share of 400 fair draws.
    assert torch.allclose(p[:2], torch.tensor([0.5, 0.5]), atol=5 * 0.5 / math.sqrt(400))


def test_a_gradient_of_many_passes_sees_what_each_draw_shows() -> None:
    x = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    with GlobalRandomness(0):
        out = ExpectedPrediction(DrawsOnceForABatch(), 16)(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(out, torch.tensor([0])), x)
    assert bool((gradient[0, 0] != 0).all())


class PadsAtRandom(nn.Module):
    """Random resizing and padding with Python's module ``random``, as public copies of that defence draw."""

    def forward(self, x: Tensor) -> Tensor:
        size = random.randint(5, 8)
        top, left = random.randint(0, 8 - size), random.randint(0, 8 - size)
        padding = (left, 8 - size - left, top, 8 - size - top)
        padded = F.pad(F.interpolate(x, size=(size, size), mode="nearest"), padding)
        return 60 * (padded * torch.linspace(0.2, 1.8, 8).view(1, 1, 8, 1)).mean((2, 3))


def test_one_seed_gives_one_answer_whatever_random_is_used(colours: Dataset) -> None:
    answers = []
    for seed in (3, 4):
        random.seed(seed)  # the caller's state has no part in it
        state = random.getstate()
        frame = robustfdd.evaluate(
            PadsAtRandom(), colours, ["bim"], [Threat("linf", 0.04)], engines=ENGINES, eot_samples=4, test_images=12
        )
        assert random.getstate() == state
        answers.append([frame[name].map(tuple).tolist() for name in ("prediction", "distance", "repeated_accuracy")])
    assert answers[0] == answers[1]


def test_pythons_random_is_swapped_in_and_out() -> None:
    before = get_state().python
    randomness = GlobalRandomness(5)
    assert random.getstate() == before
    with randomness:
        first = random.random()
    with randomness:
        second = random.random()
    expected = random.Random(5)
    assert [first, second] == [expected.random(), expected.random()]
    assert random.getstate() == before


# --- gradients that are no numbers -----------------------------------------------------------------------------------


class RootOfZero(nn.Module):
    """Adds the distance of an image from itself, by a plain square root: 0, with a gradient of 0 times infinity.

    Args:
        where: whether an image is one of those; boolean of shape (N,) from images.
    """

    def __init__(self, where: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        at_itself = ((x - x.detach()) ** 2).flatten(1).sum(1)
        hurt = self.where(x.detach())
        root = torch.where(hurt, at_itself, torch.ones_like(at_itself)).sqrt() - (~hurt).float()
        return 20 * x.mean((2, 3)) + root[:, None]


def _image(dataset: Dataset, position: int) -> Callable[[Tensor], Tensor]:
    """Picks out what lies nearer to an image of a data set than to all others."""
    images = (dataset.test.images.float() / 255).flatten(1)
    return lambda x: torch.cdist(x.flatten(1), images).argmin(1) == position


@pytest.mark.parametrize("attack", ["fgsm", "bim", "pgd", "deepfool", "ddn", "apgd-ce"])
def test_a_gradient_that_is_nan_is_no_robustness(attack: str, colours: Dataset) -> None:
    model = RootOfZero(lambda x: torch.ones(len(x), dtype=torch.bool))
    norm = "l2" if attack == "ddn" else "linf"
    offered = [name for name in ENGINES if norm in load_attack(attack).norms(name)]
    assert offered
    for engine in offered:
        threats = [Threat(norm, 0.05 if norm == "linf" else 0.5)]
        with pytest.raises((UndefinedGradientError, EngineError)) as caught:
            robustfdd.evaluate(model, colours, [attack], threats, engines=[engine], test_images=9)
        assert "NaN or infinite" in str(caught.value)
        assert "9 of 9 images" in str(caught.value)


@pytest.mark.parametrize("protocol", ["paper", "strong"])
@pytest.mark.parametrize("engine", ENGINES)
def test_one_image_without_a_gradient_does_not_cost_the_others(engine: str, protocol: str, colours: Dataset) -> None:
    where = _image(colours, 7)
    assert int(where(colours.test.images.float() / 255).sum()) == 1
    frame = robustfdd.evaluate(
        RootOfZero(where), colours, ["bim"], [NONE, ALL], engines=[engine], protocol=protocol, batch_size=16
    )
    # The image that cannot be attacked counts as neither robust nor broken; all others are what they are.
    assert frame["n_undefined"].tolist() == [0, 1, 1]
    assert frame["robust_accuracy"].tolist() == [1.0, 32 / 33, 0.0]
    assert frame["survival_rate"].tolist() == [1.0, 32 / 33, 0.0]
    assert frame["n_broken"].tolist() == [0, 0, 32]
    for row in frame["outcome"].iloc[1:]:
        assert [i for i, outcome in enumerate(row) if outcome == robustfdd.Outcome.UNDEFINED] == [7]


def test_an_image_that_is_broken_all_the_same_is_broken(colours: Dataset) -> None:
    """Two pixels whose gradient is NaN do not keep the others from being moved."""

    class TwoPixels(Means):
        def forward(self, x: Tensor) -> Tensor:
            corner = x[:, :, 0, 0]
            return super().forward(x) + 0 * ((corner - corner.detach()) ** 2).sum(1).sqrt()[:, None]

    for engine in ENGINES:
        frame = robustfdd.evaluate(TwoPixels(), colours, ["bim"], [Threat("linf", 0.3)], engines=[engine])
        assert frame["n_undefined"].tolist() == [0, 0]
        assert frame["robust_accuracy"].tolist() == [1.0, 0.0]


def test_the_audit_names_gradients_that_are_no_numbers(colours: Dataset) -> None:
    every = robustfdd.audit(RootOfZero(lambda x: torch.ones(len(x), dtype=torch.bool)), colours, NONE)
    status = {i.name: i.status for i in every.indicators}
    assert status["undefined-gradient"] == "alarm"
    assert every.verdict == "not believable"
    one = robustfdd.audit(RootOfZero(_image(colours, 7)), colours, NONE)
    found = next(i for i in one.indicators if i.name == "undefined-gradient")
    assert (found.status, found.images) == ("warning", (7,))
    none = robustfdd.audit(Means(), colours, NONE)
    assert {i.name: i.status for i in none.indicators}["undefined-gradient"] == "passed"


def test_attack_warns_of_an_image_that_it_could_not_move(colours: Dataset) -> None:
    x, y = colours.test.images.float() / 255, colours.test.labels
    with pytest.warns(UserWarning, match=r"gradient of image \[7\] is NaN"):
        x_adv = robustfdd.attack(RootOfZero(_image(colours, 7)), x, y, "bim", NONE)
    assert torch.equal(x_adv[7], x[7])
