"""Fashion-MNIST: 28 x 28 grey images of clothes in ten classes.

Source: Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747. The files are in the IDX format of MNIST: a big-endian header of two zero bytes, the
type (8: unsigned byte), the number of dimensions and one 32-bit size for each, then the values.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from robustfdd import files
from robustfdd.datasets.base import DatasetSpec, RawData, Split, register, torchvision_loading
from robustfdd.errors import DatasetError

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

#: Where Debian's package dataset-fashion-mnist puts the gzipped files.
DEBIAN = Path("/usr/share/datasets/fashion-mnist")

#: SHA-256 of the four files, unpacked. They are checked because MNIST's files have the same names and sizes, and
#: because torchvision does not check files it has unpacked before.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}

_TITLE = "Fashion-MNIST"


def load(root: Path) -> RawData:
    """Read the files that torchvision has unpacked in ``root``, else Debian's copy, else download them.

    Raises:
        DatasetError: a file is truncated, corrupt or another data set's, or the download failed.
    """
    folder = root / "FashionMNIST" / "raw"
    for candidate, suffix in ((folder, ""), (DEBIAN, ".gz")):
        if all(path.is_file() for path in _files(candidate, suffix)):
            return _read(candidate, suffix)
    from torchvision.datasets import FashionMNIST  # noqa: PLC0415 - takes seconds, and is seldom needed

    archives = _files(folder, ".gz")
    with torchvision_loading(
        _TITLE,
        root,
        f"{', '.join(path.name for path in archives)} in {folder}",
        reads=[*archives, *_files(folder, "")],
    ):
        FashionMNIST(root, download=True)
    return _read(folder, "")


def _files(folder: Path, suffix: str) -> list[Path]:
    return [folder / f"{name}{suffix}" for name in SHA256]


def _read(folder: Path, suffix: str) -> RawData:
    train_images, train_labels, test_images, test_labels = map(read_idx, _files(folder, suffix))
    return RawData(
        classes=CLASSES,
        train=Split(train_images[:, None], train_labels.long()),
        test=Split(test_images[:, None], test_labels.long()),
        source=str(folder),
    )


def read_idx(path: Path) -> Tensor:
    """Read one of the four files, gzipped or not.

    Returns:
        uint8; images of shape (N, H, W), labels of shape (N,).

    Raises:
        DatasetError: the file is missing, truncated or corrupt, or is not the file of Fashion-MNIST.
    """
    try:
        content = files.read_bytes(path, files.ARCHIVE)
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(path, f"is not readable: {error}") from error
    name = path.name.removesuffix(".gz")
    n_dimensions = 3 if "images" in name else 1
    start = 4 * (1 + n_dimensions)
    if content[:4] != bytes([0, 0, 8, n_dimensions]) or len(content) < start:
        raise _unusable(path, f"has no IDX header of unsigned bytes in {n_dimensions} dimension(s)")
    shape = struct.unpack_from(f">{n_dimensions}I", content, 4)
    if len(content) - start != math.prod(shape):
        raise _unusable(path, f"holds {len(content) - start} values, and its header says {math.prod(shape)}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise _unusable(path, f"is not the file of Fashion-MNIST: its unpacked SHA-256 is {digest}, not {SHA256[name]}")
    # Copied into a bytearray, because torch takes no read-only memory.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def _unusable(path: Path, why: str) -> DatasetError:
    return DatasetError(f"{_TITLE}: {path} {why}; remove it, and it is fetched anew, or put a whole copy in its place")


register(
    DatasetSpec(
        name="fashion-mnist",
        title=_TITLE,
        summary="60,000 + 10,000 grey 28x28 images of clothes, 10 classes (Xiao et al. 2017)",
        load=load,
    )
)
