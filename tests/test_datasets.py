from __future__ import annotations

import hashlib
import pkgutil
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from robustfdd import datasets
from robustfdd.datasets import DATASETS, Dataset, Split, base, load_dataset
from robustfdd.datasets.base import DatasetSpec, RawData, data_root, pixel_statistics, register, to_pixels
from robustfdd.errors import ConfigurationError, DatasetError

# test_indices is reached through its module, because pytest would take the bare name for a test.


def split(n: int, *, classes: int = 3, shape: tuple[int, ...] = (2, 5, 4), seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Split(torch.from_numpy(images), torch.from_numpy(rng.integers(0, classes, n)))


def raw(**changes: object) -> RawData:
    parts: dict[str, object] = {"classes": ("a", "b", "c"), "train": split(30), "test": split(20, seed=1), "source": ""}
    return RawData(**{**parts, **changes})  # type: ignore[arg-type]


def build(data: RawData) -> Dataset:
    return Dataset.from_raw(data, name="toy", title="Toy")


# --- pixels and their statistics


def test_to_pixels_divides_every_byte_by_255() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(2, 2, 8, 8)
    pixels = to_pixels(values)
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(
        pixels.numpy(), np.arange(256, dtype=np.float32).reshape(2, 2, 8, 8) / np.float32(255)
    )


@pytest.mark.gpu
def test_to_pixels_gives_the_same_on_cuda() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(values.cuda()).cpu(), to_pixels(values))


@pytest.mark.parametrize("chunk", [7, 10**9])
@pytest.mark.parametrize(("low", "high"), [(0, 256), (250, 256), (0, 2)])
def test_statistics_are_numpys_in_double_precision(
    low: int, high: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_CHUNK", chunk)
    images = np.random.default_rng(3).integers(low, high, (11, 3, 6, 5), dtype=np.uint8)
    mean, std = pixel_statistics(torch.from_numpy(images))
    pixels = images.astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean(), rel=1e-14)
    assert std == pytest.approx(pixels.std(), rel=1e-12)


def test_statistics_are_exact_where_rounding_would_show() -> None:
    # One pixel of 255 among many of 254: the variance is far below what float32 sums can tell from 0.
    images = torch.full((1000, 1, 28, 28), 254, dtype=torch.uint8)
    images[0, 0, 0, 0] = 255
    n = images.numel()
    mean, std = pixel_statistics(images)
    assert mean == float(Fraction(254 * n + 1, 255 * n))
    assert std == pytest.approx(float(Fraction(n - 1, n * n * 255 * 255)) ** 0.5, rel=1e-15)


def test_statistics_are_of_the_training_split_alone() -> None:
    data = raw()
    dataset = build(data)
    assert (dataset.mean, dataset.std) == pixel_statistics(data.train.images)
    other = build(raw(test=split(20, seed=2)))
    assert (dataset.mean, dataset.std) == (other.mean, other.std)


# --- Dataset and Split


def test_dataset_says_what_it_holds() -> None:
    dataset = build(raw(source="here"))
    assert (dataset.name, dataset.title, dataset.source) == ("toy", "Toy", "here")
    assert dataset.n_classes == 3
    assert dataset.image_shape == (2, 5, 4)
    assert (len(dataset.train), len(dataset.test)) == (30, 20)


def test_hash_is_of_the_bytes_of_both_splits() -> None:
    data = raw()
    reference = hashlib.sha256()
    for part in (data.train, data.test):
        reference.update(part.images.numpy().tobytes())
        reference.update(b"".join(int(label).to_bytes(8, "little") for label in part.labels))
    assert build(data).sha256 == reference.hexdigest()


def test_hash_does_not_depend_on_the_layout_in_memory() -> None:
    data = raw()
    turned = Split(data.train.images.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1), data.train.labels)
    assert not turned.images.is_contiguous()
    assert build(raw(train=turned)).sha256 == build(data).sha256


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("field", ["images", "labels"])
def test_hash_changes_with_any_value(part: str, field: str) -> None:
    changed = {"train": split(30), "test": split(20, seed=1)}
    values = getattr(changed[part], field)
    values.view(-1)[-1] = (values.view(-1)[-1] + 1) % 3
    assert build(raw(**changed)).sha256 != build(raw()).sha256


