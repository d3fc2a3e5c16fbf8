"""A model is told from another by its weights, its answers and its gradients, and stays the same where none changed."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustfdd.audit import audit_model
from robustfdd.datasets import Dataset
from robustfdd.errors import RunDirectoryError
from robustfdd.evaluation import evaluate
from robustfdd.identity import function_digest
from robustfdd.measure import CleanOutcome
from robustfdd.models import build_model
from robustfdd.records import load_run
from robustfdd.threat import Threat
from robustfdd.units import TestSet


class Net(nn.Module):
    """A network whose logits go through ``head``, which may change the way back and not the way there."""

    def __init__(self, head: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 4))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return logits if self.head is None else self.head(logits)


def backward(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The identity, with another gradient."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return change(gradient)

    return Function.apply


def one_column(gradient: Tensor) -> Tensor:
    return gradient * torch.tensor([1.0, 1.0, 0.999, 1.0])


def of_one_image(gradient: Tensor) -> Tensor:
    return gradient if len(gradient) > 1 else 2 * gradient


def small_ones_lost(gradient: Tensor) -> Tensor:
    return gradient * (gradient.abs() > 1e-3)


@pytest.fixture
def clean(quarters: Dataset) -> CleanOutcome:
    return TestSet.choose(quarters, 40).clean(Net().eval(), 8)


@pytest.mark.parametrize(
    "change",
    [lambda g: 0 * g, lambda g: -g, lambda g: g.clamp(-1e-3, 1e-3), one_column, of_one_image, small_ones_lost],
    ids=["none", "reversed", "clipped", "of one logit", "of a single image", "small ones lost"],
)
def test_another_gradient_is_another_model(change: Callable[[Tensor], Tensor], clean: CleanOutcome) -> None:
    same = backward(lambda gradient: gradient)
    assert function_digest(Net(same), clean) == function_digest(Net(), clean)
    assert function_digest(Net(backward(change)), clean) != function_digest(Net(), clean)


def test_a_hook_on_the_way_back_is_another_model(clean: CleanOutcome) -> None:
    net = Net()
    before = function_digest(net, clean)
    handle = net.body[2].register_full_backward_hook(lambda module, inputs, outputs: (0.5 * inputs[0],))
    assert function_digest(net, clean) != before
    handle.remove()
    assert function_digest(net, clean) == before


class OffTheData(nn.Module):
    """Answers otherwise where a pixel is brighter than any of the images has it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (1 + (x.amax((1, 2, 3)) > 0.99)[:, None])


class InGradientMode(OffTheData):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * (2 if torch.is_grad_enabled() else 1)


@pytest.mark.parametrize("wrapper", [OffTheData, InGradientMode])
def test_another_answer_where_attacks_go_is_another_model(wrapper: type[OffTheData], clean: CleanOutcome) -> None:
    class Plain(OffTheData):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    assert function_digest(wrapper(Net()), clean) != function_digest(Plain(Net()), clean)


def test_the_same_model_is_the_same(clean: CleanOutcome, quarters: Dataset) -> None:
    net = Net()
    digest = function_digest(net, clean)
    torch.manual_seed(5)
    assert function_digest(copy.deepcopy(net), clean) == function_digest(net, clean) == digest
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    with torch.no_grad():
        assert function_digest(net, clean) == digest
    with torch.inference_mode():
        assert function_digest(net, clean) == digest
    # A model that is random in evaluation is asked under a seed, and leaves the caller's random numbers alone.
    noisy = build_model(quarters, "original", width=1, active="always")
    state = torch.get_rng_state()
    assert function_digest(noisy, clean) == function_digest(copy.deepcopy(noisy), clean)
    assert torch.equal(torch.get_rng_state(), state)


def test_rounding_that_differs_from_call_to_call_makes_no_other_model(clean: CleanOutcome) -> None:
    """As on a GPU, where some operations add up in any order; a change beyond it is still seen."""

    def unsteady(gradient: Tensor) -> Tensor:
        noise.append(torch.randn(gradient.shape, generator=generator))
        return gradient * (1 + 1e-7 * noise[-1])

    noise: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)
    net = Net(backward(unsteady))
    assert len({function_digest(net, clean) for _ in range(5)}) == 1
    assert not torch.equal(noise[0], noise[-1])
    assert function_digest(Net(backward(lambda g: -unsteady(g))), clean) != function_digest(net, clean)


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1)[:, :4]


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("not here")
        return x.flatten(1)[:, :4]


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.5))


@pytest.mark.parametrize(
    "model",
    [Detached(), Raises(), InPlace(), Net(backward(lambda g: g * float("nan"))), Net(backward(lambda g: g / 0))],
    ids=["no gradient", "raises", "in place", "NaN", "infinite"],
)
def test_what_is_wrong_with_a_model_is_no_error_here(model: nn.Module, clean: CleanOutcome) -> None:
    images = clean.images.clone()
    assert function_digest(model, clean) == function_digest(model, clean)
    assert torch.equal(images, clean.images)
    assert function_digest(model, clean) != function_digest(Net(), clean)


def test_few_images_are_enough(quarters: Dataset) -> None:
    for n in (1, 2, 33):
        few = TestSet.choose(quarters, n).clean(Net().eval(), 8)
        assert function_digest(Net(), few) != function_digest(Net(backward(torch.zeros_like)), few)


THREAT = Threat("linf", 0.1)
#: The module, which a function of its name hides.
WRITE = sys.modules["robustfdd.audit.write"]


def attacked(model: nn.Module, data: Dataset, out: Path, source: nn.Module | None = None) -> None:
    attacks = ["fgsm"] if source is None else ["fgsm", "transfer"]
    evaluate(model, data, attacks, [THREAT], out=out, test_images=16, source=source)


def audited(model: nn.Module, data: Dataset, out: Path) -> None:
    audit_model(model, data, THREAT, out=out, test_images=4)


@pytest.mark.parametrize("work", [attacked, audited])
def test_no_result_is_given_back_for_another_gradient(
    work: Callable[[nn.Module, Dataset, Path], None],
    quarters: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WRITE, "audit", lambda *_, **__: Found())
    model = Net()
    work(model, quarters, tmp_path / "run")
    work(model, quarters, tmp_path / "run")
    model.head = backward(torch.zeros_like)
    with pytest.raises(RunDirectoryError, match=r"different: study\.model\.sha256"):
        work(model, quarters, tmp_path / "run")


class Found:
    """In the place of an audit."""

    def frames(self, eps_scale: float) -> dict[str, Any]:
        return {}


def test_what_is_crafted_on_another_gradient_is_crafted_anew(quarters: Dataset, tmp_path: Path) -> None:
    run, source = tmp_path / "run", Net()
    attacked(Net(), quarters, run, source)
    before = {p.name: p.stat().st_mtime_ns for p in (run / "results").iterdir()}
    source.head = backward(torch.zeros_like)
    attacked(Net(), quarters, run, source)
    changed = {p.name for p in (run / "results").iterdir() if p.stat().st_mtime_ns != before[p.name]}
    assert changed == {"model--transfer--linf--foolbox.parquet"}
    assert len(load_run(run).cells) == 4


def test_an_audit_against_a_sibling_of_another_gradient_is_made_anew(
    quarters: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(WRITE, "audit", lambda *_, **__: Found())
    monkeypatch.setattr(WRITE, "write_audit", lambda *_, key, **__: made.append(key))
    for head in (None, None, backward(torch.zeros_like)):
        audit_model(Net(), quarters, THREAT, out=tmp_path / "run", test_images=4, sibling=Net(head))
    assert made[0] == made[1] != made[2]
