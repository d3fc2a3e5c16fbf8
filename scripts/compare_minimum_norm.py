"""Hold the minimum-norm attacks to one another on trained networks.

    python scripts/compare_minimum_norm.py

Trains small convolutional networks with batch norm on two data sets, on clean and on adversarial images, finds the
distance of every image to its nearest adversarial example with each attack, norm and engine as their files have them,
and prints the medians as a Markdown table, each with its ratio to the smallest of its norm. The data sets are the
Fashion-MNIST subset of the package and colour gratings that are generated here. HopSkipJump, which takes longest, is
compared on the first few images only.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustfdd import Recipe, load_dataset
from robustfdd.catalogue import attack_names, load_attack
from robustfdd.classifier import predict
from robustfdd.datasets.base import Dataset, Split, pixel_statistics, to_pixels
from robustfdd.measure import attack, whole_box
from robustfdd.models import Normalize
from robustfdd.specs import ENGINES, AdversarialTraining
from robustfdd.threat import Threat
from robustfdd.training import fit

#: Attacks that are compared on this many images only.
FEW = {"hopskipjump": 4}


def gratings(n_train: int = 2000, n_test: int = 200, size: int = 16) -> Dataset:
    """Ten classes of coloured gratings: five directions in two colours, of any phase, with noise."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size

    def split(n: int) -> Split:
        labels = np.arange(n) % 10
        images = np.empty((n, 3, size, size))
        for image, label in zip(images, labels, strict=True):
            angle, phase = math.pi * (label % 5) / 5, rng.uniform(0, 2 * math.pi)
            wave = np.sin(2 * math.pi * 3 * (rows * math.cos(angle) + columns * math.sin(angle)) + phase)
            colour = np.array([0.2, 0.1, 0.02] if label < 5 else [0.02, 0.1, 0.2])
            image[:] = 0.45 + colour[:, None, None] * wave + rng.normal(0, 0.06, image.shape)
        pixels = (images.clip(0, 1) * 255).round().astype(np.uint8)
        return Split(torch.from_numpy(pixels), torch.from_numpy(labels))

    training, test = split(n_train), split(n_test)
    mean, std = pixel_statistics(training.images)
    classes = tuple(f"grating {k}" for k in range(10))
    return Dataset("gratings", "Colour gratings", classes, training, test, mean, std, "0" * 64, "generated")


@dataclass(frozen=True)
class Network:
    """A trained network and images that it classifies correctly.

    Attributes:
        data: title of the data set.
        training: ``"plain"`` or ``"adversarial"``.
        model: the network.
        x: images, shape (N, C, H, W).
        y: their labels.
    """

    data: str
    training: str
    model: nn.Module
    x: Tensor
    y: Tensor


def network_for(data: Dataset) -> nn.Module:
    """Three convolutions and a linear layer; small, so that all attacks together take minutes."""
    c, h, w = data.image_shape
    layers = [nn.Conv2d(c, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1)]
    body = [part for layer in layers for part in (layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())]
    size = 32 * math.ceil(h / 4) * math.ceil(w / 4)
    return nn.Sequential(Normalize(data.mean, data.std), *body, nn.Flatten(), nn.Linear(size, data.n_classes))


def networks(images: int) -> Iterator[Network]:
    """Train the networks; the first of the correctly classified test images go with each."""
    for data in (load_dataset("fashion-mnist-mini"), gratings()):
        for training in ("plain", "adversarial"):
            how = AdversarialTraining(attack="pgd", norm="l2", eps=0.75, steps=3, relative_step=0.5)
            recipe = Recipe(epochs=4, learning_rate=0.05, adversarial=how if training == "adversarial" else None)
            torch.manual_seed(0)
            model = network_for(data)
            fit(model, Split(data.train.images[:4000], data.train.labels[:4000]), recipe, seed=0)
            right = (predict(model, data.test.images) == data.test.labels).nonzero().squeeze(1)[:images]
            yield Network(data.title, training, model, to_pixels(data.test.images[right]), data.test.labels[right])


def distances(network: Network, name: str, norm: str, engine: str) -> Tensor:
    """Of each image to the adversarial example that the attack finds for it; infinite where it finds none."""
    n = FEW.get(name, len(network.y))
    x, y = network.x[:n], network.y[:n]
    x_adv = attack(network.model, x, y, name, whole_box(norm, tuple(x.shape[1:])), engine=engine)
    found = Threat(norm, 0.0).distance(x, x_adv)
    return torch.where(predict(network.model, x_adv) != y, found, math.inf)


def medians(network: Network) -> dict[tuple[str, str, str], tuple[float, float]]:
    """For each attack, norm and engine: the median distance, and its ratio to the smallest on the same images."""
    found = {
        (name, norm, engine): distances(network, name, norm, engine)
        for name in attack_names()
        if load_attack(name).kind == "minimum-norm"
        for engine in ENGINES
        for norm in load_attack(name).norms(engine)
    }
    result = {}
    for case, mine in found.items():
        n = len(mine)
        others = [float(d[:n].quantile(0.5)) for other, d in found.items() if other[1] == case[1] and len(d) >= n]
        result[case] = (float(mine.quantile(0.5)), float(mine.quantile(0.5)) / min(others))
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    arguments = parser.parse_args()
    columns = []
    for network in networks(arguments.images):
        columns.append((f"{network.data}, {network.training}", medians(network)))
        print(columns[-1], flush=True)
    print("| attack | norm | engine | " + " | ".join(title for title, _ in columns) + " |")
    print("|:--|:--|:--|" + "--:|" * len(columns))
    for name, norm, engine in sorted(columns[0][1], key=lambda case: (case[1], case[0], case[2])):
        cells = [f"{found[name, norm, engine][0]:.3f} ({found[name, norm, engine][1]:.2f})" for _, found in columns]
        print(f"| `{name}` | {norm} | {engine} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
