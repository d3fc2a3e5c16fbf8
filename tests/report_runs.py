"""Small run directories with chosen outcomes, for the tests of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustfdd.records import FORMAT, Cell, Failure, Outcome, write_analysis, write_cells, write_failure, write_json

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


#: The tests of an audit: number, name, title, unit, threshold.
INDICATORS = (
    (1, "random-forward", "Random forward pass", "", "two passes differ"),
    (3, "zero-gradients", "Input gradients of zero", "%", "any"),
    (5, "unbounded", "Unbounded budget", "%", "above chance"),
    (9, "loss-at-end", "Loss still rising at the end", "", "> 0.05"),
    (15, "logit-scale", "Size of the logits", "points", "> 1 point"),
)


@dataclass
class FakeAudit:
    """What the audit of one model found; ``failed`` are names of :data:`INDICATORS`."""

    verdict: str
    audited: float = 0.5
    worst: float = 0.25
    failed: Sequence[str] = ()
    pictures: bool = True
    norm: str = "linf"
    eps_pixel: float = 0.25
    attack: str = "PGD on the cross-entropy, 10 steps of 0.1 ε, random start, last iterate"
    n_images: int = 1000
    clean: float = 0.9
    eot_samples: int = 0

    def write(self, path: Path, method: str, seed: int) -> None:
        """Write the three tables of an audit."""
        tables = {"audit_verdict": self.verdict_table(), "audit_indicators": self.indicator_table()}
        if self.pictures:
            tables["audit_pictures"] = self.picture_table()
        for name, frame in tables.items():
            write_analysis(path, name, frame, method=method, seed=seed, key="key")

    def verdict_table(self) -> pd.DataFrame:
        """One row."""
        return pd.DataFrame(
            [
                {
                    "verdict": self.verdict,
                    "norm": self.norm,
                    "eps_pixel": self.eps_pixel,
                    "eps_normalized": self.eps_pixel / SCALE,
                    "attack": self.attack,
                    "n_images": self.n_images,
                    "clean_accuracy": self.clean,
                    "audited_accuracy": self.audited,
                    "worst_accuracy": self.worst,
                    "failed": np.array(self.failed, dtype=str),
                    "gradient_passes": 1000,
                    "forward_passes": 2000,
                    "seconds": 3.5,
                    "eot_samples": self.eot_samples,
                    "version": "0.1",
                }
            ]
        )

    def indicator_table(self) -> pd.DataFrame:
        """One row a test: what fails alarms, the first does not apply, the others pass."""
        rows = []
        for number, name, title, unit, threshold in INDICATORS:
            status = "alarm" if name in self.failed else "not applicable" if number == 1 else "passed"
            rows.append(
                {
                    "number": number,
                    "name": name,
                    "title": title,
                    "status": status,
                    "value": math.nan if number == 1 else number / 8,
                    "unit": unit,
                    "threshold": threshold,
                    "source": "Somebody 2019",
                    "finding": f"What {name} found: {status}.",
                    "images": np.arange(3 if name in self.failed else 0, dtype=np.int32),
                }
            )
        return pd.DataFrame(rows)

    def picture_table(self) -> pd.DataFrame:
        """Every picture that there is."""
        steps, none = np.arange(11.0), np.array([], dtype=np.float64)
        high = 1 if self.verdict == "believable" else 8
        rows = [
            ("loss-along-attack", name, steps, high * (1 - np.exp(-steps / k)), none, "Step", "Loss", "Loss along it")
            for name, k in (("plain", 8.0), ("logits / 10", 2.0))
        ]
        side = np.linspace(-1, 1, 9)
        surface = (high * np.add.outer(side**2, np.sin(3 * side))).ravel()
        rows.append(("loss-surface", "image 3", side, side, surface, "Along the attack", "Random", "Loss around x"))
        for kind, x, title in (
            ("unbounded", [0.0, 0.25, 0.5, 1.0, 4.0], "Up to an unbounded budget"),
            ("steps", [10.0, 20.0, 40.0, 80.0], "More steps"),
            ("logit-scale", [0.01, 0.1, 1.0, 10.0, 100.0], "Logits divided"),
        ):
            y = 100 * self.audited / (1 + np.arange(len(x)))
            rows.append((kind, "robust accuracy", np.array(x), y, none, "x of it", "Robust accuracy (%)", title))
        return pd.DataFrame(rows, columns=["picture", "series", "x", "y", "z", "x_title", "y_title", "title"])


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
    dropouts: Mapping[str, str | None] = field(default_factory=dict)  # by method; its label where left out
    placements: Mapping[str, str] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    eot_samples: Mapping[str, int] = field(default_factory=dict)
    repeated: Callable[[Key], Sequence[float]] = lambda key: ()
    first_unit: int = 0  # number of the first unit, so that two runs have units of different names
    manifest: Mapping[str, Any] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    attack_engines: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of single attacks, instead of engines
    attack_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)  # by attack: the label on whose model it is made
    distances: Callable[[Key], Sequence[float]] | None = None  # of every image, in pixel units; eps where left out
    audits: Mapping[tuple[str, int], FakeAudit] = field(default_factory=dict)  # by method and seed

    def write(self, path: Path) -> Path:
        """Write the run directory and give back its path."""
        units = self._units()
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
        for (method, seed), audit in self.audits.items():
            audit.write(path, method, seed)
        return path

    def _units(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for seed, (method, _), attack, norm in product(self.seeds, self.methods, self.attacks, self.eps):
            source = self.sources.get(attack)
            if source == method or norm not in self._grids(attack):  # what is made on a model is not tried on it
                continue
            for engine in self.attack_engines.get(attack, self.engines):
                unit = {
                    "unit": f"u{self.first_unit + len(found):04d}",
                    "method": method,
                    "seed": seed,
                    "attack": attack,
                    "norm": norm,
                    "engine": engine,
                }
                found.append({**unit, "source": source} if source else unit)
        return found

    def _grids(self, attack: str) -> Mapping[str, Sequence[float]]:
        grids: Mapping[str, Sequence[float]] = self.attack_settings.get(attack, {}).get("eps", self.eps)
        return grids

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
                    "parameters": {"steps": 10, "relative_step": 0.1},
                    **self.attack_settings.get(name, {}),
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
        for step, eps in enumerate([0.0, *self._grids(unit["attack"])[unit["norm"]]]):
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
        distance=np.where(
            outcome == Outcome.BROKEN, eps_pixel if run.distances is None else run.distances(key), 0.0
        ).astype(np.float32),
        eot_samples=run.eot_samples.get(key.method, 0),
        repeated_accuracy=tuple(run.repeated(key)),
    )
