"""SVHN, cropped digits: 32 x 32 colour photographs of house numbers, labelled by their middle digit.

Source: Netzer et al. 2011, "Reading Digits in Natural Images with Unsupervised Feature Learning". Read, downloaded and
held against its MD5 sums by torchvision, which also gives the digit 0, stored as class 10, the label 0. The "extra"
images are not used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from robustfdd.datasets.base import DatasetSpec, RawData, Split, register, torchvision_loading

_TITLE = "SVHN"


def load(root: Path) -> RawData:
    """Read the two .mat files in ``root``, after a download where they are missing.

    Raises:
        DatasetError: they can be neither read nor downloaded.
    """
    from torchvision.datasets import SVHN  # noqa: PLC0415 - takes seconds, and other data sets do without it

    files = [f"{SVHN.split_list[kind][1]} ({SVHN.split_list[kind][0]})" for kind in ("train", "test")]
    splits = []
    paths = [root / SVHN.split_list[kind][1] for kind in ("train", "test")]
    with torchvision_loading(_TITLE, root, f"{' and '.join(files)} in {root}", reads=paths):
        for kind in ("train", "test"):
            read = SVHN(root, split=kind, download=True)
            splits.append(Split(torch.from_numpy(np.ascontiguousarray(read.data)), torch.from_numpy(read.labels)))
            del read  # the images in the order of the file; without this both copies of both splits are held at once
    return RawData(classes=tuple(str(digit) for digit in range(10)), train=splits[0], test=splits[1], source=str(root))


register(
    DatasetSpec(
        name="svhn",
        title=_TITLE,
        summary="73,257 + 26,032 colour 32x32 photographs of house numbers, 10 classes (Netzer et al. 2011)",
        load=load,
    )
)
