"""Images a second of :func:`robustfdd.training.fit`, against the plain PyTorch loop everybody writes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from benchmarks.progress import Bar
from benchmarks.statistics import paired_ratio
from benchmarks.subject import SEED, recipe
from benchmarks.usage import Usage, mib
from benchmarks.workers import Job, Worker, take_turns
from robustfdd.datasets import Dataset, Split
from robustfdd.datasets.augment import PADDING
from robustfdd.models import ResNet18, build_model
from robustfdd.specs import Recipe
from robustfdd.training import fit

Precision = Literal["fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

#: Processes that the plain loop's data loader reads images with; the faster is the one compared with.
LOADER_WORKERS = (0, 2)


@dataclass(frozen=True)
class TrainingData:
    """Training images and the network that is to learn them, in a form that every worker process gets alike.

    Attributes:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        about: all other fields of the data set.
        width: of the network.
        device: of torch.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    about: dict[str, Any]
    width: int
    device: str

    @classmethod
    def of(cls, dataset: Dataset, n_images: int, *, width: int, device: torch.device) -> TrainingData:
        """The first training images of a data set."""
        about = {f.name: getattr(dataset, f.name) for f in fields(dataset) if f.name not in ("train", "test")}
        images, labels = dataset.train.images[:n_images], dataset.train.labels[:n_images]
        return cls(images.cpu().numpy(), labels.cpu().numpy(), about, width, str(device))

    def dataset(self) -> Dataset:
        """The images as a data set; there are no others to test on."""
        split = Split(torch.from_numpy(self.images), torch.from_numpy(self.labels))
        return Dataset(train=split, test=split, **self.about)

    def model(self) -> ResNet18:
        """A fresh network that normalises as the data set says."""
        return build_model(self.dataset(), "none", width=self.width, seed=SEED).to(self.device)


@dataclass(frozen=True)
class Trained:
    """What came of a task.

    Attributes:
        loss: mean over the last epoch.
        seconds: of the last epoch, where the task did more than that; None otherwise.
    """

    loss: float
    seconds: float | None = None


class OurTraining:
    """:func:`robustfdd.training.fit`, an epoch a task, always on the same network."""

    def __init__(self, data: TrainingData) -> None:
        self.split = data.dataset().train.to(data.device)
        self.models = {precision: data.model() for precision in PRECISIONS}

    def run(self, task: Precision) -> Trained:
        """An epoch."""
        given = recipe(1).changed({"precision": task})
        return Trained(fit(self.models[task], self.split, given, seed=SEED)[-1].loss)


class OurTrainingCompiled(OurTraining):
    """The same through ``torch.compile``: two epochs a task, of which the second counts, since every call compiles."""

    def run(self, task: Precision) -> Trained:
        """Two epochs."""
        given = recipe(2).changed({"precision": task})
        last = fit(self.models[task], self.split, given, seed=SEED, compile=True)[-1]
        return Trained(last.loss, last.seconds)


class _Images(TorchDataset[tuple[Tensor, int]]):
    """Images as torchvision's data sets hold them: arrays, made into PIL images one by one and transformed."""

    def __init__(self, split: Split, transform: Any) -> None:
        images = split.images.numpy()
        self.images: npt.NDArray[np.uint8] = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
        self.labels: list[int] = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class PlainTraining:
    """The loop of PyTorch's tutorials: torchvision transforms, a data loader, the loss read at every step."""

    def __init__(self, data: TrainingData, loader_workers: int) -> None:
        self.device, self.recipe, dataset = torch.device(data.device), recipe(1), data.dataset()
        self.models = {precision: self._model(data) for precision in PRECISIONS}
        self.loader = DataLoader(
            _Images(dataset.train, _transforms(dataset, self.recipe)),
            batch_size=self.recipe.batch_size,
            shuffle=True,
            num_workers=loader_workers,
            persistent_workers=loader_workers > 0,
            pin_memory=self.device.type == "cuda",
        )

    @staticmethod
    def _model(data: TrainingData) -> nn.Module:
        """The same network without what is not usual: its own normalisation, which the transforms do, and layout."""
        model = data.model().to(memory_format=torch.contiguous_format)
        model.normalize = nn.Identity()  # type: ignore[assignment]  # declared as the class it is by default
        return model

    def run(self, task: Precision) -> Trained:
        """An epoch."""
        given, model = self.recipe, self.models[task]
        optimizer = torch.optim.SGD(
            model.parameters(),
            lr=given.learning_rate,
            momentum=given.momentum,
            nesterov=given.nesterov,
            weight_decay=given.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(self.loader))
        torch.manual_seed(SEED)
        model.train()
        total, seen = 0.0, 0
        for images, labels in self.loader:
            x, y = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=task == "bf16"):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(y)
            seen += len(y)
        return Trained(total / seen)