def test_to_moves_images_and_labels_and_keeps_bytes() -> None:
    dataset = build(raw())
    moved = dataset.to("meta")
    tensors = (moved.train.images, moved.train.labels, moved.test.images, moved.test.labels)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.train.images.dtype == moved.test.images.dtype == torch.uint8
    assert (moved.mean, moved.std, moved.sha256) == (dataset.mean, dataset.std, dataset.sha256)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64), "images must be uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(N, C, H, W\)"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32), "labels must be int64"),
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"shape \(2,\)"),
        (torch.zeros(0, 1, 3, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "no images"),
    ],
)
def test_split_refuses_other_tensors(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Split(images, labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b")}, "training labels run from 0 to 2, allowed: 0 to 1"),
        ({"test": split(20, classes=4)}, "test labels run from 0 to 3, allowed: 0 to 2"),
        ({"classes": ("a", "b", "a")}, "different names"),
        ({"classes": ("a",)}, "at least two classes"),
        ({"test": split(20, shape=(2, 4, 5))}, r"\(2, 5, 4\), test images \(2, 4, 5\)"),
        (
            {"train": Split(torch.full((4, 2, 5, 4), 9, dtype=torch.uint8), torch.arange(4) % 3)},
            "all pixels of all training images are the same",
        ),
    ],
)
def test_data_that_no_model_can_use_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DatasetError, match=rf"^toy: .*{message}"):
        build(raw(**changes))


