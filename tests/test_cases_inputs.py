"""What people bring: models that cannot be trained as ours are, images of more bits, weights of any kind, radii."""

from __future__ import annotations

import pickle
import re
import struct
import sys
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from test_cli import attack_with, invoke, refused
from torch import Tensor, nn

import robustfdd
from robustfdd import (
    CheckpointError,
    DatasetError,
    ModelContractError,
    Threat,
    TrainingError,
    UnitError,
    build_model,
    load_dataset,
    train,
)
from robustfdd.audit import INDICATORS, AuditedAttack, Evidence, Finding, audit_model
from robustfdd.audit.indicators.noisy_surface import roughness
from robustfdd.audit.run import clean_of
from robustfdd.classifier import frozen, weights_digest
from robustfdd.cli import conclusion
from robustfdd.datasets.base import Dataset, RawData, Split
from robustfdd.datasets.bit_depth import bits_per_channel
from robustfdd.foreign import load_factory
from robustfdd.layout import image_layout
from robustfdd.specs import EpsUnit, Recipe, eps_in, threat_of, unit_asked_for
from robustfdd.text import on_one_screen, reason
from robustfdd.training import fit
from robustfdd.units import TestSet

PGD: dict[str, Any] = {"attack": "pgd", "eps": 0.05, "steps": 1}
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=0.01)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x.flatten(1))


# --- the layout of images --------------------------------------------------------------------------------------------


class Views(nn.Module):
    """Every tutorial's network: it looks at the image, and at what a convolution makes of it, through ``view``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(3, 2, 3, padding=1)
        self.linear = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).view(len(x), -1)
        return self.linear(x.view(len(x), -1)) + maps[:, :4]


class Volume(Views):
    """The channels as depth: the weight of the convolution has five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x.view(len(x), 1, 3, 8, 8)).view(len(x), -1))


class Sequence(Views):
    """The image as one line of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x.view(len(x), 1, -1)).view(len(x), -1))


@pytest.fixture(scope="module")
def colours() -> Dataset:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (40, 3, 8, 8), dtype=np.uint8))
    split = Split(images, torch.arange(40) % 4)
    return Dataset.from_raw(RawData(("a", "b", "c", "d"), split, split, "made here"), name="colours", title="Colours")


@pytest.mark.parametrize("adversarial", [None, PGD])
@pytest.mark.parametrize("kind", [Views, Volume, Sequence])
def test_no_layout_is_forced_on_a_model_that_cannot_take_it(
    kind: type[nn.Module], adversarial: dict[str, Any] | None, colours: Dataset, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.01, adversarial=adversarial)
    model = kind()
    before = weights_digest(model)
    train(model, colours, recipe, seed=0, out=tmp_path / "m.safetensors")
    assert weights_digest(model) != before


@pytest.mark.parametrize("adversarial", [None, PGD])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_come_in_the_layout_of_the_weights(
    layout: torch.memory_format, adversarial: dict[str, Any] | None, colours: Dataset
) -> None:
    model = build_model(colours, "none", width=8).to(memory_format=layout)
    seen = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous(memory_format=layout)))
    fit(model, colours.train, Recipe(epochs=1, batch_size=20, adversarial=adversarial), seed=0)
    assert seen == [True] * (4 if adversarial else 2)


def test_networks_come_in_channels_last_where_that_is_safe(colours: Dataset) -> None:
    """In channels-last, oneDNN overwrites memory in strided convolutions of one pixel with fewer than 8 channels."""
    for width, expected in ((1, torch.contiguous_format), (7, torch.contiguous_format), (8, torch.channels_last)):
        model = build_model(colours, "none", width=width)
        assert image_layout(model) == expected
        narrow = [
            m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.in_channels < 8
        ]
        assert bool(narrow) == (width < 8)


@pytest.mark.parametrize("name", ["none", "fdd-2d"])
def test_trying_a_model_before_training_changes_no_bit_of_it(name: str, quarters: Dataset, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=32, augmentation="crop-flip")
    tried, plain = (build_model(quarters, name, width=2) for _ in range(2))
    train(tried, quarters, recipe, seed=3, out=tmp_path / "m.safetensors")
    fit(plain, quarters.train, recipe, seed=3)
    assert weights_digest(tried) == weights_digest(plain)


# --- models that fail in training ------------------------------------------------------------------------------------


class InTraining(Linear):
    """A linear model that answers otherwise in training mode."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return self.otherwise(x, logits) if self.training else logits

    def otherwise(self, x: Tensor, logits: Tensor) -> Any:
        raise NotImplementedError


