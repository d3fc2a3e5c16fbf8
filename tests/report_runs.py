"""Small run directories with chosen outcomes, for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robustfdd.records import FORMAT, Cell, Failure, Outcome, write_cells, write_failure, write_json

SCALE = 0.25  # exact in binary, so that both units of epsilon are

#: How many images are misclassified, survive and are broken in a cell.
Counts = tuple[int, int, int]


@dataclass(frozen=True)
class Key:
    """One cell: ``step`` 0 is epsilon = 0, 1 the smallest radius."""

    method: str
    seed: int
    attack: str
    norm: str
    engine: str
    step: int


@dataclass
class FakeRun:
    """What a run directory is to hold; ``counts`` gives the outcomes of each cell, None for a gap."""

    counts: Callable[[Key], Counts | Sequence[int] | None]
    name: str = "toy"
    title: str = "Toy study"
    methods: Sequence[tuple[str, str]] = (("none", "No dropout"), ("fdd-2d", "FDD-2D"))
    attacks: Mapping[str, str] = field(default_factory=lambda: {"fgsm": "FGSM"})
    eps: Mapping[str, Sequence[float]] = field(default_factory=lambda: {"linf": [0.5, 1.0]})
    eps_unit: str = "normalized"
    engines: Sequence[str] = ("foolbox",)
    seeds: Sequence[int] = (0,)
    random_attacks: Sequence[str] = ()
    failures: Sequence[Failure] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)  # digests by method; each model its own when left out
    models: bool = True
    epochs: int = 3
    n_test: int = 10_000
    clean_accuracy: Callable[[str, int], float | None] | None = None  # by method and seed; a gap where it is None
    dropouts: Mapping[str, str] = field(default_factory=dict)  # by method; its label where left out
    placements: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    eot_samples: Mapping[str, int] = field(default_factory=dict)
    repeated: Callable[[Key], Sequence[float]] = lambda key: ()
    first_unit: int = 0  # number of the first unit, so that two runs have units of different names
    manifest: Mapping[str, Any] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        """Write the run directory and give back its path."""
        units = []
        for seed in self.seeds:
            for method, _ in self.methods:
                for attack in self.attacks:
                    for norm in self.eps:
                        for engine in self.engines:
                            units.append(
                                {
                                    "unit": f"u{self.first_unit + len(units):04d}",
                                    "method": method,
                                    "seed": seed,
                                    "attack": attack,
                                    "norm": norm,
                                    "engine": engine,
                                }
                            )
        write_json(path / "manifest.json", self._manifest(units))
        for unit in units:
            cells = self._cells(unit)
            if cells:
                write_cells(path / "results" / f"{unit['unit']}.parquet", cells, key="key")
        for failure in self.failures:
            write_failure(path, failure)
        if self.models:
            for i, (method, _) in enumerate(self.methods):
                for seed in self.seeds:
                    write_json(path / "models" / f"m{i:02d}-{seed}.json", self.model(i, method, seed))
        return path

    def model(self, i: int, method: str, seed: int) -> dict[str, Any]:
        """The training record of the method at position i."""
        return {
            "method": method,
            "seed": seed,
            "checkpoint": f"m{i:02d}-{seed}.safetensors",
            "sha256": f"{i}{seed}" * 8,
            "clean_accuracy": (
                0.9 + 0.01 * i + 0.001 * seed if self.clean_accuracy is None else self.clean_accuracy(method, seed)
            ),
            "n_test": self.n_test,
            "seconds": 100.0 + 10 * i + seed,
            "parameters": 11_000_000 + i,
            "weights_sha256": self.weights.get(method, f"{i:02d}{seed:02d}" * 16),
            "epochs": [
                {
                    "epoch": epoch,
                    "loss": (2.0 - 0.1 * i) / (1 + epoch),
                    "train_accuracy": 1 - 0.5 / (1 + epoch + 0.2 * i),
                    "learning_rate": 0.1,
                    "seconds": 1.0,
                }
                for epoch in range(self.epochs)
            ],
        }

    def _manifest(self, units: list[dict[str, Any]]) -> dict[str, Any]:
        study = {
            "name": self.name,
            "title": self.title,
            "description": "A study that never ran.",
            "dataset": "toy",
            "eps_unit": self.eps_unit,
            "normalization": "z-score",
            "protocol": "paper",
            "engines": list(self.engines),
            "seeds": list(self.seeds),
            "test_images": 100,
            "methods": [
                {
                    "label": label,
                    "title": title,
                    "dropout": self.dropouts.get(label, label),
                    "placement": self.placements.get(label, "last"),
                    "options": dict(self.options.get(label, {})),
                    "eot_samples": self.eot_samples.get(label, 0),
                    "variant": self.variants.get(label),
                }
                for label, title in self.methods
            ],
            "model": {"width": 8},
            "recipe": {"epochs": self.epochs, "batch_size": 128, "schedule": {"name": "step", "milestones": [1, 2]}},
            "attacks": [
                {
                    "name": name,
                    "title": title,
                    "deterministic": name not in self.random_attacks,
                    "eps": {norm: list(grid) for norm, grid in self.eps.items()},
                    "parameters": {"steps": 10, "rel_stepsize": 0.1, "random_start": name in self.random_attacks},
                }
                for name, title in self.attacks.items()
            ],
            "open_choices": {"recipe.epochs": "The paper does not say."},
        }
        return {
            "format": FORMAT,
            "study": study | dict(self.study),
            "overrides": [],
            "eps_scale": SCALE,
            "dataset": {
                "name": "toy",
                "title": "Toy images",
                "sha256": "ab" * 32,
                "n_train": 50_000,
                "n_test": self.n_test,
                "image_shape": [1, 28, 28],
                "classes": 10,
                "mean": 0.5,
                "std": SCALE,
            },
            "units": units,
            "command": "robustfdd run toy",
            "created": "2024-05-06T07:08:09+00:00",
            "versions": {"robustfdd": "0.1", "torch": "2.4"},
            "hardware": {"device": "cpu", "cores": 2},
            "git": {"commit": "0123456789abcdef", "dirty": False},
        } | dict(self.manifest)

    def _cells(self, unit: dict[str, Any]) -> list[Cell]:
        cells = []
        for step, eps in enumerate([0.0, *self.eps[unit["norm"]]]):
            key = Key(unit["method"], unit["seed"], unit["attack"], unit["norm"], unit["engine"], step)
            counts = self.counts(key)
            if counts is None:
                continue
            pixel, normalized = (eps, eps / SCALE) if self.eps_unit == "pixel" else (eps * SCALE, eps)
            cells.append(make_cell(key, counts, pixel, normalized, self))
        return cells


def outcomes(counts: Counts | Sequence[int]) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Outcomes from three counts, in that order; or as they are, from a longer sequence."""
    if len(counts) != 3:
        return np.asarray(counts, dtype=np.int8)
    return np.repeat([Outcome.MISCLASSIFIED, Outcome.SURVIVED, Outcome.BROKEN], counts).astype(np.int8)


def make_cell(key: Key, counts: Counts | Sequence[int], eps_pixel: float, eps_normalized: float, run: FakeRun) -> Cell:
    """The record of one cell; label 0 is right, label 1 wrong."""
    outcome = outcomes(counts)
    n = len(outcome)
    clean = (outcome == Outcome.MISCLASSIFIED).astype(np.int32)
    return Cell(
        study=run.name,
        method=key.method,
        dataset="toy",
        seed=key.seed,
        attack=key.attack,
        norm=key.norm,
        engine=key.engine,
        protocol="paper",
        deterministic=key.attack not in run.random_attacks,
        eps_pixel=eps_pixel,
        eps_normalized=eps_normalized,
        attack_seed=0,
        gradient_passes=10 * n,
        seconds=0.5,
        image_index=np.arange(n, dtype=np.int32),
        label=np.zeros(n, dtype=np.int32),
        clean_prediction=clean,
        prediction=(outcome != Outcome.SURVIVED).astype(np.int32),
        outcome=outcome,
        distance=np.where(outcome == Outcome.BROKEN, eps_pixel, 0.0).astype(np.float32),
        eot_samples=run.eot_samples.get(key.method, 0),
        repeated_accuracy=tuple(run.repeated(key)),
    )