def test_negative_labels_are_refused() -> None:
    bad = Split(split(4).images, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(DatasetError, match="labels run from -1 to 2"):
        build(raw(train=bad))


# --- the registry


def test_the_data_sets_of_the_package_are_registered() -> None:
    assert set(DATASETS) == {"cifar10", "cifar100", "fashion-mnist", "fashion-mnist-mini", "svhn"}
    assert all(spec.name == name and spec.title and spec.summary for name, spec in DATASETS.items())


def test_every_module_of_the_package_is_imported() -> None:
    assert all(f"robustfdd.datasets.{module.name}" in sys.modules for module in pkgutil.iter_modules(datasets.__path__))


def test_a_registered_data_set_is_loaded_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    roots = []

    def load(root: Path) -> RawData:
        roots.append(root)
        return raw()

    monkeypatch.setattr(DATASETS, "_parts", {"toy": DatasetSpec(name="toy", title="Toy", summary="", load=load)})
    monkeypatch.setenv("ROBUSTFDD_DATA", str(tmp_path / "environment"))
    dataset = load_dataset("toy", root=tmp_path / "argument")
    assert (dataset.name, dataset.title) == ("toy", "Toy")
    assert load_dataset("toy", device="meta").train.images.device.type == "meta"
    assert roots == [tmp_path / "argument", tmp_path / "environment"]


def test_a_name_is_registered_once() -> None:
    before = dict(DATASETS)
    with pytest.raises(ConfigurationError, match="'svhn' is registered already"):
        register(DATASETS["svhn"])
    assert before == DATASETS


def test_unknown_name_lists_the_allowed_ones_and_the_closest() -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset("cifar-10")
    message = str(caught.value)
    assert "unknown data set 'cifar-10'; did you mean 'cifar10'?" in message
    assert all(name in message for name in DATASETS)
    assert "folder:PATH" in message
    with pytest.raises(DatasetError) as caught:
        load_dataset("zzz")
    assert "did you mean" not in str(caught.value)


# --- the data root


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("ROBUSTFDD_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("no_variables")
def test_data_root_is_argument_then_variable_then_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert data_root() == home / ".cache" / "robustfdd" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert data_root() == home / ".cache" / "robustfdd" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "robustfdd" / "data"
    monkeypatch.setenv("ROBUSTFDD_DATA", "")
    assert data_root() == tmp_path / "cache" / "robustfdd" / "data"
    monkeypatch.setenv("ROBUSTFDD_DATA", "~/sets")
    assert data_root() == home / "sets"
    assert data_root(tmp_path / "given") == tmp_path / "given"


@pytest.mark.usefixtures("no_variables")
def test_data_root_without_a_home_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match="set ROBUSTFDD_DATA"):
        data_root("~no-such-user-robustfdd/data")


# --- the choice of test images


def slow_choice(labels: list[int], n: int, seed: int) -> list[int]:
    """Webster's apportionment, one image at a time and in fractions."""
    keys = [int(key) for key in np.random.PCG64(seed).random_raw(len(labels))]
    waiting = {
        label: sorted((i for i, other in enumerate(labels) if other == label), key=keys.__getitem__)
        for label in set(labels)
    }
    size = {label: len(positions) for label, positions in waiting.items()}
    chosen: list[int] = []
    for _ in range(n):
        rivals = []
        for label, positions in waiting.items():
            if positions:
                taken = size[label] - len(positions)
                rivals.append((Fraction(2 * taken + 1, 2 * size[label]), keys[positions[0]], label))
        chosen.append(waiting[min(rivals)[2]].pop(0))
    return sorted(chosen)


@pytest.mark.parametrize("sizes", [(10, 10, 10), (20, 12, 7), (1, 30, 2), (25,)])
def test_choice_is_websters(sizes: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for n in range(1, len(labels)):
        chosen = base.test_indices(torch.from_numpy(labels), n, seed=4)
        assert chosen.tolist() == slow_choice(labels.tolist(), n, seed=4)


def test_classes_of_equal_size_differ_by_at_most_one_image() -> None:
    labels = torch.arange(10).repeat(50)
    for n in (1, 7, 10, 64, 128, 200, 499):
        counts = labels[base.test_indices(labels, n, seed=1)].bincount(minlength=10)
        assert counts.sum() == n
        assert counts.max() - counts.min() == (1 if n % 10 else 0)


def test_classes_of_other_sizes_keep_their_share() -> None:
    labels = torch.repeat_interleave(torch.tensor([800, 150, 50]))
    assert labels[base.test_indices(labels, 100, seed=0)].bincount().tolist() == [80, 15, 5]


def test_choice_is_ascending_without_repetition_and_reproducible() -> None:
    labels = torch.arange(10).repeat(50)
    chosen = base.test_indices(labels, 123, seed=3)
    assert chosen.dtype == torch.int64
    assert (chosen.diff() > 0).all()
    assert torch.equal(chosen, base.test_indices(labels, 123, seed=3))
    assert not torch.equal(chosen, base.test_indices(labels, 123, seed=4))


def test_a_larger_choice_contains_the_smaller() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, 200))
    larger = {200: set(range(200))}
    for n in range(199, 0, -1):
        larger[n] = set(base.test_indices(labels, n, seed=0).tolist())
        assert larger[n] < larger[n + 1]


def test_no_image_and_no_class_is_favoured() -> None:
    labels = torch.arange(4).repeat(10)
    n, n_seeds = 10, 800
    times = torch.zeros(40)
    for seed in range(n_seeds):
        times[base.test_indices(labels, n, seed)] += 1
    share = n / 40
    # Five standard deviations; the seeds are fixed, so this cannot fail by chance later.
    assert (times - n_seeds * share).abs().max() < 5 * (n_seeds * share * (1 - share)) ** 0.5
    of_class = times.view(10, 4).sum(0)
    # Two of the four classes have one image more, each with probability 1/2.
    assert (of_class - n_seeds * n / 4).abs().max() < 5 * (n_seeds / 4) ** 0.5


def test_more_than_there_are_means_all() -> None:
    labels = torch.tensor([2, 0, 1, 1])
    for n in (4, 5, 10**9):
        assert base.test_indices(labels, n, seed=0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("n", "seed", "message"), [(0, 0, "at least 1, not 0"), (-3, 0, "not -3"), (1, -1, "seed")])
def test_a_choice_of_nothing_is_refused(n: int, seed: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        base.test_indices(torch.zeros(5, dtype=torch.int64), n, seed)