def _transforms(dataset: Dataset, given: Recipe) -> Any:
    """The recipe's augmentation and the network's normalisation in torchvision's words."""
    _, height, width = dataset.image_shape
    parts: list[Any] = []
    if "crop" in given.augmentation:
        parts.append(transforms.RandomCrop((height, width), padding=PADDING))
    if "flip" in given.augmentation:
        parts.append(transforms.RandomHorizontalFlip())
    channels = dataset.image_shape[0]
    normalize = transforms.Normalize((dataset.mean,) * channels, (dataset.std,) * channels)
    return transforms.Compose([*parts, transforms.ToTensor(), normalize])


def run_training(
    data: TrainingData, *, repeats: int, threads: int, compiled: bool, bar: Bar
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Train an epoch in each way, by turns.

    Args:
        data: what to train.
        repeats: epochs that are counted.
        threads: of torch, in every worker.
        compiled: whether to train through ``torch.compile`` too.
        bar: told of what is done.

    Returns:
        One row for each way and counted round: ``precision``, ``contender``, ``seconds``, ``cpu_seconds``,
        ``images_per_second`` and ``loss``; one row for each way: the medians, the loss of the last epoch, and ``ratio``
        with ``ratio_low`` and ``ratio_high``: how many times the images of the faster plain loop of that precision;
        and notes of what is left out.
    """
    notes: list[str] = []
    ours: dict[str, Callable[[], Job]] = {"robustfdd": partial(OurTraining, data)}
    if compiled:
        ours["robustfdd-compiled"] = partial(OurTrainingCompiled, data)
    plain: dict[str, Callable[[], Job]] = {
        f"plain-{n}-workers": partial(PlainTraining, data, n) for n in LOADER_WORKERS
    }
    rounds: list[dict[str, object]] = []
    summary: list[dict[str, object]] = []
    bar.begin("training", len(PRECISIONS) * (len(ours) + len(plain)) * (repeats + 1))
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(Worker(make, device=data.device, threads=threads))
            for name, make in {**ours, **plain}.items()
        }
        for worker in workers.values():
            worker.ready()
        for precision in PRECISIONS:
            usages = take_turns(
                workers,
                dict.fromkeys(workers, precision),
                repeats=repeats,
                label=f"training in {precision}",
                bar=bar,
                notes=notes,
            )
            found = _rows(usages, {"precision": precision, "images": len(data.labels)}, list(plain))
            rounds += found[0]
            summary += found[1]
    return pd.DataFrame(rounds), pd.DataFrame(summary), notes


def _rows(
    usages: Mapping[str, Sequence[Usage[Trained]]], about: Mapping[str, object], plain: Sequence[str]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """The rows of :func:`run_training` for one precision; ``plain`` names the plain loops."""
    rounds: list[dict[str, object]] = []
    summary: list[dict[str, object]] = []
    n_images = int(str(about["images"]))
    seconds = {name: [usage.result.seconds or usage.seconds for usage in found] for name, found in usages.items()}
    # Of a task that did more than an epoch the CPU time of the epoch is not known.
    cpu = {
        name: [usage.cpu_seconds if usage.result.seconds is None else math.nan for usage in found]
        for name, found in usages.items()
    }
    loops = [name for name in plain if name in seconds]
    for name, found in usages.items():
        key = {**about, "contender": name}
        rounds += [
            {
                **key,
                "round": i,
                "seconds": took,
                "cpu_seconds": cpu_took,
                "images_per_second": n_images / took,
                "loss": usage.result.loss,
            }
            for i, (usage, took, cpu_took) in enumerate(zip(found, seconds[name], cpu[name], strict=True), start=1)
        ]
        row: dict[str, object] = {
            **key,
            "images_per_second": n_images / statistics.median(seconds[name]),
            "cpu_seconds": statistics.median(cpu[name]),
            "peak_mib": statistics.median(mib(usage.peak_bytes) for usage in found),
            "loss": found[-1].result.loss,
        }
        if loops:
            faster = min(loops, key=lambda loop: statistics.median(seconds[loop]))
            ratio = paired_ratio(seconds[faster], seconds[name])
            row |= {"against": faster, "ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
        summary.append(row)
    return rounds, summary
