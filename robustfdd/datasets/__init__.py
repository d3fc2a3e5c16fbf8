"""Data sets: uint8 tensors of both splits, with the one mean and the one deviation that models normalise by.

Every module of this package that calls :func:`robustfdd.datasets.base.register` adds a data set; nothing else has to
be changed for it. ``folder:PATH`` stands for anybody's images (:mod:`robustfdd.datasets.folder`).
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path

import torch

from robustfdd.datasets.base import DATASETS, Dataset, Split, data_root
from robustfdd.datasets.folder import PREFIX, load_folder
from robustfdd.errors import DatasetError

__all__ = ["DATASETS", "Dataset", "Split", "load_dataset"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def load_dataset(name: str, *, root: Path | None = None, device: str | torch.device = "cpu") -> Dataset:
    """Load a data set, downloading it first where that is possible and needed.

    Args:
        name: one of :data:`DATASETS`, or ``folder:PATH`` for a folder of images, PATH being relative to the working
            directory.
        root: where downloaded data sets are kept; by default the environment variable ``ROBUSTFDD_DATA``, else
            ``robustfdd/data`` in the user's cache folder.
        device: where to put the images and labels.

    Raises:
        DatasetError: the name is unknown, or the data are missing, corrupt or cannot be downloaded.
    """
    if name.startswith(PREFIX):
        dataset = load_folder(name)
    elif name in DATASETS:
        spec = DATASETS[name]
        dataset = Dataset.from_raw(spec.load(data_root(root)), name=spec.name, title=spec.title)
    else:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"unknown data set {name!r}; {hint}allowed: {', '.join(sorted(DATASETS))}, or {PREFIX}PATH for a folder of "
            f"images laid out as PATH/train/CLASS/* and PATH/test/CLASS/*"
        )
    return dataset.to(device)
