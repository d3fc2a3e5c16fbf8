"""Cut the subset of Fashion-MNIST that is shipped with the package, or check it against the original.

    python scripts/cut_fashion_mnist_mini.py            cut it and write it
    python scripts/cut_fashion_mnist_mini.py --check    cut it again as its file says, and compare

The same seed and sizes give the same arrays everywhere, and the same bytes wherever zlib is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robustfdd.datasets import fashion_mnist, fashion_mnist_mini
from robustfdd.datasets.base import RawData, data_root, stratified_indices
from robustfdd.errors import RobustFDDError

Arrays = dict[str, npt.NDArray[Any]]


def cut(source: RawData, *, n_train: int, n_test: int, seed: int) -> Arrays:
    """The arrays of a subset, as :func:`robustfdd.datasets.fashion_mnist_mini.decode` describes them."""
    arrays: Arrays = {
        "seed": np.array(seed),
        "source_sha256": np.array(list(fashion_mnist.SHA256.items())),
    }
    for kind, split, n in (("train", source.train, n_train), ("test", source.test, n_test)):
        index = stratified_indices(split.labels, n, seed)
        arrays[f"{kind}_images"] = split.images[index, 0].numpy()
        arrays[f"{kind}_labels"] = split.labels[index].numpy().astype(np.uint8)
        arrays[f"{kind}_index"] = index.numpy().astype(np.int32)
    return arrays


def encode(arrays: Arrays) -> bytes:
    """The arrays as a compressed ``.npz`` archive without the time of writing, so that it is always the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.save(member, arrays[name], allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.create_system = 3  # Unix, on whatever system it is written
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def differences(content: bytes, source: RawData) -> list[str]:
    """The arrays of a subset's file that are not what cutting the original with its seed and sizes gives."""
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    expected = cut(
        source, n_train=len(found["train_images"]), n_test=len(found["test_images"]), seed=int(found.get("seed", 0))
    )
    return [
        name
        for name in sorted(expected.keys() | found.keys())
        if name not in found or name not in expected or not np.array_equal(found[name], expected[name])
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Cut or check the subset of Fashion-MNIST shipped with robustfdd.")
    parser.add_argument("--root", type=Path, help="data root with the original (default: as robustfdd chooses it)")
    parser.add_argument("--file", type=Path, default=Path(str(fashion_mnist_mini.FILE)), help="the subset's file")
    parser.add_argument("--train", type=int, default=6000, help="training images (default: %(default)s)")
    parser.add_argument("--test", type=int, default=1000, help="test images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; compare the file with the original")
    options = parser.parse_args(arguments)
    try:
        source = fashion_mnist.load(data_root(options.root))
        if options.check:
            fashion_mnist_mini.decode(options.file.read_bytes(), str(options.file))
    except (OSError, RobustFDDError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.check:
        wrong = differences(options.file.read_bytes(), source)
        print(f"{options.file}: differs from {source.source} in {', '.join(wrong)}" if wrong else f"{options.file}: ok")
        return 1 if wrong else 0
    content = encode(cut(source, n_train=options.train, n_test=options.test, seed=options.seed))
    options.file.write_bytes(content)
    print(f"{options.file}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
