"""What a data set is, how one is registered, and what all loaders share."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import math
import os
import sys
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustfdd import files
from robustfdd.errors import ConfigurationError, DatasetError
from robustfdd.registry import Registry

#: Values that are counted at a time when the statistics are computed, so that counting needs no large copy.
_CHUNK = 2**24


@dataclass(frozen=True, eq=False)
class Split:
    """One half of a data set: training or test images with their labels.

    Attributes:
        images: uint8, shape (N, C, H, W), values 0 to 255.
        labels: int64, shape (N,), values 0 to the number of classes - 1.

    Raises:
        DatasetError: a tensor has another type or shape, or there are no images.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DatasetError(
                f"images must be uint8 of shape (N, C, H, W), not {images.dtype} of {list(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DatasetError(
                f"labels must be int64 of shape ({len(images)},), not {labels.dtype} of {list(labels.shape)}"
            )
        if not images.numel():
            raise DatasetError(f"there are no images (shape {list(images.shape)})")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: str | torch.device) -> Split:
        """The same split with both tensors on ``device``."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class RawData:
    """What a loader reads, before anything is computed from it.

    Attributes:
        classes: names of the classes; a label is a position in them.
        train: training images, on the CPU.
        test: test images, on the CPU.
        source: where the data were read from, for the record of a run.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    source: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images of both splits, and what a run needs to know about them. Made by :meth:`from_raw`.

    Attributes:
        name: what :func:`robustfdd.datasets.load_dataset` is called with.
        title: the name for people, for headings and legends.
        classes: names of the classes; a label is a position in them.
        train: training images.
        test: test images.
        mean: the one mean over all training images, positions and channels together, for pixels in [0, 1].
        std: the one (population) standard deviation over the same pixels; above 0.
        sha256: hexadecimal SHA-256 of the raw bytes of the training images, training labels, test images and test
            labels, one after the other, in C order, labels as little-endian int64.
        source: where the data were read from.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: float
    std: float
    sha256: str
    source: str

    @classmethod
    def from_raw(cls, raw: RawData, *, name: str, title: str) -> Dataset:
        """Check the data and compute statistics and hash.

        Raises:
            DatasetError: fewer than two classes, two of one name, splits of different image shape, a label outside
                the classes, or training images that are all one colour, by whose deviation nothing can be divided.
        """
        n_classes = len(raw.classes)
        if n_classes < 2 or len(set(raw.classes)) < n_classes:
            raise DatasetError(f"{name}: needs at least two classes of different names, not {list(raw.classes)}")
        shapes = [tuple(split.images.shape[1:]) for split in (raw.train, raw.test)]
        if shapes[0] != shapes[1]:
            raise DatasetError(f"{name}: training images have shape {shapes[0]}, test images {shapes[1]}")
        for kind, split in (("training", raw.train), ("test", raw.test)):
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= n_classes:
                raise DatasetError(f"{name}: {kind} labels run from {low} to {high}, allowed: 0 to {n_classes - 1}")
        mean, std = pixel_statistics(raw.train.images)
        if std == 0:
            raise DatasetError(f"{name}: all pixels of all training images are the same")
        return cls(
            name=name,
            title=title,
            classes=raw.classes,
            train=raw.train,
            test=raw.test,
            mean=mean,
            std=std,
            sha256=_sha256(raw.train, raw.test),
            source=raw.source,
        )

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image: (C, H, W)."""
        _, c, h, w = self.train.images.shape
        return c, h, w

    def to(self, device: str | torch.device) -> Dataset:
        """The same data set with all tensors on ``device``; the images stay uint8."""
        return replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class DatasetSpec:
    """A data set that can be asked for by name.

    Attributes:
        name: what it is asked for by.
        title: the name for people.
        summary: one line: what it is, how large, and whose.
        load: reads it, given the data root (:func:`data_root`); raises DatasetError.
    """

    name: str
    title: str
    summary: str
    load: Callable[[Path], RawData]


#: All known data sets by name. It follows later registrations.
DATASETS: Registry[DatasetSpec] = Registry("data set")
register = DATASETS.register


def data_root(root: str | Path | None = None) -> Path:
    """The folder that data sets are downloaded to and read from.

    It is ``root`` where given, else the environment variable ``ROBUSTFDD_DATA``, else ``robustfdd/data`` in the
    user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``). The folder need not exist.

    Raises:
        DatasetError: there is no home folder to put it in.
    """
    chosen = root or os.environ.get("ROBUSTFDD_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification has relative paths ignored.
    fallback = (cache if cache.is_absolute() else Path("~/.cache")) / "robustfdd" / "data"
    try:
        return Path(chosen or fallback).expanduser()
    except RuntimeError as error:
        raise DatasetError(
            f"no data root: {chosen or fallback} has no home folder; set ROBUSTFDD_DATA to a folder"
        ) from error


def to_pixels(images: Tensor) -> Tensor:
    """Pixels in [0, 1] from bytes: the value divided by 255.

    Args:
        images: uint8, any shape, on any device.

    Returns:
        float32, same shape and device.
    """
    # Divided by a tensor, not by a number: CUDA multiplies by the rounded reciprocal of a number, and the same image
    # would have other pixels there than on a CPU.
    return images.to(torch.float32) / torch.full((), 255.0, device=images.device)


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation over all values, for pixels in [0, 1].

    Computed in whole numbers from the histogram of the 256 values; only the last division and the root round.

    Args:
        images: uint8, shape (N, ...), at least one value.
    """
    histogram = torch.zeros(256, dtype=torch.int64, device=images.device)
    for chunk in torch.split(images.flatten(), _CHUNK):
        histogram += torch.bincount(chunk, minlength=256)
    counts: list[int] = histogram.tolist()
    n = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    return total / (255 * n), math.sqrt((n * squares - total * total) / (255 * n) ** 2)


