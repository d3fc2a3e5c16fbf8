"""Fashion-MNIST, its shipped subset, CIFAR and SVHN, on small files of the real formats that are written here.

torchvision and this package hold files against checksums of the real ones. The tests put the checksums of their own
small files in place of those and leave the checking itself alone. Downloads go to a stand-in for the network.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import cut_fashion_mnist_mini
import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets

from robustfdd.datasets import Dataset, Split, fashion_mnist, fashion_mnist_mini, load_dataset
from robustfdd.errors import DatasetError

# The oldest supported torchvision unpacks archives without naming a filter, which Python 3.12 and 3.13 warn about.
pytestmark = pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter:DeprecationWarning")


class Reply(io.BytesIO):
    """What urlopen returns, as far as torchvision uses it."""

    def __init__(self, url: str, content: bytes) -> None:
        super().__init__(content)
        self.url = url
        self.length = len(content)


class Network(dict[str, bytes]):
    """A stand-in for the network: content by address, and nothing else can be reached."""

    def urlopen(self, request: urllib.request.Request) -> Reply:
        if request.full_url not in self:
            raise urllib.error.URLError("Temporary failure in name resolution")
        return Reply(request.full_url, self[request.full_url])


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr(urllib.request, "urlopen", network.urlopen)
    return network


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The data root, and a home folder and a Debian folder that do not exist."""
    monkeypatch.setenv("ROBUSTFDD_DATA", str(tmp_path / "root"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    return tmp_path / "root"


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def flip_byte(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x40]) + content[position + 1 :]


def assert_holds(split: Split, images: np.ndarray, labels: np.ndarray) -> None:
    np.testing.assert_array_equal(split.images.numpy(), images)
    np.testing.assert_array_equal(split.labels.numpy(), labels)


def assert_statistics(dataset: Dataset, train_images: np.ndarray) -> None:
    pixels = train_images.astype(np.float64) / 255
    assert dataset.mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert dataset.std == pytest.approx(pixels.std(), rel=1e-12)


# --- Fashion-MNIST


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def pack(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


class TinyFashion:
    """A Fashion-MNIST of 80 + 40 images of 6 x 5 pixels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.train_images = rng.integers(0, 256, (80, 6, 5), dtype=np.uint8)
        self.train_labels = rng.permutation(np.arange(80, dtype=np.uint8) % 10)
        self.test_images = rng.integers(0, 256, (40, 6, 5), dtype=np.uint8)
        self.test_labels = rng.permutation(np.arange(40, dtype=np.uint8) % 10)
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        self.files = dict(zip(fashion_mnist.SHA256, map(idx, arrays), strict=True))

    def write(self, folder: Path, *, packed: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / (f"{name}.gz" if packed else name)).write_bytes(pack(content) if packed else content)

    def assert_loaded(self, dataset: Dataset) -> None:
        assert_holds(dataset.train, self.train_images[:, None], self.train_labels)
        assert_holds(dataset.test, self.test_images[:, None], self.test_labels)
        assert_statistics(dataset, self.train_images)


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch) -> TinyFashion:
    tiny = TinyFashion()
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in tiny.files.items()}
    monkeypatch.setattr(fashion_mnist, "SHA256", sums)
    packed = {f"{name}.gz": pack(content) for name, content in tiny.files.items()}
    resources = [(name, md5(content)) for name, content in packed.items()]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", resources)
    return tiny


@pytest.fixture
def fashion_online(fashion: TinyFashion, network: Network) -> TinyFashion:
    mirror = torchvision.datasets.FashionMNIST.mirrors[0]
    network.update({f"{mirror}{name}.gz": pack(content) for name, content in fashion.files.items()})
    return fashion


def raw_folder(root: Path) -> Path:
    return root / "FashionMNIST" / "raw"


def test_fashion_mnist_is_found_where_debian_puts_it(fashion: TinyFashion, root: Path) -> None:
    fashion.write(fashion_mnist.DEBIAN, packed=True)
    dataset = load_dataset("fashion-mnist")
    fashion.assert_loaded(dataset)
    assert dataset.title == "Fashion-MNIST"
    assert dataset.classes == tuple(torchvision.datasets.FashionMNIST.classes)
    assert dataset.source == str(fashion_mnist.DEBIAN)
    assert not root.exists()


def test_fashion_mnist_is_unpacked_from_files_placed_by_hand(fashion: TinyFashion, root: Path) -> None:
    fashion.write(raw_folder(root), packed=True)
    dataset = load_dataset("fashion-mnist")
    fashion.assert_loaded(dataset)
    assert dataset.source == str(raw_folder(root))


def test_fashion_mnist_prefers_the_data_root(fashion: TinyFashion, root: Path) -> None:
    fashion.write(fashion_mnist.DEBIAN, packed=True)
    fashion.write(raw_folder(root), packed=False)
    dataset = load_dataset("fashion-mnist")
    fashion.assert_loaded(dataset)
    assert dataset.source == str(raw_folder(root))


def test_fashion_mnist_takes_no_half_set(fashion: TinyFashion, root: Path) -> None:
    fashion.write(fashion_mnist.DEBIAN, packed=True)
    fashion.write(raw_folder(root), packed=False)
    (raw_folder(root) / "t10k-labels-idx1-ubyte").unlink()
    assert load_dataset("fashion-mnist").source == str(fashion_mnist.DEBIAN)


def test_fashion_mnist_is_downloaded(fashion_online: TinyFashion, root: Path, network: Network) -> None:
    dataset = load_dataset("fashion-mnist")
    fashion_online.assert_loaded(dataset)
    assert dataset.source == str(raw_folder(root))
    network.clear()
    assert load_dataset("fashion-mnist").sha256 == dataset.sha256


@pytest.mark.parametrize("number", range(4))
def test_fashion_mnist_trusts_no_interrupted_download(
    number: int, fashion_online: TinyFashion, root: Path, network: Network
) -> None:
    whole = dict(network)
    broken = list(whole)[number]
    network[broken] = whole[broken][:-20]
    with pytest.raises(DatasetError, match="corrupted"):
        load_dataset("fashion-mnist")
    network.update(whole)
    fashion_online.assert_loaded(load_dataset("fashion-mnist"))


def test_fashion_mnist_without_network_says_what_to_do(
    fashion: TinyFashion, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset("fashion-mnist")
    message = str(caught.value)
    assert message.startswith(f"Fashion-MNIST: neither found in {root} nor downloaded to it (")
    # The oldest supported torchvision prints the reason, and its exception has none.
    assert "Temporary failure in name resolution" in message + capsys.readouterr().err
    assert all(f"{name}.gz" in message for name in fashion.files)
    assert str(raw_folder(root)) in message
    assert "ROBUSTFDD_DATA" in message
    assert "\n" not in message


def test_a_data_root_that_is_a_file_is_an_error(fashion_online: TinyFashion, root: Path) -> None:
    root.touch()
    with pytest.raises(DatasetError, match=f"neither found in {root}"):
        load_dataset("fashion-mnist")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda packed: packed[:-3], "not readable"),
        (lambda packed: packed[: len(packed) // 2], "not readable"),
        (lambda packed: packed[:5], "not readable"),
        (lambda packed: flip_byte(packed, len(packed) // 2), "not readable|SHA-256"),
        (lambda packed: flip_byte(packed, len(packed) - 6), "not readable"),
        (lambda packed: b"", "no IDX header"),
        (lambda packed: b"<html>404</html>", "not readable"),
        (lambda packed: gzip.compress(b"not IDX" * 9), "no IDX header"),
        (lambda packed: gzip.compress(idx(np.zeros((3, 4), dtype=np.uint8))), "no IDX header"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "holds 2399 values, and its header says 2400"),
        (lambda packed: gzip.compress(gzip.decompress(packed) + b"\0"), "holds 2401 values"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:9]), "no IDX header"),
        (lambda packed: gzip.compress(flip_byte(gzip.decompress(packed), 999)), "is not the file of Fashion-MNIST"),
    ],
)
def test_a_damaged_gzip_file_is_named(spoil: Callable[[bytes], bytes], message: str, fashion: TinyFashion) -> None:
    fashion.write(fashion_mnist.DEBIAN, packed=True)
    file = fashion_mnist.DEBIAN / "train-images-idx3-ubyte.gz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DatasetError, match=rf"^Fashion-MNIST: {file} .*({message}).*; remove it"):
        load_dataset("fashion-mnist")


@pytest.mark.parametrize("name", list(fashion_mnist.SHA256))
@pytest.mark.parametrize("spoil", [lambda content: content[:-1], lambda content: flip_byte(content, len(content) - 1)])
def test_a_damaged_unpacked_file_is_named(
    name: str, spoil: Callable[[bytes], bytes], fashion: TinyFashion, root: Path
) -> None:
    fashion.write(raw_folder(root), packed=False)
    file = raw_folder(root) / name
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DatasetError, match=f"^Fashion-MNIST: {file} "):
        load_dataset("fashion-mnist")


# --- the subset that is shipped


@pytest.fixture
def tiny_mini(fashion: TinyFashion, root: Path, tmp_path: Path) -> Path:
    """A subset of 40 + 20 images cut from the tiny Fashion-MNIST by the cut_fashion_mnist_mini."""
    fashion.write(raw_folder(root), packed=True)
    file = tmp_path / "mini.npz"
    assert cut_fashion_mnist_mini.main(["--file", str(file), "--train", "40", "--test", "20", "--seed", "3"]) == 0
    return file


def test_mini_is_balanced_and_small() -> None:
    dataset = load_dataset("fashion-mnist-mini")
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.classes == fashion_mnist.CLASSES
    assert dataset.train.labels.bincount().tolist() == [600] * 10
    assert dataset.test.labels.bincount().tolist() == [100] * 10
    assert_statistics(dataset, dataset.train.images.numpy())
    folder = Path(str(fashion_mnist_mini.FILE)).parent
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5e6
    assert "Copyright (c) 2017 Zalando SE" in (folder / "LICENSE.fashion-mnist").read_text(encoding="utf-8")


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package dataset-fashion-mnist is absent"
)
def test_mini_is_cut_from_the_original(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", Path("/usr/share/datasets/fashion-mnist"))
    assert cut_fashion_mnist_mini.main(["--check"]) == 0
    assert capsys.readouterr().out == f"{fashion_mnist_mini.FILE}: ok\n"
    original = load_dataset("fashion-mnist")
    mini = load_dataset("fashion-mnist-mini")
    with np.load(str(fashion_mnist_mini.FILE), allow_pickle=False) as arrays:
        for kind, split, whole in (("train", mini.train, original.train), ("test", mini.test, original.test)):
            index = torch.from_numpy(arrays[f"{kind}_index"]).long()
            assert (index.diff() > 0).all()
            assert torch.equal(split.images, whole.images[index])
            assert torch.equal(split.labels, whole.labels[index])


def test_cutting_again_gives_the_same_bytes(tiny_mini: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    arguments = ["--file", str(other), "--train", "40", "--test", "20", "--seed"]
    assert cut_fashion_mnist_mini.main([*arguments, "3"]) == 0
    assert other.read_bytes() == tiny_mini.read_bytes()
    assert cut_fashion_mnist_mini.main([*arguments, "4"]) == 0
    assert other.read_bytes() != tiny_mini.read_bytes()
    with zipfile.ZipFile(tiny_mini) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_cut_is_stratified_and_from_the_right_split(fashion: TinyFashion, tiny_mini: Path) -> None:
    raw = fashion_mnist_mini.decode(tiny_mini.read_bytes(), "mini")
    with np.load(tiny_mini, allow_pickle=False) as arrays:
        train_index, test_index = arrays["train_index"], arrays["test_index"]
        assert dict(arrays["source_sha256"]) == fashion_mnist.SHA256
        assert arrays["seed"] == 3
    assert_holds(raw.train, fashion.train_images[train_index, None], fashion.train_labels[train_index])
    assert_holds(raw.test, fashion.test_images[test_index, None], fashion.test_labels[test_index])
    assert raw.train.labels.bincount().tolist() == [4] * 10
    assert raw.test.labels.bincount().tolist() == [2] * 10


def test_the_check_finds_any_change(tiny_mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cut_fashion_mnist_mini.main(["--file", str(tiny_mini), "--check"]) == 0
    with np.load(tiny_mini, allow_pickle=False) as archive:
        arrays = dict(archive)
    for name in ("train_images", "train_labels", "train_index", "test_images", "test_labels", "test_index"):
        changed = {**arrays, name: arrays[name].copy()}
        changed[name].flat[-1] += 1
        tiny_mini.write_bytes(cut_fashion_mnist_mini.encode(changed))
        capsys.readouterr()
        assert cut_fashion_mnist_mini.main(["--file", str(tiny_mini), "--check"]) == 1
        assert capsys.readouterr().out.endswith(f" in {name}\n")
    for name in ("seed", "source_sha256", "train_index"):
        tiny_mini.write_bytes(
            cut_fashion_mnist_mini.encode({other: array for other, array in arrays.items() if other != name})
        )
        assert cut_fashion_mnist_mini.main(["--file", str(tiny_mini), "--check"]) == 1


def test_the_check_of_a_damaged_file_says_so(tiny_mini: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_mini.write_bytes(tiny_mini.read_bytes()[:-10])
    assert cut_fashion_mnist_mini.main(["--file", str(tiny_mini), "--check"]) == 2
    assert f"{tiny_mini}: damaged" in capsys.readouterr().err


def test_a_flipped_byte_of_the_subset_is_noticed_or_harmless(tiny_mini: Path) -> None:
    content = tiny_mini.read_bytes()
    whole = fashion_mnist_mini.decode(content, "mini")
    noticed = 0
    for position in range(0, len(content), 3):
        try:
            found = fashion_mnist_mini.decode(flip_byte(content, position), "mini")
        except DatasetError:
            noticed += 1
        else:
            for split, expected in ((found.train, whole.train), (found.test, whole.test)):
                assert_holds(split, expected.images.numpy(), expected.labels.numpy())
    assert noticed > len(content) / 3 / 2


def test_pickled_objects_in_the_subset_are_refused(tmp_path: Path) -> None:
    objects = np.array([{}], dtype=object)
    np.savez(tmp_path / "bad.npz", train_images=objects, train_labels=objects)
    with pytest.raises(DatasetError, match="damaged"):
        fashion_mnist_mini.decode((tmp_path / "bad.npz").read_bytes(), "mini")


def test_a_missing_subset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist_mini, "FILE", tmp_path / "gone.npz")
    with pytest.raises(DatasetError, match=f"^{tmp_path}/gone.npz: not readable .*; install robustfdd again"):
        load_dataset("fashion-mnist-mini")


# --- CIFAR


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 and NumPy 1 wrote, the way the CIFAR files are: byte strings, integers for Booleans."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)

    def save_string(self, value: str | bytes) -> None:
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string

    def save_global(self, value: type, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(f"c{module}\n{value.__qualname__}\n".encode())
        self.memoize(value)

    dispatch[type] = save_global

    def reducer_override(self, value: object) -> Any:
        if isinstance(value, np.dtype):
            return np.dtype, (value.str[1:], 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def python2_pickle(value: object) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue()


class TinyCifar:
    """A CIFAR of 4 images for each file, of 32 x 32 pixels."""

    def __init__(self, dataset_class: Any, label_key: str, classes: list[str]) -> None:
        rng = np.random.default_rng(0)
        self.dataset_class = dataset_class
        self.classes = classes
        self.folder = dataset_class.base_folder
        self.files: dict[str, bytes] = {}
        self.splits = {}
        for kind, entries in (("train", dataset_class.train_list), ("test", dataset_class.test_list)):
            images = rng.integers(0, 256, (4 * len(entries), 3 * 32 * 32), dtype=np.uint8)
            labels = rng.integers(0, len(classes), len(images))
            self.splits[kind] = images.reshape(-1, 3, 32, 32), labels
            for number, (name, _) in enumerate(entries):
                part = slice(4 * number, 4 * number + 4)
                self.files[name] = python2_pickle({"data": images[part], label_key: labels[part].tolist()})
        self.files[dataset_class.meta["filename"]] = python2_pickle({dataset_class.meta["key"]: classes})
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, content in self.files.items():
                member = tarfile.TarInfo(f"{self.folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        self.archive = stream.getvalue()

    def patch_checksums(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sums = {name: md5(content) for name, content in self.files.items()}
        for attribute in ("train_list", "test_list"):
            entries = [[name, sums[name]] for name, _ in getattr(self.dataset_class, attribute)]
            monkeypatch.setattr(self.dataset_class, attribute, entries)
        meta = self.dataset_class.meta
        monkeypatch.setattr(self.dataset_class, "meta", {**meta, "md5": sums[meta["filename"]]})
        monkeypatch.setattr(self.dataset_class, "tgz_md5", md5(self.archive))

    def write(self, root: Path) -> None:
        (root / self.folder).mkdir(parents=True)
        for name, content in self.files.items():
            (root / self.folder / name).write_bytes(content)

    def assert_loaded(self, dataset: Dataset, root: Path) -> None:
        assert_holds(dataset.train, *self.splits["train"])
        assert_holds(dataset.test, *self.splits["test"])
        assert_statistics(dataset, self.splits["train"][0])
        assert dataset.train.images.is_contiguous()
        assert dataset.classes == tuple(self.classes)
        assert dataset.source == str(root / self.folder)


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, TinyCifar]:
    if request.param == "cifar10":
        tiny = TinyCifar(torchvision.datasets.CIFAR10, "labels", [f"class {i}" for i in range(10)])
    else:
        tiny = TinyCifar(torchvision.datasets.CIFAR100, "fine_labels", [f"class {i}" for i in range(100)])
    tiny.patch_checksums(monkeypatch)
    return request.param, tiny


def test_cifar_is_read_from_the_data_root(cifar: tuple[str, TinyCifar], root: Path) -> None:
    name, tiny = cifar
    tiny.write(root)
    dataset = load_dataset(name)
    tiny.assert_loaded(dataset, root)
    assert dataset.title == {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[name]


def test_cifar_is_downloaded_once_and_stdout_stays_clean(
    cifar: tuple[str, TinyCifar], root: Path, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    name, tiny = cifar
    network[tiny.dataset_class.url] = tiny.archive
    tiny.assert_loaded(load_dataset(name), root)
    network.clear()
    tiny.assert_loaded(load_dataset(name), root)
    assert capsys.readouterr().out == ""


def test_cifar_is_unpacked_from_an_archive_placed_by_hand(cifar: tuple[str, TinyCifar], root: Path) -> None:
    name, tiny = cifar
    with pytest.raises(DatasetError) as caught:
        load_dataset(name)
    message = str(caught.value)
    assert "name resolution" in message
    assert f"place {tiny.dataset_class.filename} ({tiny.dataset_class.url}) in {root}" in message
    root.mkdir(exist_ok=True)
    (root / tiny.dataset_class.filename).write_bytes(tiny.archive)
    tiny.assert_loaded(load_dataset(name), root)


@pytest.mark.parametrize("kind", ["train", "test", "meta"])
def test_a_flipped_byte_of_cifar_is_never_used(
    kind: str, cifar: tuple[str, TinyCifar], root: Path, network: Network
) -> None:
    name, tiny = cifar
    tiny.write(root)
    lists = {"train": tiny.dataset_class.train_list, "test": tiny.dataset_class.test_list}
    file = tiny.dataset_class.meta["filename"] if kind == "meta" else lists[kind][-1][0]
    (root / tiny.folder / file).write_bytes(flip_byte(tiny.files[file], len(tiny.files[file]) // 2))
    with pytest.raises(DatasetError, match=r"^CIFAR-10"):
        load_dataset(name)
    if kind != "meta":
        network[tiny.dataset_class.url] = tiny.archive
        tiny.assert_loaded(load_dataset(name), root)


def test_an_interrupted_download_of_cifar_is_repeated(
    cifar: tuple[str, TinyCifar], root: Path, network: Network
) -> None:
    name, tiny = cifar
    network[tiny.dataset_class.url] = tiny.archive[:-100]
    with pytest.raises(DatasetError, match="wrong MD5 sum are not used and are downloaded again"):
        load_dataset(name)
    network[tiny.dataset_class.url] = tiny.archive
    tiny.assert_loaded(load_dataset(name), root)


# --- SVHN


class TinySvhn:
    """An SVHN of 12 + 6 images of 32 x 32 pixels, the digit 0 stored as class 10."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.files = {}
        self.splits = {}
        for kind, n in (("train", 12), ("test", 6)):
            images = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
            labels = (np.arange(n) % 10 + 1)[:, None].astype(np.uint8)
            stream = io.BytesIO()
            scipy.io.savemat(stream, {"X": images, "y": labels}, do_compression=True)
            self.files[kind] = stream.getvalue()
            # The definition, pixel by pixel, rather than the loader's transposition.
            expected = np.empty((n, 3, 32, 32), dtype=np.uint8)
            for i in range(n):
                for c in range(3):
                    expected[i, c] = images[:, :, c, i]
            self.splits[kind] = expected, np.array([label % 10 for label in labels[:, 0]])


@pytest.fixture
def svhn(monkeypatch: pytest.MonkeyPatch) -> TinySvhn:
    tiny = TinySvhn()
    entries = torchvision.datasets.SVHN.split_list
    sums = {kind: [*entries[kind][:2], md5(content)] for kind, content in tiny.files.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", {**entries, **sums})
    return tiny


def svhn_file(root: Path, kind: str) -> Path:
    return root / str(torchvision.datasets.SVHN.split_list[kind][1])


def svhn_url(kind: str) -> str:
    return str(torchvision.datasets.SVHN.split_list[kind][0])


def test_svhn_is_downloaded_once_and_digit_0_is_class_0(
    svhn: TinySvhn, root: Path, network: Network, capsys: pytest.CaptureFixture[str]
) -> None:
    network.update({svhn_url(kind): content for kind, content in svhn.files.items()})
    for _ in range(2):
        dataset = load_dataset("svhn")
        assert_holds(dataset.train, *svhn.splits["train"])
        assert_holds(dataset.test, *svhn.splits["test"])
        assert_statistics(dataset, svhn.splits["train"][0])
        assert dataset.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
        assert (dataset.title, dataset.source) == ("SVHN", str(root))
        network.clear()
    assert capsys.readouterr().out == ""


def test_svhn_without_network_says_what_to_place_where(svhn: TinySvhn, root: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset("svhn")
    message = str(caught.value)
    assert message.startswith(f"SVHN: neither found in {root}")
    for kind in ("train", "test"):
        assert f"{svhn_file(root, kind).name} ({svhn_url(kind)})" in message


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_flipped_byte_of_svhn_is_never_used(kind: str, svhn: TinySvhn, root: Path, network: Network) -> None:
    root.mkdir()
    for other, content in svhn.files.items():
        svhn_file(root, other).write_bytes(content)
    svhn_file(root, kind).write_bytes(flip_byte(svhn.files[kind], 500))
    with pytest.raises(DatasetError, match=r"^SVHN: "):
        load_dataset("svhn")
    network[svhn_url(kind)] = svhn.files[kind]
    assert_holds(load_dataset("svhn").train, *svhn.splits["train"])