class Raises(InTraining):
    def otherwise(self, x: Tensor, logits: Tensor) -> Any:
        raise ValueError("\x1b[1min\n  colour\x1b[0m")


class LastBatch(InTraining):
    def otherwise(self, x: Tensor, logits: Tensor) -> Any:
        return logits.view(32, 4)


class TwoOutputs(InTraining):
    def otherwise(self, x: Tensor, logits: Tensor) -> Any:
        return logits, logits


class FewLogits(InTraining):
    def otherwise(self, x: Tensor, logits: Tensor) -> Any:
        return logits[:, :3]


class Detached(InTraining):
    def otherwise(self, x: Tensor, logits: Tensor) -> Any:
        return logits.detach()


class Frozen(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Empty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] * 10


class TooFew(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :3]


class Fails(Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise OSError("no licence")


class ItsOwnTrain(Linear):
    def train(self, loader: object, epochs: int) -> Any:  # type: ignore[override]  # the mistake that is tested
        raise AssertionError("not here")


class NoBackward(InTraining):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            return logits.clone()

    def otherwise(self, x: Tensor, logits: Tensor) -> Any:
        return self.Function.apply(logits)


BROKEN = {
    Raises: r"the model fails in training on a batch of shape \(32, 1, 8, 8\): ValueError: in colour$",
    LastBatch: r"the model fails in training on a batch of shape \(8, 1, 8, 8\): RuntimeError: shape '\[32, 4\]'",
    TwoOutputs: r"in training mode too, with K at least 4, not a tuple",
    FewLogits: r"in training mode too, with K at least 4, not a tensor of shape \(32, 3\)",
    Detached: r"cannot be trained: its logits do not depend on any parameter",
    Frozen: r"cannot be trained: it has no parameter",
    Empty: r"cannot be trained: it has no parameter",
    TooFew: r"the model must return 4 logits an image",
    Fails: r"the model fails .*OSError: no licence",
    ItsOwnTrain: r"the model fails .*train\(\)",
    NoBackward: r"the model fails in training on a batch of shape \(32, 1, 8, 8\): NotImplementedError",
}


@pytest.mark.parametrize("adversarial", [None, PGD])
@pytest.mark.parametrize(("kind", "says"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_a_model_raises_in_training_is_one_message(
    kind: type[nn.Module], says: str, adversarial: dict[str, Any] | None, quarters: Dataset, tmp_path: Path
) -> None:
    few = replace(quarters, train=Split(quarters.train.images[:40], quarters.train.labels[:40]))
    recipe = RECIPE.changed({"adversarial": adversarial})
    with pytest.raises(ModelContractError, match=says) as raised:
        train(kind(), few, recipe, seed=0, out=tmp_path / "here" / "m.safetensors")
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "here").iterdir()) == []


def test_a_train_that_returns_nothing_is_trained(quarters: Dataset, tmp_path: Path) -> None:
    class ReturnsNothing(Linear):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]  # as many have it
            super().train(mode)

    train(ReturnsNothing(), quarters, RECIPE, seed=0, out=tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").is_file()


def test_what_a_checkpoint_cannot_hold_is_said_before_training(quarters: Dataset, tmp_path: Path) -> None:
    model = Linear()
    model.register_buffer("mix", torch.eye(3).to_sparse())
    seen: list[int] = []
    with pytest.raises((CheckpointError, ModelContractError), match=r"mix|sparse"):
        train(model, quarters, RECIPE, seed=0, out=tmp_path / "m.safetensors", advance=seen.append)
    assert not seen


def test_memory_that_runs_out_says_what_to_lower_and_keeps_the_snapshot(quarters: Dataset, tmp_path: Path) -> None:
    class Hungry(Linear):
        calls = 0

        def forward(self, x: Tensor) -> Any:
            self.calls += self.training
            if self.calls == 6:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    with pytest.raises(UnitError, match=r"lower recipe\.batch_size"):
        train(Hungry(), quarters, RECIPE.changed({"epochs": 2}), seed=0, out=tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.glob("m*")] == ["m.partial.safetensors"]


# --- a training that diverged leaves nothing -------------------------------------------------------------------------


def one_step(quarters: Dataset, learning_rate: float) -> Recipe:
    """A single step, whose loss is that before it."""
    return Recipe(epochs=1, batch_size=len(quarters.train), learning_rate=learning_rate, schedule="constant")


class Steep(Linear):
    """Gradients that make a step of 1e38 go to infinity."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * 1e3


class Overflows(Linear):
    """Logits that no float holds, of weights that one does."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) ** 3 * 1e3


@pytest.mark.parametrize(
    ("kind", "learning_rate", "says"),
    [
        (Steep, 1e38, r"parameters and buffers hold NaN or infinities after epoch 1, linear\.\w+ among them"),
        (Linear, 1e39, r"a step cannot be made .*lower recipe\.learning_rate"),
        (Overflows, 1e18, "NaN or infinite logits"),
        (None, 1e30, r"lower recipe\.learning_rate"),
    ],
)
def test_weights_of_a_training_whose_last_step_diverged_are_not_written(
    kind: type[nn.Module] | None, learning_rate: float, says: str, quarters: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "here" / "m.safetensors"
    train(Linear(), quarters, RECIPE, seed=0, out=out)
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    model = kind() if kind else build_model(quarters, "none", width=2)
    with pytest.raises(TrainingError, match=says):
        train(model, quarters, one_step(quarters, learning_rate), seed=0, out=out)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before


def test_a_divergence_in_the_last_step_is_one_message_of_the_command(quarters: Dataset, tmp_path: Path) -> None:
    zoo = folder(tmp_path / "zoo", lambda path, k: Image.new("L", (8, 8), 60 + 90 * k).save(path))
    result = invoke(
        *("train", "--dataset", f"folder:{zoo}", "--dropout", "none", "--epochs", 1, "--width", 1),
        *("--out", "out/m.safetensors", "--set", "learning_rate=1e30"),
    )
    assert result.exit_code == 1
    assert "lower recipe.learning_rate" in result.output
    assert "Traceback" not in result.output
    assert list(Path("out").iterdir()) == []


def test_infinities_that_were_there_before_are_no_divergence(quarters: Dataset, tmp_path: Path) -> None:
    model = Linear()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    train(model, quarters, RECIPE, seed=0, out=tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").is_file()


def test_no_snapshot_holds_what_is_not_finite(quarters: Dataset, tmp_path: Path) -> None:
    recipe = one_step(quarters, 1e38).changed({"epochs": 3})
    with pytest.raises(TrainingError, match="after epoch 1"):
        train(Steep(), quarters, recipe, seed=0, out=tmp_path / "here" / "m.safetensors")
    assert list((tmp_path / "here").iterdir()) == []


# --- images of more than 8 bits --------------------------------------------------------------------------------------


def folder(root: Path, write: Callable[[Path, int], object], suffix: str = "png") -> Path:
    """Two classes of two images in each split, written by ``write(path, class)``."""
    for split in ("train", "test"):
        for k in range(2):
            (root / split / f"c{k}").mkdir(parents=True)
            for i in range(2):
                write(root / split / f"c{k}" / f"{i}.{suffix}", k)
    return root


def png(bits: int, colour: int, channels: int) -> bytes:
    """A 4x4 PNG file of so many bits a channel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes(range(4 * channels * bits // 8))) * 4
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(range(48))) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(bits: int, channels: int, sample_format: int = 1) -> bytes:
    """An uncompressed 4x4 TIFF file, little-endian."""
    values = {256: (4,), 257: (4,), 258: (bits,) * channels, 259: (1,), 262: (2 if channels > 2 else 1,), 273: (0,)}
    values |= {277: (channels,), 278: (4,), 279: (2 * channels * bits,), 339: (sample_format,) * channels}
    entries, extra, start = b"", b"", 8 + 2 + 12 * len(values) + 4
    for tag, of_tag in values.items():
        field = struct.pack(f"<{len(of_tag)}H", *of_tag)
        if tag == 273:
            entries += b"%offset"
            continue
        if len(field) > 4:
            extra, field = extra + field, struct.pack("<I", start + len(extra))
        entries += struct.pack("<HHI", tag, 3, len(of_tag)) + field.ljust(4, b"\0")
    entries = entries.replace(b"%offset", struct.pack("<HHII", 273, 4, 1, start + len(extra)))
    data = bytes(range(2 * channels * bits))
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + struct.pack("<I", 0) + extra + data


def ppm(kind: str, largest: int) -> bytes:
    n = (3 if kind == "P6" else 1) * (2 if largest > 255 else 1)
    return f"{kind}\n# a note\n4 4\n{largest}\n".encode() + bytes(16 * n)


def sgi(bytes_per_channel: int) -> bytes:
    head = struct.pack(">HBBHHHH", 474, 0, bytes_per_channel, 3, 4, 4, 3)
    return head.ljust(512, b"\0") + bytes(range(48)) * bytes_per_channel


DEEP = {
    "rgb48.png": png(16, 2, 3),
    "rgba64.png": png(16, 6, 4),
    "la32.png": png(16, 4, 2),
    "l16.png": png(16, 0, 1),
    "rgb48.tiff": tiff(16, 3),
    "l16.tiff": tiff(16, 1),
    "rgb48.ppm": ppm("P6", 65535),
    "rgb10.ppm": ppm("P6", 1023),
    "l16.pgm": ppm("P5", 65535),
    "rgb48.sgi": sgi(2),
}
SHALLOW = {
    **{f"{bits}.png": png(bits, 0, 1) for bits in (2, 4, 8)},
    "rgb.png": png(8, 2, 3),
    "rgba.png": png(8, 6, 4),
    "la.png": png(8, 4, 2),
    "palette.png": png(4, 3, 1),
    "rgb.tiff": tiff(8, 3),
    "l.tiff": tiff(8, 1),
    "rgb.ppm": ppm("P6", 255),
    "dark.ppm": ppm("P6", 15),
    "l.pgm": ppm("P5", 255),
    "rgb.sgi": sgi(1),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused_in_every_format(name: str, tmp_path: Path) -> None:
    folder(tmp_path / "zoo", lambda path, _: path.write_bytes(DEEP[name]), name.partition(".")[2])
    with pytest.raises(DatasetError, match=r"train/c0/0\.\w+: has more than 8 bits a channel .*convert it to 8 bits"):
        load_dataset(f"folder:{tmp_path / 'zoo'}")


@pytest.mark.parametrize("name", SHALLOW)
def test_eight_bits_and_fewer_are_read_in_every_format(name: str, tmp_path: Path) -> None:
    def write(path: Path, k: int) -> None:
        path.write_bytes(SHALLOW[name])

    suffix = name.partition(".")[2]
    folder(tmp_path / "zoo", write, suffix)
    # So that not all are of one colour.
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).save(tmp_path / "zoo/train/c0/z.bmp")
    assert load_dataset(f"folder:{tmp_path / 'zoo'}").image_shape[1:] == (4, 4)


def test_values_with_a_sign_are_refused(tmp_path: Path) -> None:
    folder(tmp_path / "zoo", lambda path, _: path.write_bytes(tiff(8, 1, sample_format=2)), "tiff")
    with pytest.raises(DatasetError, match="no unsigned whole numbers"):
        load_dataset(f"folder:{tmp_path / 'zoo'}")


@pytest.mark.parametrize(("marks", "bits"), [(0x00, 8), (0x40, 10), (0x60, 12)])
def test_the_depth_of_avif_is_read(marks: int, bits: int, tmp_path: Path) -> None:
    file = tmp_path / "x.avif"
    file.write_bytes(b"\0\0\0\x0cav1C\x81\x04" + bytes([marks | 0x0C]) + b"\0")
    assert bits_per_channel(SimpleNamespace(format="AVIF"), file) == bits  # type: ignore[arg-type]  # no decoder needed


@pytest.mark.skipif("JPEG2000" not in Image.registered_extensions().values(), reason="Pillow without JPEG 2000")
def test_the_depth_of_jpeg_2000_is_read(tmp_path: Path) -> None:
    file = tmp_path / "x.jp2"
    Image.new("RGB", (4, 4)).save(file)
    with Image.open(file) as image:
        assert bits_per_channel(image, file) == 8
    content = bytearray(file.read_bytes())
    at = content.index(b"\xff\x4f\xff\x51") + 42
    content[at : at + 9 : 3] = bytes([11, 11, 11])
    file.write_bytes(content)
    with Image.open(file) as image:
        assert bits_per_channel(image, file) == 12


def test_a_format_whose_depth_is_not_known_is_refused(tmp_path: Path) -> None:
    folder(tmp_path / "zoo", lambda path, k: Image.new("RGB", (16, 16), (k, 2, 3)).save(path, "DDS"), "dds")
    with pytest.raises(DatasetError, match=r"cannot be told in format DDS; allowed: .*PNG"):
        load_dataset(f"folder:{tmp_path / 'zoo'}")


# --- names of classes ------------------------------------------------------------------------------------------------


def zoo(root: Path, train_names: list[str], test_names: list[str]) -> Path:
    for split, names in (("train", train_names), ("test", test_names)):
        for k, name in enumerate(names):
            (root / split / name).mkdir(parents=True)
            Image.new("L", (2, 2), 50 * k + 10).save(root / split / name / "0.png")
    return root


def decomposed(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def test_a_name_written_in_two_ways_is_one_class(tmp_path: Path) -> None:
    # In the order of the composed form café follows cafz, in that of the decomposed one it does not.
    names = ["café", "cafz"]
    dataset = load_dataset(f"folder:{zoo(tmp_path, names, [decomposed(name) for name in names])}")
    assert dataset.classes == ("cafz", "café")
    for split in (dataset.train, dataset.test):
        assert {int(image.max()): int(label) for image, label in zip(split.images, split.labels, strict=True)} == {
            10: 1,
            60: 0,
        }


def test_a_checkpoint_knows_its_classes_however_they_are_written(tmp_path: Path) -> None:
    dataset = load_dataset(f"folder:{zoo(tmp_path, ['café', 'cafz'], ['café', 'cafz'])}")
    older = replace(dataset, classes=tuple(decomposed(name) for name in dataset.classes))
    robustfdd.models.check_same_data(build_model(older, "none", width=1).config, dataset, "m.safetensors")


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    zoo(tmp_path, ["café", decomposed("café"), "x"], ["café", "x"])
    with pytest.raises(DatasetError, match=r"'cafe\\u0301' and 'caf\\xe9' have the same name"):
        load_dataset(f"folder:{tmp_path}")


def test_names_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    zoo(tmp_path, ["cat", "dog"], ["c\u0430t", "dog"])  # a Cyrillic letter
    with pytest.raises(DatasetError, match=r"class 'cat' is in train but not in test, where .*'c\\u0430t'"):
        load_dataset(f"folder:{tmp_path}")


# --- weights ---------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


NET = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))\n"


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"net_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(NET)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return f"{name}:net"


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bad_weights(kind: str) -> Path:
    """A file that holds no weights of the factory's model, or none that can be read."""
    path = Path("w.safetensors" if "safetensors" in kind else "w.pt")
    good = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).state_dict()
    contents: dict[str, Any] = {
        "whole module": Net(),
        "list": [1, 2],
        "under model": {"model": good, "epoch": 3},
        "prefix": {f"module.{key}": value for key, value in good.items()},
        "shape": {"1.weight": torch.zeros(4, 65), "1.bias": torch.zeros(4)},
        "truncated": good,
    }
    if kind in contents:
        torch.save(contents[kind], path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated safetensors":
        save_file(good, path)
    elif kind == "torch named safetensors":
        torch.save(good, path)
    elif kind == "unnamed":
        save_file(good, path)
    elif kind == "script":
        torch.jit.save(torch.jit.trace(Net(), torch.rand(1, 64)), path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}, protocol=5))
    elif kind != "missing":
        path.write_bytes(
            {"empty": b"", "page": b"\n<!DOCTYPE html><p>404", "lfs": b"version https://git-lfs.x\n"}[kind]
        )
    if kind.startswith("truncated"):
        half(path)
    return path


BAD_WEIGHTS = {
    "missing": "no such file",
    "folder": "it is a folder",
    "empty": "the file is empty",
    "page": "it is a web page",
    "lfs": "git lfs pull",
    "whole module": r"a pickle that calls \S*Net, which is not run; save the weights alone",
    "script": "it is a TorchScript program",
    "truncated": "it is truncated, damaged",
    "truncated safetensors": "it is truncated, damaged",
    "torch named safetensors": r"name it \.pt",
    "unnamed": r"name it \.safetensors",
    "pickle": "not written by torch.save|calls|holds",
    "list": "it holds one object of type list; expected is a state dict",
    "under model": r"'model' \(of type \w+\), 'epoch' \(of type int\); expected is a state dict.*'1\.weight'",
    "prefix": r"missing are 2 of the model's 2 keys: '1\.weight', '1\.bias'; unknown .*'module\.1\.weight'",
    "shape": r"'1\.weight' \[4, 65\] for \[4, 64\]",
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(("kind", "says"), BAD_WEIGHTS.items())
@pytest.mark.usefixtures("quarters_registered")
def test_the_cause_of_bad_weights_is_told_whole(kind: str, says: str, factory: str) -> None:
    path = bad_weights(kind)
    with pytest.raises(CheckpointError) as raised:
        load_factory(factory, path)
    message = str(raised.value)
    assert message.startswith(f"--weights {path}: ")
    assert re.search(says, message)
    assert "\x1b" not in message
    assert "[...]" not in message
    result = attack_with(factory, "--weights", str(path))
    refused(result, f"--weights {path}: ")
    # Whole, whatever the width of a line.
    assert " ".join(message.split()) in " ".join(result.output.split())


def test_what_a_library_says_loses_its_colours_and_nothing_else() -> None:
    error = ValueError("\x1b[1;31mdo not\x1b[0m\n\tcut  this " + "x" * 5000)
    assert reason(error) == "ValueError: do not cut this " + "x" * 5000
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_long_message_is_wrapped_and_not_cut() -> None:
    words = " ".join(f"word{n}" for n in range(600))
    assert len(words) > 4000
    assert on_one_screen(words).split() == words.split()
    assert "lines more" in on_one_screen(words * 10)


# --- factories -------------------------------------------------------------------------------------------------------


def test_a_model_may_import_its_own_modules_when_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = tmp_path.name.replace("-", "_")
    Path(f"helper_{name}.py").write_text("def scale(x):\n    return 10 * x\n")
    Path(f"lazy_{name}.py").write_text(
        "from torch import nn\n"
        "class Lazy(nn.Module):\n"
        "    def forward(self, x):\n"
        f"        import helper_{name}\n"
        f"        return helper_{name}.scale(x.flatten(1)[:, :4])\n"
    )
    model = load_factory(f"lazy_{name}:Lazy", None)
    assert model(torch.full((1, 1, 8, 8), 0.5)).tolist() == [[5.0] * 4]
    # At the end, where it hides no library.
    assert sys.path[-1] == str(Path.cwd())
    assert str(Path.cwd()) not in sys.path[:-1]


def test_a_factory_may_change_the_path_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"pathed_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(f"import sys\nsys.path.insert(0, '/somewhere')\n{NET}")
    load_factory(f"{name}:net", None)
    assert sys.path[0] == "/somewhere"
    assert sys.path.count(str(Path.cwd())) == 1


@pytest.mark.parametrize("body", ["raise NotImplementedError('eval() is not supported')", "self.training = mode"])
def test_a_model_whose_eval_is_its_own_is_loaded(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_{tmp_path.name.replace('-', '_')}"
    Path(f"{name}.py").write_text(
        f"from torch import nn\nclass Own(nn.Linear):\n    def train(self, mode=True):\n        {body}\n"
        "def own():\n    return Own(2, 2)\n"
    )
    assert isinstance(load_factory(f"{name}:own", None), nn.Module)


# --- radii -----------------------------------------------------------------------------------------------------------

RADII = st.one_of(
    st.floats(1e-6, 1.0),
    st.integers(1, 1000).map(lambda n: n / 1000),
    st.integers(1, 255).map(lambda n: n / 255),
)
SCALES = st.floats(0.01, 1.0)


@given(RADII, SCALES)
def test_a_radius_stays_the_one_that_was_asked_for(eps: float, scale: float) -> None:
    normalized = threat_of("linf", eps, "normalized", scale)
    assert eps_in(normalized, "normalized", scale) == eps
    # The product, rounded once: no float is nearer to the exact one.
    exact = Decimal(eps) * Decimal(scale)
    step = Decimal(np.spacing(normalized.eps))
    assert abs(Decimal(eps_in(normalized, "pixel", scale)) - exact) <= step / 2
    pixel = threat_of("linf", eps, "pixel", scale)
    assert eps_in(pixel, "pixel", scale) == eps
    assert eps_in(pixel, "normalized", scale) == eps / scale
    assert (unit_asked_for(normalized, scale), unit_asked_for(pixel, scale)) == ("normalized", "pixel")
    assert Threat("linf", normalized.eps) == normalized


def test_a_radius_asked_for_at_another_scale_is_taken_in_pixels() -> None:
    threat = threat_of("linf", 0.03, "normalized", 0.3)
    assert eps_in(threat, "normalized", 0.2) == 0.03 * 0.3 / 0.2


def not_undone(scale: float) -> list[float]:
    """A few radii of three digits that neither way between the units, and back, leads to again."""
    every = [n / 1000 for n in range(1, 500)]
    there = [eps for eps in every if eps * scale / scale != eps]
    back = [eps for eps in every if eps / scale * scale != eps]
    assert there
    assert back
    return sorted({*there[:3], *back[:3], 8 / 255})


@pytest.mark.parametrize("asked", ["pixel", "normalized"])
@pytest.mark.parametrize("named", ["pixel", "normalized"])
def test_records_and_manifest_hold_what_was_asked_for(
    asked: EpsUnit, named: EpsUnit, quarters: Dataset, tmp_path: Path
) -> None:
    scale = quarters.std
    grid = not_undone(scale)
    threats = [threat_of("linf", eps, asked, scale) for eps in grid]
    found = robustfdd.evaluate(
        Linear(),
        quarters,
        ["fgsm"],
        threats,
        engines=["native"],
        out=tmp_path / "r",
        eps_unit=named,
        test_images=4,
    )
    column = f"eps_{asked}"
    assert sorted(found[column]) == [0.0, *grid]
    other = "eps_pixel" if asked == "normalized" else "eps_normalized"
    assert sorted(found[other]) == [0.0, *(eps * scale if asked == "normalized" else eps / scale for eps in grid)]
    if asked == named:
        assert robustfdd.load_run(tmp_path / "r").manifest["study"]["attacks"][0]["eps"] == {"linf": grid}


@pytest.mark.usefixtures("quarters_registered")
def test_a_normalised_radius_of_the_command_line_is_found_again(
    factory: str, quarters: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conclusion, "conclude", lambda run: None)  # the report takes longer than all the rest
    grid = not_undone(quarters.std)
    result = invoke(
        *(
            "attack",
            "--model",
            factory,
            "--dataset",
            "quarters",
            "--linf",
            ",".join(map(repr, grid)),
            "--eps-unit",
            "normalized",
        ),
        *("--attack", "fgsm", "--engine", "native", "--test-images", 4, "--out", "r"),
    )
    assert result.exit_code == 0, result.output
    run = robustfdd.load_run("r")
    assert [len(run.cells[run.cells.eps_normalized == eps]) for eps in grid] == [1] * len(grid)
    assert run.manifest["study"]["attacks"][0]["eps"] == {"linf": grid}


def test_a_normalised_radius_of_an_audit_is_found_again(quarters: Dataset, tmp_path: Path) -> None:
    eps = next(eps for eps in not_undone(quarters.std) if eps * quarters.std / quarters.std != eps)
    threat = threat_of("linf", eps, "normalized", quarters.std)
    run = audit_model(
        Linear(),
        quarters,
        threat,
        out=tmp_path / "r",
        eps_scale=quarters.std,
        eps_unit="normalized",
        test_images=4,
        attack=AuditedAttack(steps=1),
    )
    found = robustfdd.load_run(run)
    assert found.manifest["study"]["audit"]["eps"] == eps
    verdict = found.analyses["audit_verdict"]
    assert verdict.eps_normalized.tolist() == [eps]
    assert verdict.eps_pixel.tolist() == [eps * quarters.std]


# --- indicators where they do not apply ------------------------------------------------------------------------------


class Means(nn.Module):
    """Logits that are never negative, and no probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return 20 * x.mean((2, 3))


class Softmax(Means):
    """Probabilities as percentages, which the contract does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * torch.softmax(super().forward(x), 1)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([3.0, 2.0, 1.0]).repeat(len(x), 1) + 0 * x.sum()


class OnThePixel(nn.Module):
    """Nearly flat: over a tiny ball the margin changes less than single precision can say."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 + Means().forward(x)


def bright(n: int, brightness: float | None = None) -> Dataset:
    """Images whose channel k is the brightest in class k; of one brightness over all channels, if so wanted."""
    rng = np.random.default_rng(3)
    images = rng.uniform(0.3, 0.5, (n, 3, 4, 4))
    labels = np.arange(n) % 3
    images[np.arange(n), labels] += 0.2 + 0.1 * rng.uniform(size=(n, 1, 1))
    if brightness is not None:
        images *= brightness / images.mean((1, 2, 3), keepdims=True)
    split = Split(torch.from_numpy((255 * images).round().astype(np.uint8)), torch.from_numpy(labels))
    return Dataset.from_raw(RawData(("r", "g", "b"), split, split, "made here"), name="bright", title="Bright")


def finding(
    model: nn.Module, dataset: Dataset, name: str, eps: float = 0.01, attack: AuditedAttack | None = None
) -> Finding:
    test = TestSet.choose(dataset, None)
    clean = clean_of(model, test, 0, 64)
    with frozen(model):
        evidence = Evidence(
            model, clean, Threat("linf", eps), attack=attack or AuditedAttack(), sibling=Means(), seed=0, batch_size=64
        )
        return INDICATORS[name].compute(evidence)


@pytest.mark.parametrize(
    ("model", "dataset", "status"),
    [
        (Means(), bright(1), "not applicable"),
        (Means(), bright(9), "passed"),
        (Means(), bright(9, brightness=0.45), "passed"),
        (Constant(), bright(9), "not applicable"),
        (Softmax(), bright(9), "alarm"),
        (Softmax(), bright(9, brightness=0.45), "alarm"),
        (OnThePixel(), bright(1), "not applicable"),
    ],
    ids=["one", "some", "of one brightness", "constant", "softmax", "softmax of one brightness", "large"],
)
def test_probabilities_are_told_from_logits_that_are_not_negative(
    model: nn.Module, dataset: Dataset, status: str
) -> None:
    assert finding(model, dataset, "probabilities").status == status


@pytest.mark.parametrize(
    "name",
    ["black-box", "one-step", "more-steps", "convergence", "silent-success", "transfer", "noise", "logit-scale"],
)
def test_where_nothing_is_left_there_is_nothing_more_to_find(name: str) -> None:
    # Ten steps: too few to settle, and enough to break everything.
    found = finding(Means(), bright(12), name, eps=0.9, attack=AuditedAttack(steps=10))
    assert found.status == "not applicable"
    assert "left no image" in found.text


def test_a_figure_of_zero_is_no_reason_for_suspicion() -> None:
    audit = robustfdd.audit(Means(), bright(12), Threat("linf", 0.9), attack=AuditedAttack(steps=10))
    assert audit.audited_accuracy == 0
    assert audit.failed == []


def test_rounding_is_no_noise() -> None:
    found = finding(OnThePixel(), bright(9), "noisy-surface", eps=1e-7)
    assert found.status == "not applicable"
    assert "rounding" in found.text
    values = torch.tensor([[0.0, 0.0], [1e-7, 1.0], [0.0, 0.0], [1e-7, 1.0]])
    assert roughness(values, least=1e-5).tolist() == [0.0, 3.0]
