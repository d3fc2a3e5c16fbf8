"""Square against plain loops over its algorithms, on images of one and of three channels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import LinearModel
from torch import Tensor, nn

from robustfdd.catalogue import load_attack
from robustfdd.measure import attack
from robustfdd.square import square
from robustfdd.threat import Threat

SHAPES = [(1, 9, 9), (3, 9, 9), (3, 6, 15), (2, 20, 11)]


class Linear(nn.Module):
    """Three classes, far enough apart that no search ends early."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(math.prod(shape), 3, generator=generator))
        self.bias = nn.Parameter(torch.tensor([1e4, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight + self.bias


def margin(model: Linear, x: np.ndarray) -> float:
    """Of the best wrong class over the first."""
    weight = model.weight.detach().double().numpy()
    logits = x.reshape(-1) @ weight + model.bias.detach().double().numpy()
    return float(max(logits[1], logits[2]) - logits[0])


def share_of(query: int, queries: int) -> float:
    """Table of the source: the share of pixels is halved at these of 10,000 queries, beginning with 0.8."""
    halvings = [at for at in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000) if query / queries * 10_000 > at]
    return 0.8 * 0.5 ** len(halvings)


def pyramid(rows: int, columns: int) -> np.ndarray:
    """Algorithm 3: rectangles around the middle, each one pixel larger on every side and weighing less."""
    found = np.zeros((rows, columns))
    for k in range(max(rows // 2 + 1, columns // 2 + 1)):
        for r in range(rows // 2 - k, rows // 2 + k + 1):
            for s in range(columns // 2 - k, columns // 2 + k + 1):
                if 0 <= r < rows and 0 <= s < columns:
                    found[r, s] += 1 / (k + 1) ** 2
    return found / math.sqrt((found**2).sum())


def bump(side: int) -> np.ndarray:
    """Two pyramids of opposite sign, one above the other, of unit length together."""
    if side == 1:
        return np.ones((1, 1))
    whole = np.concatenate([pyramid(side // 2, side), -pyramid(side - side // 2, side)])
    return whole / math.sqrt((whole**2).sum())


def start_of(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    c, h, w = shape
    side = max(min(h, w) // 5, 1)
    delta = np.zeros(shape)
    for top in range((h - 5 * side) // 2, h - side + 1, side):
        for left in range((w - 5 * side) // 2, w - side + 1, side):
            shown = bump(side) if rng.random() < 0.5 else bump(side).T
            for channel, sign in enumerate(2 * rng.integers(0, 2, (c, 1, 1)) - 1):
                delta[channel, top : top + side, left : left + side] = sign * shown
    return delta


def updated(rng: np.random.Generator, delta: np.ndarray, share: float, eps: float) -> np.ndarray:
    """Algorithm 3 of the source with algorithm 1's window: channel by channel, each with its own length."""
    c, h, w = delta.shape
    side = max(round(math.sqrt(share * h * w)), 3)
    side += 1 - side % 2
    while side > min(h, w):
        side -= 2
    top, left = int(rng.integers(0, h - side + 1)), int(rng.integers(0, w - side + 1))
    top2, left2 = int(rng.integers(0, h - side + 1)), int(rng.integers(0, w - side + 1))
    shown = bump(side) if rng.random() < 0.5 else bump(side).T
    signs = (2 * rng.integers(0, 2, (c, 1, 1)) - 1).reshape(-1)
    new = delta.copy()
    unused = max(eps**2 - (delta**2).sum(), 0)
    for channel in range(c):
        in_windows = 0.0
        for row in range(h):
            for column in range(w):
                in_one = top <= row < top + side and left <= column < left + side
                in_two = top2 <= row < top2 + side and left2 <= column < left2 + side
                if in_one or in_two:
                    in_windows += delta[channel, row, column] ** 2
        old = delta[channel, top : top + side, left : left + side]
        fresh = signs[channel] * shown + old / max(math.sqrt((old**2).sum()), 1e-10)
        fresh *= math.sqrt(in_windows + unused / c) / math.sqrt((fresh**2).sum())
        new[channel, top2 : top2 + side, left2 : left2 + side] = 0
        new[channel, top : top + side, left : left + side] = fresh
    return new


def reference(
    model: Linear, x: np.ndarray, eps: float, queries: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """The whole search in L2 on one image of class 0, and how many proposals it took."""

    def put(delta: np.ndarray) -> np.ndarray:
        return np.clip(x + delta * eps / math.sqrt((delta**2).sum()), 0, 1)

    best = put(start_of(rng, x.shape))
    taken = 0
    for query in range(queries):
        candidate = put(updated(rng, best - x, share_of(query, queries), eps))
        if margin(model, candidate) > margin(model, best):
            best, taken = candidate, taken + 1
    return best, taken


@pytest.mark.parametrize("shape", SHAPES)
def test_square_in_l2_is_its_algorithm_on_every_channel(shape: tuple[int, int, int]) -> None:
    model, eps, queries = Linear(shape), 0.8, 60
    x = 0.1 + 0.8 * torch.rand(2, *shape, generator=torch.Generator().manual_seed(2))
    y = torch.zeros(2, dtype=torch.int64)
    streams = [np.random.default_rng([5, i]) for i in range(2)]
    found, *_ = square(model, x, y, Threat("l2", eps), queries=queries, p_init=0.8, streams=streams)
    for i in range(2):
        rng = np.random.default_rng([5, i])
        expected, taken = reference(model, x[i].double().numpy(), eps, queries, rng)
        assert taken > 5
        assert found[i].numpy() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1, 1), (3, 1, 8), (3, 2, 2), (3, 4, 4)])
def test_square_in_l2_uses_the_whole_budget(shape: tuple[int, int, int]) -> None:
    """In the middle of the box nothing is cut off."""
    model, threat = Linear(shape), Threat("l2", 0.2)
    x, y = torch.full((3, *shape), 0.5), torch.zeros(3, dtype=torch.int64)
    spec = load_attack("square").with_parameters({"steps": 30})
    x_adv = attack(model, x, y, spec, threat, engine="native", seed=1)
    assert threat.distance(x, x_adv).numpy() == pytest.approx(np.full(3, 0.2), rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 1, 3)])
def test_square_in_l2_turns_single_pixels_round(shape: tuple[int, int, int]) -> None:
    """In windows of one pixel what is drawn is half of the time the opposite of what is there."""
    model = LinearModel(torch.ones(1, *shape), -0.5 * math.prod(shape))
    x, y = torch.full((20, *shape), 0.45), torch.zeros(20, dtype=torch.int64)
    spec = load_attack("square").with_parameters({"steps": 200})
    x_adv = attack(model, x, y, spec, Threat("l2", 0.2), engine="native", seed=1)
    assert model(x_adv).argmax(1).tolist() == [1] * 20
