from __future__ import annotations

import math

import pytest
import torch

from robustfdd.errors import ConfigurationError
from robustfdd.threat import Threat, in_box


def test_distances_by_hand() -> None:
    x = torch.zeros(2, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0] = torch.tensor([[0.3, -0.4], [0.0, 0.0]])
    assert Threat("linf", 1).distance(x, x_adv).tolist() == pytest.approx([0.4, 0])
    assert Threat("l2", 1).distance(x, x_adv).tolist() == pytest.approx([0.5, 0])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("stretch", "inside"), [(0.999, True), (1.0, True), (1.001, False)])
def test_within_holds_at_the_radius_and_fails_beyond(norm: str, stretch: float, inside: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 8, 8, generator=generator)
    direction = torch.randn(x.shape, generator=generator)
    eps = 0.25
    length = direction.flatten(1).abs().amax(1) if norm == "linf" else direction.flatten(1).norm(dim=1)
    x_adv = x + direction * (eps * stretch / length).view(-1, 1, 1, 1)
    assert bool((Threat(norm, eps).within(x, x_adv) == inside).all())


def test_nan_is_outside_of_everything() -> None:
    x = torch.rand(1, 1, 2, 2)
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] = math.nan
    assert not Threat("linf", 1).within(x, x_adv).item()
    assert not Threat("l2", 9).within(x, x_adv).item()
    assert not in_box(x_adv).item()


def test_box_forgives_a_rounding_and_no_more() -> None:
    x = torch.tensor([1 + 1e-7, 1 + 1e-5, -1e-7, -1e-5]).view(4, 1, 1, 1)
    assert in_box(x).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("norm", "eps"), [("l1", 0.1), ("linf", -0.1), ("linf", 8.0), ("l2", math.inf), ("l2", math.nan), ("l2", 1e30)]
)
def test_senseless_threats_are_refused(norm: str, eps: float) -> None:
    with pytest.raises(ConfigurationError):
        Threat(norm, eps)
