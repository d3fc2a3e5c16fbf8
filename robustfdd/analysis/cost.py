"""What a dropout layer adds to an epoch of training.

Ke et al. 2020 give the time that the density estimation takes in an epoch, and call it negligible beside the training.
Measured here, on one batch of training images at the recipe's batch size, in one process and by turns, so that another
load of the machine falls on all of it alike:

* a training step without dropout: forward, backward and the SGD step, and in adversarial training the perturbation of
  the images, on a copy of the network with the layers removed;
* the estimate: :meth:`~robustfdd.dropouts.base.Dropout.drop_probability` of each layer on what it gets from that batch;
* the mask: :meth:`~robustfdd.dropouts.base.Dropout.multiplier`, the estimate and the draw together. It is what original
  dropout, whose probability is a constant, needs too.

Each is the median of :data:`REPETITIONS` after one that is not counted, times the number of steps of an epoch. In each
repetition the estimate and the mask, which take microseconds to milliseconds, are made :data:`IN_A_ROW` times and
divided by that, lest the first one after a training step pays for the caches that the step has emptied. Reading and
augmenting the images is in none of the three.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from robustfdd import provenance
from robustfdd.adversarial_training import craft
from robustfdd.analysis.base import Analysis, TrainedModel, captured_inputs, register
from robustfdd.datasets.base import to_pixels
from robustfdd.dropouts import Dropout
from robustfdd.layout import image_layout

#: Measurements of each duration, of which the median is taken.
REPETITIONS = 7
#: Estimates, and masks, in a row that make one measurement.
IN_A_ROW = 5


def without_dropout(model: nn.Module) -> nn.Module:
    """A copy of the network, all its parameters trainable, with the identity in the place of every dropout layer."""
    bare = copy.deepcopy(model).requires_grad_(True)
    for module in list(bare.modules()):
        for name, child in module.named_children():
            if isinstance(child, Dropout):
                setattr(module, name, nn.Identity())
    return bare


def medians(
    work: Mapping[str, tuple[Callable[[], object], int]], device: torch.device, repetitions: int
) -> dict[str, float]:
    """Seconds that each piece of work takes: the median over repetitions in which they take turns, after a warm-up.

    Args:
        work: what to do, and how many times in a row.
        device: what to wait for.
        repetitions: how many are counted.
    """
    durations: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repetitions + 1):
        for name, (do, in_a_row) in work.items():
            _wait(device)
            started = time.perf_counter()
            for _ in range(in_a_row):
                do()
            _wait(device)
            durations[name].append((time.perf_counter() - started) / in_a_row)
    return {name: statistics.median(found[1:]) for name, found in durations.items()}


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given; a GPU is only told what to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compute(trained: TrainedModel) -> dict[str, pd.DataFrame]:
    """One row: seconds an epoch of a training without dropout, of the estimate and of the mask, and where measured."""
    recipe, split, device = trained.recipe, trained.dataset.train, trained.device
    n = min(recipe.batch_size, len(split))
    x = to_pixels(split.images[:n]).contiguous(memory_format=image_layout(trained.model))
    y = split.labels[:n]
    half = recipe.precision == "bf16"

    bare = without_dropout(trained.model).train()
    optimizer = torch.optim.SGD(
        bare.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )

    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        images = craft(bare, x, y, recipe, generator) if recipe.adversarial else x
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = bare(images)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), y).backward()
        optimizer.step()

    dropping = copy.deepcopy(trained.model).train()
    layers = [module for module in dropping.modules() if isinstance(module, Dropout)]
    with torch.no_grad(), captured_inputs(*layers) as inputs:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            dropping(x)
        given = [(layer, inputs[layer]) for layer in layers]
    with torch.no_grad():
        seconds = medians(
            {
                "step": (torch.enable_grad()(step), 1),
                "estimate": (lambda: [layer.drop_probability(values) for layer, values in given], IN_A_ROW),
                "mask": (lambda: [layer.multiplier(values) for layer, values in given], IN_A_ROW),
            },
            device,
            REPETITIONS,
        )
    steps = math.ceil(len(split) / recipe.batch_size)
    machine = provenance.hardware(device)
    row = {
        "layers": len(layers),
        "batch_size": n,
        "steps_per_epoch": steps,
        **{f"{name}_seconds": value * steps for name, value in seconds.items()},
        "estimate_share": seconds["estimate"] / seconds["step"],
        "mask_share": seconds["mask"] / seconds["step"],
        "repetitions": REPETITIONS,
        "hardware": str(machine.get("gpu", machine["processor"])),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    return {"cost": pd.DataFrame([row])}


register(
    Analysis(
        name="cost",
        title="what the dropout layer costs",
        tables=("cost",),
        settings={"repetitions": REPETITIONS, "in_a_row": IN_A_ROW},
        compute=compute,
        applies=lambda config: config.dropout != "none",
        per_device=True,
    )
)
