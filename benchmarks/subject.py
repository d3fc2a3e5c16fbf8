"""The network under attack and the images, in a form that every worker process gets alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from robustfdd.classifier import weights_digest
from robustfdd.datasets import Dataset
from robustfdd.datasets.base import test_indices
from robustfdd.measure import clean_outcome
from robustfdd.models import build_model, check_same_data, load_model
from robustfdd.specs import Recipe
from robustfdd.training import train

SEED = 0


def recipe(epochs: int) -> Recipe:
    """How the network under attack is trained where none is given."""
    return Recipe(epochs=epochs, batch_size=64, learning_rate=0.05, nesterov=True, augmentation="flip")


@dataclass(frozen=True)
class Subject:
    """What is attacked.

    Attributes:
        checkpoint: of the network; :func:`robustfdd.models.load_model` reads it.
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        correct: which of them the network classifies correctly, and are therefore attacked; shape (N,).
        n_classes: number of logits.
        batch_size: images attacked at once, by every contender.
        device: of torch.
        about: what the record of a run says of the network and the images.
    """

    checkpoint: Path
    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]
    n_classes: int
    batch_size: int
    device: str
    about: dict[str, Any]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, c, h, w = self.images.shape
        return c, h, w


def make_subject(
    dataset: Dataset,
    checkpoint: Path | None,
    *,
    folder: Path,
    width: int,
    epochs: int,
    n_images: int,
    batch_size: int,
    device: torch.device,
) -> Subject:
    """Train the network, or take a trained one, and choose the images.

    Args:
        dataset: to train on, and to take test images of.
        checkpoint: of a trained network; one is trained when None.
        folder: where to keep the one that is trained.
        width: of the one that is trained.
        epochs: likewise.
        n_images: how many test images.
        batch_size: images attacked at once.
        device: where to train and to attack.

    Raises:
        RobustFDDError: the checkpoint cannot be read or is of other data.
    """
    if checkpoint is None:
        fresh = build_model(dataset, "none", width=width, normalization="zero-one", seed=SEED).to(device)
        checkpoint = train(fresh, dataset, recipe(epochs), seed=SEED, out=folder / "model.safetensors").path
        origin: dict[str, Any] = {"trained_for": recipe(epochs).model_dump()}
    else:
        origin = {"checkpoint": checkpoint.name}
    model = load_model(checkpoint, device)
    check_same_data(model.config, dataset, checkpoint)
    index = test_indices(dataset.test.labels, n_images, SEED)
    images, labels = dataset.test.images[index].to(device), dataset.test.labels[index].to(device)
    clean = clean_outcome(model, images, labels, n_classes=dataset.n_classes, batch_size=batch_size)
    correct = clean.correct.cpu().numpy()
    about = {
        **origin,
        "width": model.config.width,
        "dropout": model.config.dropout,
        "weights_sha256": weights_digest(model),
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256,
        "images": len(index),
        "attacked": int(correct.sum()),
        "clean_accuracy": float(correct.mean()),
    }
    return Subject(
        checkpoint=checkpoint.resolve(),
        images=images.cpu().numpy(),
        labels=labels.cpu().numpy(),
        correct=correct,
        n_classes=dataset.n_classes,
        batch_size=batch_size,
        device=str(device),
        about=about,
    )
