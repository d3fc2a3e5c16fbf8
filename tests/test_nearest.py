"""Minimum-norm attacks, as their files have them, held to one another on trained networks of two data sets."""

from __future__ import annotations

import compare_minimum_norm
import pytest
import torch
from conftest import ROOT
from torch import nn

from robustfdd.catalogue import load_attack
from robustfdd.measure import attack, whole_box
from robustfdd.threat import Threat

#: What is known to stop farther away, of which its file says so.
FARTHER = {"deepfool", "hopskipjump"}


@pytest.mark.slow
def test_no_attack_stops_a_tenth_farther_than_the_best() -> None:
    for network in compare_minimum_norm.networks(24):
        for (name, norm, engine), (median, ratio) in compare_minimum_norm.medians(network).items():
            where = (network.data, network.training, name, norm, engine, median, ratio)
            assert ratio <= 1.1 or name in FARTHER, where


def test_files_say_which_attacks_stop_farther_away() -> None:
    for name in FARTHER:
        text = (ROOT / "attacks" / f"{name}.toml").read_text(encoding="utf-8")
        assert "stops farther away" in text.replace("\n# ", " ")


class Bent(nn.Module):
    """Two classes with a smooth boundary that is bent, on images many of whose pixels are black or white."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Linear(36, 12)
        self.head = nn.Linear(12, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x.flatten(1) - 0.5)))


def test_carlini_wagner_leaves_black_and_white_pixels() -> None:
    """In the space where it searches, a black pixel is far from every other: few steps at a small rate lead nowhere."""
    model = Bent()
    x = torch.bernoulli(torch.full((12, 1, 6, 6), 0.3), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    median = {}
    for name in ("cw", "ddn"):
        x_adv = attack(model, x, y, load_attack(name), whole_box("l2", (1, 6, 6)))
        assert bool((model(x_adv).argmax(1) != y).all())
        median[name] = float(Threat("l2", 0.0).distance(x, x_adv).quantile(0.5))
    assert median["cw"] <= 1.05 * median["ddn"]
