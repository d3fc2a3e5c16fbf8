"""What an analysis of a trained model is, and the registry that makes a new one one new file.

An analysis looks into one model of a run (its activations, its feature maps, what its dropout layer costs) and writes
small tables, from which the report draws figures without needing the model. It never changes the model: it works in
:func:`robustfdd.classifier.frozen` or on a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustfdd.datasets import Dataset
from robustfdd.models import ModelConfig, ResNet18
from robustfdd.registry import Registry
from robustfdd.specs import Recipe


class AnalysisUnavailableError(Exception):
    """An analysis cannot be made here, through nobody's fault: an optional package is not installed."""


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What an analysis looks at.

    Attributes:
        model: in evaluation mode, as loaded from its checkpoint.
        dataset: what it was trained on, on the device of the model.
        recipe: how it was trained.
    """

    model: ResNet18
    dataset: Dataset
    recipe: Recipe

    @property
    def device(self) -> torch.device:
        """Where the model and the images are."""
        return self.dataset.test.images.device


@dataclass(frozen=True)
class Analysis:
    """An analysis by name.

    Attributes:
        name: lower case, without ``--``.
        title: what progress displays call it.
        tables: the names of the tables that it writes.
        settings: everything that was chosen, such as numbers of images; a result belongs to them.
        compute: the tables by name, each with at least one row.
        applies: whether there is anything to see in a network of that configuration.
        per_device: whether the result belongs to the type of device, as a duration does.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    settings: Mapping[str, Any]
    compute: Callable[[TrainedModel], Mapping[str, pd.DataFrame]]
    applies: Callable[[ModelConfig], bool] = lambda config: True  # noqa: ARG005 - the network does not matter
    per_device: bool = False


#: All known analyses by name. It follows later registrations.
ANALYSES: Registry[Analysis] = Registry(
    "analysis", claims=lambda analysis: {f"table {table!r}" for table in analysis.tables}
)
register = ANALYSES.register


@contextmanager
def captured_inputs(*modules: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """The input of the latest forward pass of each module, by module; nothing is left on the modules afterwards."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[module] = inputs[0].detach()

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def images_of_different_classes(labels: Tensor, n: int) -> Tensor:
    """The first test image of each of n classes, spread evenly over the list of classes.

    Args:
        labels: of the test split, int64, shape (N,).
        n: how many; fewer are found where there are fewer classes.

    Returns:
        Positions in the test split, int64, shape (n,), on the CPU.
    """
    classes = labels.cpu().unique()
    chosen = classes[torch.linspace(0, len(classes) - 1, min(n, len(classes))).round().long()]
    first: Tensor = (labels.cpu() == chosen[:, None]).long().argmax(1)
    return first
