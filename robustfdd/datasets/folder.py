"""Anybody's images: ``folder:PATH`` reads PATH/train/CLASS/* and PATH/test/CLASS/*.

Classes are the folders, sorted by name, and must be the same in both splits; their names are compared, and kept, in
Unicode's composed form (NFC), since some systems write "é" as one character and some as two. Images are taken in the
order of their names. All images must be of one size: nothing is rescaled, because an attack's budget is meant for the
pixels that a model sees. Grey images have one channel; if any image of either split is not grey, all have three (RGB).
Transparency is dropped, a rotation noted in the metadata is not applied, and of several frames the first is read. A
file that has more than 8 bits a channel is refused (:mod:`robustfdd.datasets.bit_depth`). Names that begin with a dot
are ignored; anything else that is not an image is an error, so that nothing is left out unnoticed.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from robustfdd.datasets.base import Dataset, RawData, Split
from robustfdd.datasets.bit_depth import bits_per_channel
from robustfdd.errors import DatasetError
from robustfdd.text import is_clean, shortened, shown

PREFIX = "folder:"

#: Number of images above which reading takes long enough for a progress bar.
_SHOW_PROGRESS_ABOVE = 2000

_GREY_MODES = ("1", "L", "LA")
#: More than 8 bits a channel, which cannot be told from 8 without loss.
_DEEP_MODES = ("I", "F")


def load_folder(name: str) -> Dataset:
    """Read a folder of images.

    Args:
        name: ``folder:PATH``; ``~`` is the home folder.

    Returns:
        The data set, on the CPU, under the name given; its title is the name of the folder and its source the
        absolute path.

    Raises:
        DatasetError: there is no such folder; a split or a class is missing or empty; a file is no image, is corrupt,
            has more than 8 bits a channel or another size. The message names the file or folder.
    """
    try:
        path = Path(name.removeprefix(PREFIX)).expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: no home folder, or links in a circle
        raise DatasetError(f"{shortened(name)}: no such folder ({error}); expected {PREFIX}PATH") from error
    if not is_clean(str(path)):  # it is written into every manifest
        raise DatasetError(f"{shown(str(path))}: has control characters, or bytes that are no UTF-8; rename it")
    if name == PREFIX:
        raise DatasetError(f"{name}: the path is missing; expected {PREFIX}PATH")
    train, test = _classes(path / "train"), _classes(path / "test")
    if train.keys() != test.keys():
        one_sided = sorted(train.keys() ^ test.keys())[0]
        here, there = ("train", "test") if one_sided in train else ("test", "train")
        meant = _alike(one_sided, test if here == "train" else train)
        raise DatasetError(
            f"{path}: class {one_sided!r} is in {here} but not in {there}{meant}; both need the same classes"
        )
    if len(train) < 2:
        raise DatasetError(f"{path / 'train'}: holds one class only ({next(iter(train))!r}); at least two are needed")
    files = [file for split in (train, test) for of_class in split.values() for file in of_class]
    labels = [label for split in (train, test) for label, of_class in enumerate(split.values()) for _ in of_class]
    images, targets = torch.from_numpy(_read(files)), torch.tensor(labels)
    n_train = sum(len(of_class) for of_class in train.values())
    raw = RawData(
        classes=tuple(train),
        train=Split(images[:n_train], targets[:n_train]),
        test=Split(images[n_train:], targets[n_train:]),
        source=str(path),
    )
    return Dataset.from_raw(raw, name=name, title=path.name)


def _alike(name: str, others: Collection[str]) -> str:
    """The class whose name is nearest to a name, with the letters that look alike told apart; for a message."""
    close = difflib.get_close_matches(name, others, n=1)
    if not close:
        return ""
    told = (name, close[0])
    written = "" if all(each.isascii() for each in told) else f" ({told[0]!a} and {told[1]!a})"
    return f", where {close[0]!r} may be meant{written}"


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    except OSError as error:
        raise DatasetError(f"{folder}: not readable as a folder ({error.strerror})") from error


def _classes(split: Path) -> dict[str, list[Path]]:
    """The files of each class of one split, both in the order of their names."""
    classes: dict[str, list[Path]] = {}
    folders: dict[str, Path] = {}
    for folder in _visible(split):
        if not is_clean(folder.name):
            raise DatasetError(
                f"{split}: the class {shown(folder.name)} has control characters, or bytes that are no UTF-8; rename it"
            )
        if not folder.is_dir():
            raise DatasetError(f"{folder}: not a folder; {split} may hold only one folder for each class")
        name = unicodedata.normalize("NFC", folder.name)
        if name in folders:
            raise DatasetError(
                f"{split}: the classes {folders[name].name!a} and {folder.name!a} have the same name, written "
                "in two ways; put them together"
            )
        folders[name] = folder
        classes[name] = _visible(folder)
        if not classes[name]:
            raise DatasetError(f"{folder}: this class has no images")
    if not classes:
        raise DatasetError(f"{split}: there are no images; expected one folder for each class")
    # Anew, since a label is a position, and names may come in another order as their folders have them.
    return dict(sorted(classes.items()))


def _read(files: list[Path]) -> npt.NDArray[np.uint8]:
    """All files as one array of shape (N, C, H, W)."""
    first = _pixels(files[0])
    images = np.empty((len(files), *first.shape), dtype=np.uint8)
    with Progress(console=Console(stderr=True), disable=len(files) <= _SHOW_PROGRESS_ABOVE) as progress:
        for position, file in enumerate(progress.track(files, description="Reading images")):
            pixels = _pixels(file)
            if pixels.shape[1:] != first.shape[1:]:
                raise DatasetError(
                    f"{file}: is {_size(pixels)} pixels, but {files[0]} is {_size(first)}; "
                    f"all images must be of one size"
                )
            if len(pixels) > images.shape[1]:
                # The first colour image: a grey one becomes RGB by repeating its channel.
                images = images.repeat(len(pixels), axis=1)
            images[position] = pixels
    return images


def _size(pixels: npt.NDArray[Any]) -> str:
    return f"{pixels.shape[2]}x{pixels.shape[1]}"


def _pixels(file: Path) -> npt.NDArray[np.uint8]:
    """One image, of shape (1, H, W) or (3, H, W)."""
    try:
        with Image.open(file) as image:
            if image.format == "EPS":
                raise ValueError("an EPS file is a program, which would be run")
            mode = image.mode
            deep = mode.startswith(_DEEP_MODES)
            bits = 0 if deep else bits_per_channel(image, file)
            if not deep and bits <= 8:
                grey = mode in _GREY_MODES
                # By way of RGBA, because Pillow warns when a palette with transparency is turned into RGB at once.
                whole = image.convert("RGBA") if mode == "P" else image
                pixels: npt.NDArray[np.uint8] = np.asarray(whole.convert("L" if grey else "RGB"))
                return pixels[None] if grey else pixels.transpose(2, 0, 1)
    except Exception as error:  # Pillow's decoders raise many types for files that are corrupt
        raise DatasetError(f"{file}: not readable as an image ({error})") from error
    found = f"Pillow's mode {mode!r}" if deep else f"{bits} bits, of which Pillow would read 8"
    raise DatasetError(f"{file}: has more than 8 bits a channel ({found}); convert it to 8 bits")
