"""A training that was cut off goes on to the same weights, bit for bit; nothing but its own whole snapshot is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustfdd.datasets.base import Dataset
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import TrainingError
from robustfdd.models import ResNet18, build_model, file_sha256
from robustfdd.records import read_json
from robustfdd.resume import snapshot_path
from robustfdd.specs import Recipe
from robustfdd.training import fit, train

RECIPE = Recipe(epochs=4, batch_size=24, learning_rate=0.05, schedule="cosine", augmentation="crop-flip")
#: Images of an epoch of the tests' data set: 160, of which a last batch is 16.
EPOCH = 160


class CutOffError(Exception):
    """Stands for whatever ends a process."""


def cut_after(images: int) -> Callable[[int], None]:
    """A progress callback that ends the training once so many images are seen."""
    seen = 0

    def advance(n: int) -> None:
        nonlocal seen
        seen += n
        if seen > images:
            raise CutOffError

    return advance


@dataclass
class Trainer:
    """Trains the same network again and again."""

    dataset: Dataset
    out: Path
    dropout: str = "fdd-2d"
    recipe: Recipe = RECIPE
    seed: int = 3

    def model(self) -> ResNet18:
        return build_model(self.dataset, self.dropout, width=2, seed=self.seed)

    def train(self, advance: Callable[[int], None] | None = None) -> str:
        """The hash of the whole checkpoint: weights, configuration and provenance."""
        train(self.model(), self.dataset, self.recipe, seed=self.seed, out=self.out, advance=advance)
        return file_sha256(self.out)

    def cut(self, images: int) -> Path:
        """Train until so many images are seen; the snapshot that is left."""
        with pytest.raises(CutOffError):
            self.train(cut_after(images))
        assert not self.out.exists()
        return snapshot_path(self.out)

    @property
    def history(self) -> dict[str, Any]:
        return read_json(self.out.with_suffix(".json"))


@pytest.fixture
def trainer(quarters: Dataset, tmp_path: Path) -> Trainer:
    return Trainer(quarters, tmp_path / "m.safetensors")


def undisturbed(trainer: Trainer) -> tuple[str, list[dict[str, Any]]]:
    """The checkpoint without an interruption, and its epochs but for the time they took."""
    digest = trainer.train()
    epochs = trainer.history["epochs"]
    assert trainer.history["resumed_after"] == []
    trainer.out.unlink()
    return digest, [{**epoch, "seconds": 0} for epoch in epochs]


def assert_same(trainer: Trainer, digest: str, wanted: tuple[str, list[dict[str, Any]]], resumed: list[int]) -> None:
    history = trainer.history
    assert history["resumed_after"] == resumed
    assert [{**epoch, "seconds": 0} for epoch in history["epochs"]] == wanted[1]
    assert digest == wanted[0]
    assert not snapshot_path(trainer.out).exists()


@pytest.mark.parametrize("name", sorted(DROPOUTS))
def test_every_dropout_goes_on_to_the_same_weights(name: str, trainer: Trainer) -> None:
    trainer.dropout = name
    wanted = undisturbed(trainer)
    trainer.cut(2 * EPOCH + 50)
    assert_same(trainer, trainer.train(), wanted, [2])


@pytest.mark.parametrize(
    "change",
    [
        {"adversarial": {"attack": "pgd", "norm": "linf", "eps": 0.1, "steps": 2}},
        {"precision": "bf16"},
        {"schedule": "constant", "nesterov": True, "augmentation": "flip", "batch_size": 53},
        {"momentum": 0.0},
    ],
    ids="-".join,
)
def test_every_kind_of_recipe_goes_on_to_the_same_weights(change: dict[str, Any], trainer: Trainer) -> None:
    trainer.recipe = Recipe.model_validate({**RECIPE.model_dump(), **change})
    wanted = undisturbed(trainer)
    trainer.cut(EPOCH + 60)
    assert_same(trainer, trainer.train(), wanted, [1])


def test_interruptions_add_up(trainer: Trainer) -> None:
    wanted = undisturbed(trainer)
    trainer.cut(EPOCH // 2)  # before there is a snapshot
    trainer.cut(EPOCH + 1)
    trainer.cut(EPOCH + 10)  # what was done before is told first; within the epoch that comes after
    trainer.cut(3 * EPOCH)
    assert_same(trainer, trainer.train(), wanted, [1, 3])  # twice after the same epoch counts once
    history = trainer.history
    assert history["seconds"] >= sum(epoch["seconds"] for epoch in history["epochs"])


def test_progress_counts_what_was_done_before(trainer: Trainer) -> None:
    trainer.cut(2 * EPOCH)
    steps: list[int] = []
    trainer.train(steps.append)
    assert steps[0] == 2 * EPOCH
    assert sum(steps) == RECIPE.epochs * EPOCH


def test_a_snapshot_is_of_the_epoch_before(trainer: Trainer) -> None:
    assert not trainer.cut(EPOCH - 1).exists()
    assert trainer.cut(EPOCH).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": RECIPE.model_copy(update={"learning_rate": 0.04})},
        {"recipe": RECIPE.model_copy(update={"epochs": 5})},
        {"dropout": "spatial"},  # the first weights are the same
        {"seed": 4},
    ],
    ids="-".join,
)
def test_the_snapshot_of_another_training_is_not_used(change: dict[str, Any], trainer: Trainer, tmp_path: Path) -> None:
    left = trainer.cut(2 * EPOCH)
    for name, value in change.items():
        setattr(trainer, name, value)
    trainer.out = tmp_path / "other.safetensors"
    wanted = undisturbed(trainer)
    shutil.copy(left, snapshot_path(trainer.out))
    assert_same(trainer, trainer.train(), wanted, [])


def test_other_first_weights_are_another_training(trainer: Trainer) -> None:
    trainer.cut(2 * EPOCH)
    model = trainer.model()
    with torch.no_grad():
        model.classifier.bias += 1e-3
    train(model, trainer.dataset, trainer.recipe, seed=trainer.seed, out=trainer.out)
    assert trainer.history["resumed_after"] == []


def test_other_code_is_another_training(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.cut(2 * EPOCH)
    monkeypatch.setattr("robustfdd.training.code_version", lambda *_, **__: "other")
    trainer.train()
    assert trainer.history["resumed_after"] == []


def test_a_damaged_snapshot_is_not_used(trainer: Trainer) -> None:
    wanted = undisturbed(trainer)
    whole = trainer.cut(3 * EPOCH).read_bytes()
    rng = np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little") + 8
    flips = [*rng.integers(0, header, 6), *rng.integers(header, len(whole), 6)]
    damaged = [b"", whole[:7], whole[: header // 2], whole[:-1], b"no safetensors"]
    for position in flips:
        damaged.append(bytes([*whole[:position], whole[position] ^ 1 << int(rng.integers(8)), *whole[position + 1 :]]))
    for content in damaged:
        snapshot_path(trainer.out).write_bytes(content)
        digest = trainer.train()
        # A flipped bit in a name that is not looked at would change nothing, and none of these is of that kind.
        assert_same(trainer, digest, wanted, [])


def test_a_training_without_hope_is_not_taken_up(trainer: Trainer) -> None:
    trainer.recipe = Recipe(epochs=6, batch_size=24, learning_rate=1e9)
    with pytest.raises(TrainingError, match="the loss is"):
        trainer.train()
    assert not snapshot_path(trainer.out).exists()


def test_any_classifier_is_taken_up(quarters: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"

    def run(advance: Callable[[int], None] | None = None) -> str:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
        train(model, quarters, RECIPE, seed=0, out=out, advance=advance)
        return file_sha256(out)

    wanted = run()
    with pytest.raises(CutOffError):
        run(cut_after(2 * EPOCH))
    assert run() == wanted
    assert read_json(out.with_suffix(".json"))["resumed_after"] == [2]


def test_a_generator_of_a_layers_own_goes_on(quarters: Dataset, tmp_path: Path) -> None:
    def run(advance: Callable[[int], None] | None = None) -> str:
        model = build_model(quarters, "original", width=2, seed=0)
        model.feature_dropout.generator = torch.Generator().manual_seed(8)
        train(model, quarters, RECIPE, seed=0, out=tmp_path / "m.safetensors", advance=advance)
        return file_sha256(tmp_path / "m.safetensors")

    wanted = run()
    with pytest.raises(CutOffError):
        run(cut_after(2 * EPOCH))
    assert run() == wanted


def test_the_callers_random_state_is_left(trainer: Trainer) -> None:
    trainer.cut(2 * EPOCH)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    trainer.train()
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_file_nothing_is_written(quarters: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(build_model(quarters, "none", width=2), quarters.train, RECIPE, seed=0)
    assert list(tmp_path.iterdir()) == []
