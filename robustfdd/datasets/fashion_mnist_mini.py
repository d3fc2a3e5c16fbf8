"""A stratified tenth of Fashion-MNIST that is shipped with the package, so that everything can be tried offline.

The training images are from the original's training split and the test images from its test split. The file is cut
by ``scripts/cut_fashion_mnist_mini.py``, which also checks it against the original. Fashion-MNIST is Copyright (c) 2017
Zalando SE, under the MIT licence beside the file.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from robustfdd.datasets.base import DatasetSpec, RawData, Split, register
from robustfdd.datasets.fashion_mnist import CLASSES
from robustfdd.errors import DatasetError

FILE = importlib.resources.files("robustfdd.datasets") / "data" / "fashion-mnist-mini.npz"

#: Of the file, as ``scripts/cut_fashion_mnist_mini.py`` tells it when it writes one.
SHA256 = "86635872016608cb43460a905a0434291a32b6ff446564da9f531e654d6c36a2"


def load(_root: Path) -> RawData:
    """Read the shipped file; the data root is not needed.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    try:
        content = FILE.read_bytes()
    except OSError as error:
        raise DatasetError(f"{FILE}: not readable ({error}); install robustfdd again") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise DatasetError(f"{FILE}: damaged, its SHA-256 is not {SHA256}; install robustfdd again")
    return decode(content, str(FILE))


def decode(content: bytes, file: str) -> RawData:
    """Read a subset from the bytes of its file.

    Args:
        content: a NumPy ``.npz`` archive with, for KIND in train and test, ``KIND_images`` (uint8, (N, 28, 28)),
            ``KIND_labels`` (uint8, (N,)) and ``KIND_index`` (int32, (N,): positions in the original split), and with
            ``seed`` and ``source_sha256``, which only the script that cuts it reads.
        file: what to call it in a message.

    Raises:
        DatasetError: it is damaged.
    """
    splits = []
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            for kind in ("train", "test"):
                images = torch.from_numpy(arrays[f"{kind}_images"])[:, None]
                splits.append(Split(images, torch.from_numpy(arrays[f"{kind}_labels"]).long()))
    except (OSError, EOFError, KeyError, ValueError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{file}: damaged ({error}); install robustfdd again") from error
    return RawData(classes=CLASSES, train=splits[0], test=splits[1], source="shipped with robustfdd")


register(
    DatasetSpec(
        name="fashion-mnist-mini",
        title="Fashion-MNIST mini",
        summary="6,000 + 1,000 images of Fashion-MNIST, shipped with the package: for trying things out offline",
        load=load,
    )
)
