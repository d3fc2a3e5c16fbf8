"""The copy of a classifier that attacks ask: the same function, the model untouched, only what is exact folded."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from robustfdd import build_model
from robustfdd.ascent import cross_entropy, input_gradient
from robustfdd.classifier import frozen, weights_digest
from robustfdd.errors import ConfigurationError
from robustfdd.preparation import prepare
from robustfdd.randomness import GlobalRandomness


def images(n: int = 4, channels: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, channels, 12, 12, generator=torch.Generator().manual_seed(1), dtype=dtype)


def moved(model: nn.Module) -> nn.Module:
    """The model with batch norms that do something: statistics, scales and shifts of their own."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            with torch.no_grad():
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.3, 3, generator=generator)
                module.weight.normal_(generator=generator)
                module.bias.normal_(generator=generator)
    return model.eval()


def n_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


class Plain(nn.Module):
    """A convolution, its batch norm and a linear layer; subclasses change how they are used."""

    def __init__(self) -> None:
        super().__init__()
        with GlobalRandomness(0):
            self.conv = nn.Conv2d(1, 3, 3, stride=2, padding=1, groups=1, bias=True)
            self.norm = nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 4)
        moved(self)

    def maps(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x))
        return normed

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.maps(x).relu().mean((2, 3)))
        return logits


class ConvUsedTwice(Plain):
    def maps(self, x: Tensor) -> Tensor:
        before = self.conv(x)
        normed: Tensor = self.norm(before) + before
        return normed


class ConvCalledTwice(Plain):
    def maps(self, x: Tensor) -> Tensor:
        return super().maps(x) + self.conv(x.flip(3))


class NormCalledTwice(Plain):
    def maps(self, x: Tensor) -> Tensor:
        return super().maps(x) + self.norm(self.conv(x).flip(3) * 2)


class NormAfterRelu(Plain):
    def maps(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x).relu())
        return normed


class DependsOnTheImage(Plain):
    def maps(self, x: Tensor) -> Tensor:
        maps = super().maps(x)
        return maps * 2 if bool(x.detach().mean() > 0) else maps


class LooksAtItsNorm(Plain):
    def maps(self, x: Tensor) -> Tensor:
        return super().maps(x) * self.norm.weight.view(1, -1, 1, 1)


class LiesAboutItsNorm(Plain):
    """Runs, but is another function, without its batch norm."""

    def maps(self, x: Tensor) -> Tensor:
        return super().maps(x) * (2 if isinstance(self.norm, nn.BatchNorm2d) else 3)


class OfTheBatch(Plain):
    """Its batch norm has no statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, track_running_stats=False).eval()


def hooked(model: Plain) -> Plain:
    model.conv.register_forward_hook(lambda module, given, got: got * 2)
    return model


def parametrized(model: Plain) -> Plain:
    with GlobalRandomness(0):
        parametrizations.spectral_norm(model.conv)
    return model.eval()


def held(model: Plain) -> Plain:
    model.lock = threading.Lock()  # type: ignore[assignment]
    return model


def same(model: nn.Module, quick: nn.Module, x: Tensor, tolerance: float) -> None:
    """Logits and input gradients agree, relative to their largest value."""
    y = torch.arange(len(x)) % 4
    with frozen(model), frozen(quick):
        for given, got in zip(*(input_gradient(m, x, y, cross_entropy) for m in (model, quick)), strict=True):
            assert float((given - got).abs().max()) <= tolerance * float(given.abs().max())


@pytest.mark.parametrize("placement", ["last", "stages"])
def test_every_batch_norm_of_the_resnet_is_folded_exactly(placement: str, quarters: object) -> None:
    model = moved(build_model(quarters, "spatial", width=2, placement=placement))
    # In double precision throughout, so that any difference beyond rounding is seen.
    double = copy.deepcopy(model).double()
    x = torch.rand(3, *model.config.image_shape, generator=torch.Generator().manual_seed(0))
    quick = prepare(double, x.double())
    assert n_norms(double) == 20
    assert n_norms(quick) == 0
    same(double, quick, x.double(), 1e-11)
    single = prepare(model, x)
    assert n_norms(single) == 0
    same(model, single, x, 2e-5)


def test_the_model_is_left_as_it_was() -> None:
    model = Plain().train()
    model.head.weight.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    digest, random = weights_digest(model), torch.get_rng_state()
    quick = prepare(model, images()).model
    assert quick is not model
    assert weights_digest(model) == digest
    assert model.training
    assert model.norm.training
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False, True]
    assert bool((model.conv.weight.grad == 1).all())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(p.requires_grad for p in quick.parameters())
    model.conv.weight.data.zero_()  # no memory is shared
    assert float(quick.conv.weight.abs().max()) > 0


@pytest.mark.parametrize(
    ("make", "n_left"),
    [
        (Plain, 0),
        (ConvUsedTwice, 1),
        (ConvCalledTwice, 1),
        (NormCalledTwice, 1),
        (NormAfterRelu, 1),
        (DependsOnTheImage, 1),
        (LooksAtItsNorm, 1),
        (LiesAboutItsNorm, 1),
        (lambda: hooked(Plain()), 1),
        (lambda: parametrized(Plain()), 1),
        (lambda: nn.Sequential(Plain(), nn.Identity()), 0),
    ],
)
def test_only_what_is_exact_is_folded(make: Callable[[], nn.Module], n_left: int) -> None:
    model, x = make(), images()
    quick = prepare(model, x)
    assert quick.model is not model
    assert n_norms(model) == 1
    assert n_norms(quick) == n_left
    same(model, quick, x, 1e-5)


def test_a_norm_without_statistics_stays() -> None:
    model = OfTheBatch()
    assert n_norms(prepare(model, images())) == 1


def test_what_cannot_be_copied_is_used_as_it_is() -> None:
    model = held(Plain())
    assert prepare(model, images()).model is model


def test_a_copy_that_is_another_function_is_not_used() -> None:
    class Counts(Plain):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counts.calls += 1
            return super().forward(x) * Counts.calls

    model = Counts()
    assert prepare(model, images()).model is model


def test_gradients_switched_off_do_not_matter() -> None:
    model, x = Plain(), images()
    with torch.inference_mode():
        quick = prepare(model, x)
    same(model, quick, x, 1e-5)


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"--compile: torch.compile needs a C\+\+ compiler"):
        prepare(Plain(), images(), compile=True)
