"""What a dropout costs in training: steps with it and without it, side by side in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.progress import Bar
from benchmarks.statistics import paired_ratio
from benchmarks.subject import SEED, recipe
from benchmarks.usage import wait_for
from robustfdd.analysis.base import captured_inputs
from robustfdd.datasets import Dataset
from robustfdd.datasets.base import to_pixels
from robustfdd.dropouts import DROPOUTS, Dropout
from robustfdd.layout import image_layout
from robustfdd.models import build_model

#: Passes through the layer alone that make one measurement, divided by their number: one takes microseconds.
IN_A_ROW = 5


def _step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step of training as :func:`robustfdd.training.fit` takes it, without the reading and augmenting of images."""
    given = recipe(1)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=given.learning_rate,
        momentum=given.momentum,
        nesterov=given.nesterov,
        weight_decay=given.weight_decay,
    )

    def step() -> None:
        loss = F.cross_entropy(model(x.contiguous(memory_format=image_layout(model))), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _seconds(work: Callable[[], object], device: torch.device, in_a_row: int = 1) -> float:
    wait_for(device)
    started = time.perf_counter()
    for _ in range(in_a_row):
        work()
    wait_for(device)
    return (time.perf_counter() - started) / in_a_row


def _trained(dataset: Dataset, name: str, width: int, device: torch.device) -> tuple[nn.Module, list[Dropout]]:
    """A fresh network in training mode, and its dropout layers in the middle of training."""
    model = build_model(dataset, name, width=width, normalization="zero-one", seed=SEED).to(device).train()
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    for layer in layers:
        layer.progress = 0.5
    return model, layers


def run_dropouts(
    dataset: Dataset,
    names: Sequence[str],
    *,
    widths: Sequence[int],
    batch_sizes: Sequence[int],
    steps: int,
    device: torch.device,
    bar: Bar,
) -> pd.DataFrame:
    """Time a training step with each dropout against one without, pair by pair.

    In each pair a step with the dropout and one without follow each other, and every other pair has them the other
    way round. The first pair warms up and is not counted.

    Args:
        dataset: whose training images are used.
        names: of dropouts; all but ``none`` where empty.
        widths: of the network.
        batch_sizes: images a step.
        steps: pairs that are counted.
        device: what to train on.
        bar: told of what is done.

    Returns:
        One row for each width, batch size and dropout: ``step_seconds`` and ``none_seconds``, medians; ``ratio`` with
        ``ratio_low`` and ``ratio_high``: of the step with the dropout to that without; ``layer_seconds``: the median
        of the layer's forward pass by itself; ``layer_share``: of it in the step without.
    """
    chosen = [name for name in (names or DROPOUTS) if name != "none"]
    bar.begin("dropout", len(widths) * len(batch_sizes) * len(chosen))
    rows: list[dict[str, object]] = []
    for width in widths:
        for size in batch_sizes:
            n = min(size, len(dataset.train))
            x = to_pixels(dataset.train.images[:n].to(device))
            y = dataset.train.labels[:n].to(device)
            without = _step(_trained(dataset, "none", width, device)[0], x, y)
            for name in chosen:
                model, layers = _trained(dataset, name, width, device)
                pair = (_step(model, x, y), without)
                times: tuple[list[float], list[float]] = ([], [])
                for i in range(steps + 1):
                    for which in (0, 1) if i % 2 == 0 else (1, 0):
                        times[which].append(_seconds(pair[which], device))
                ours, none = times[0][1:], times[1][1:]
                ratio = paired_ratio(ours, none)
                layer_seconds = _layer_seconds(model, layers, x, steps, device)
                rows.append(
                    {
                        "width": width,
                        "batch_size": n,
                        "dropout": name,
                        "step_seconds": statistics.median(ours),
                        "none_seconds": statistics.median(none),
                        "ratio": ratio.median,
                        "ratio_low": ratio.low,
                        "ratio_high": ratio.high,
                        "layer_seconds": layer_seconds,
                        "layer_share": layer_seconds / statistics.median(none),
                        "pairs": steps,
                    }
                )
                bar.advance(f"width {width}, batch {n}: {name}")
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _layer_seconds(
    model: nn.Module, layers: Sequence[Dropout], x: Tensor, repetitions: int, device: torch.device
) -> float:
    """Median duration of the forward passes of all dropout layers, on what they get from this batch."""
    with torch.no_grad(), captured_inputs(*layers) as inputs:
        model(x)
    given = [(layer, inputs[layer]) for layer in layers]

    def layers_alone() -> None:
        for layer, values in given:
            layer(values)

    with torch.no_grad():
        durations = [_seconds(layers_alone, device, IN_A_ROW) for _ in range(repetitions + 1)]
    return statistics.median(durations[1:])
