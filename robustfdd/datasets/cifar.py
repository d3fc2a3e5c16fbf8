"""CIFAR-10 and CIFAR-100: 32 x 32 colour photographs in 10 and 100 classes.

Source: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images". Read, downloaded and held against
their MD5 sums by torchvision; CIFAR-100 is used with its fine labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from robustfdd.datasets.base import DatasetSpec, RawData, Split, register, torchvision_loading


def load_cifar10(root: Path) -> RawData:
    """Read CIFAR-10 from ``cifar-10-batches-py`` in ``root``, after a download where it is missing.

    Raises:
        DatasetError: it can be neither read nor downloaded.
    """
    return _load("CIFAR10", "CIFAR-10", root)


def load_cifar100(root: Path) -> RawData:
    """Read CIFAR-100 from ``cifar-100-python`` in ``root``, after a download where it is missing.

    Raises:
        DatasetError: it can be neither read nor downloaded.
    """
    return _load("CIFAR100", "CIFAR-100", root)


def _load(class_name: str, title: str, root: Path) -> RawData:
    import torchvision.datasets  # noqa: PLC0415 - takes seconds, and other data sets do without it

    dataset_class = getattr(torchvision.datasets, class_name)
    names = [name for name, _ in (*dataset_class.train_list, *dataset_class.test_list)]
    unpacked = [root / dataset_class.base_folder / name for name in (*names, dataset_class.meta["filename"])]
    splits = []
    with torchvision_loading(
        title,
        root,
        f"{dataset_class.filename} ({dataset_class.url}) in {root}",
        reads=[root / dataset_class.filename, *unpacked],
    ):
        for train in (True, False):
            read = dataset_class(root, train=train, download=True)
            # torchvision turns the stored channels-first images into channels-last ones; turned back, they are
            # contiguous again, and nothing is copied.
            images = np.ascontiguousarray(read.data.transpose(0, 3, 1, 2))
            splits.append(Split(torch.from_numpy(images), torch.tensor(read.targets, dtype=torch.int64)))
    return RawData(
        classes=tuple(read.classes), train=splits[0], test=splits[1], source=str(root / dataset_class.base_folder)
    )


register(
    DatasetSpec(
        name="cifar10",
        title="CIFAR-10",
        summary="50,000 + 10,000 colour 32x32 photographs, 10 classes (Krizhevsky 2009)",
        load=load_cifar10,
    )
)
register(
    DatasetSpec(
        name="cifar100",
        title="CIFAR-100",
        summary="50,000 + 10,000 colour 32x32 photographs, 100 classes (Krizhevsky 2009)",
        load=load_cifar100,
    )
)