def _sha256(*splits: Split) -> str:
    digest = hashlib.sha256()
    for split in splits:
        digest.update(np.ascontiguousarray(split.images.numpy()).data)
        digest.update(np.ascontiguousarray(split.labels.numpy().astype("<i8", copy=False)).data)
    return digest.hexdigest()


def stratified_indices(labels: Tensor, n: int, seed: int) -> Tensor:
    """A random choice of positions in which every class keeps its share.

    Each class is put in a random order of its own, and the classes are filled at equal speed (the apportionment of
    Webster and Sainte-Laguë): classes of equal size differ by at most one image, and which of them have one more is
    random. The choice of n positions contains that of any smaller n, so a study can be enlarged without losing
    images. It depends on nothing but the arguments: the raw output of NumPy's PCG64 is the same in all versions.

    Args:
        labels: int64, shape (N,).
        n: how many to choose, 1 to N.
        seed: 0 or more.

    Returns:
        int64, shape (n,), ascending, on the device of ``labels``.
    """
    values = labels.cpu().numpy()
    keys = np.random.PCG64(seed).random_raw(len(values))
    _, of_class, counts = np.unique(values, return_inverse=True, return_counts=True)
    shuffled = np.lexsort((keys, of_class))
    rank = np.empty(len(values), dtype=np.int64)
    rank[shuffled] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.lexsort((keys, (rank + 0.5) / counts[of_class]))[:n]
    return torch.from_numpy(np.sort(chosen)).to(labels.device, torch.int64)


def test_indices(labels: Tensor, n: int, seed: int) -> Tensor:
    """Which test images a study uses: a stratified choice, the same for every model and attack of one seed.

    Classes keep their share (:func:`stratified_indices`), so that an accuracy on the choice estimates the accuracy
    on the whole split also where the classes are of different size.

    Args:
        labels: labels of the test split, int64, shape (N,).
        n: how many images; N or more means all.
        seed: 0 or more.

    Returns:
        Positions in the test split: int64, shape (min(n, N),), ascending, on the device of ``labels``.

    Raises:
        ConfigurationError: n is below 1, or the seed below 0.
    """
    if n < 1:
        raise ConfigurationError(f"the number of test images must be at least 1, not {n}")
    if seed < 0:
        raise ConfigurationError(f"the seed of the choice of test images must be at least 0, not {seed}")
    if n >= len(labels):
        return torch.arange(len(labels), device=labels.device)
    return stratified_indices(labels, n, seed)


@contextlib.contextmanager
def torchvision_loading(title: str, root: Path, by_hand: str, reads: Sequence[Path]) -> Iterator[None]:
    """A context in which a torchvision data set is built, and downloaded where it is missing.

    torchvision holds every file it downloads, and the CIFAR and SVHN files whenever it reads them, against their MD5
    sums: what an interrupted download left behind is not trusted but downloaded again.

    Args:
        title: of the data set, for the message.
        root: the data root.
        by_hand: which files to place where if the download is impossible.
        reads: every file that torchvision may read, or write where it is missing. It waits for ever for a pipe.

    Raises:
        DatasetError: no network, no room, no permission, a file that came with a wrong MD5 sum, or something that is
            no regular file in the place of one.
    """
    for path in reads:
        try:
            files.check(path, files.ARCHIVE)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DatasetError(
                f"{title}: {path}: cannot be read ({error.strerror}); remove it, or put the file of that name in its "
                "place"
            ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            # Older torchvision reports its downloads on stdout, which belongs to results. The CIFAR files are pickles
            # of Python 2, about which NumPy 2.4.0 to 2.4.4 warns; nobody here can change them.
            warnings.filterwarnings("ignore", r"dtype\(\): align", np.exceptions.VisibleDeprecationWarning)
            yield
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error) as error:
        raise DatasetError(
            f"{title}: neither found in {root} nor downloaded to it ({' '.join(str(error).split()) or repr(error)}). "
            f"Files with a wrong MD5 sum are not used and are downloaded again at the next attempt. Without a network, "
            f"place {by_hand}; another data root is chosen by the environment variable ROBUSTFDD_DATA"
        ) from error
