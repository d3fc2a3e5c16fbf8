from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustfdd.datasets import folder, load_dataset
from robustfdd.errors import DatasetError

HEIGHT, WIDTH = 5, 7
GREY, COLOUR = (HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)
CLASSES = ("ape", "bee")


def pixels(seed: int, shape: tuple[int, ...] = GREY) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def write_all(root: Path, shape: tuple[int, ...] = GREY) -> dict[tuple[str, str], list[np.ndarray]]:
    """Two images for each class and split; gives them by (split, class) in the order of their names."""
    written: dict[tuple[str, str], list[np.ndarray]] = {}
    for split in ("train", "test"):
        for name in CLASSES:
            for number in (1, 0):
                array = pixels(len(written) * 10 + number, shape)
                write(root / split / name / f"{number}.png", array)
                written.setdefault((split, name), []).insert(0, array)
    return written


def load(root: Path) -> object:
    return load_dataset(f"folder:{root}")


def test_grey_images_have_one_channel_in_the_order_of_names(tmp_path: Path) -> None:
    root = tmp_path / "zoo"
    written = write_all(root)
    dataset = load_dataset(f"folder:{root}")
    assert dataset.classes == CLASSES
    assert dataset.image_shape == (1, HEIGHT, WIDTH)
    for split, name in ((dataset.train, "train"), (dataset.test, "test")):
        np.testing.assert_array_equal(
            split.images[:, 0].numpy(), np.stack([a for c in CLASSES for a in written[name, c]])
        )
        assert split.labels.tolist() == [0, 0, 1, 1]


def test_name_title_and_source_say_which_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(tmp_path / "zoo")
    monkeypatch.chdir(tmp_path)
    dataset = load_dataset("folder:zoo")
    assert (dataset.name, dataset.title, dataset.source) == ("folder:zoo", "zoo", str(tmp_path / "zoo"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset("folder:~/zoo").sha256 == dataset.sha256


def test_colour_images_have_red_green_blue(tmp_path: Path) -> None:
    written = write_all(tmp_path, COLOUR)
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.image_shape == (3, HEIGHT, WIDTH)
    np.testing.assert_array_equal(dataset.train.images[3].numpy(), written["train", "bee"][1].transpose(2, 0, 1))


@pytest.mark.parametrize("where", ["train/ape/0.png", "train/bee/1.png", "test/bee/1.png"])
def test_one_colour_image_makes_all_rgb(where: str, tmp_path: Path) -> None:
    written = write_all(tmp_path)
    colour = pixels(99, COLOUR)
    write(tmp_path / where, colour)
    dataset = load_dataset(f"folder:{tmp_path}")
    for split, name in ((dataset.train, "train"), (dataset.test, "test")):
        for position, class_name in enumerate(np.repeat(CLASSES, 2)):
            grey = written[name, str(class_name)][position % 2]
            path = f"{name}/{class_name}/{position % 2}.png"
            expected = colour if path == where else np.repeat(grey[..., None], 3, axis=2)
            np.testing.assert_array_equal(split.images[position].numpy(), expected.transpose(2, 0, 1))


def test_jpeg_and_other_kinds_of_images_are_read(tmp_path: Path) -> None:
    write_all(tmp_path)
    flat = np.full(COLOUR, (204, 102, 51), dtype=np.uint8)  # a colour of the palette that Pillow uses for a GIF
    write(tmp_path / "train/ape/jpeg.jpg", flat)
    write(tmp_path / "train/ape/palette.gif", flat, "P")
    with Image.fromarray(flat).convert("P", palette=Image.Palette.ADAPTIVE) as palette:
        palette.save(tmp_path / "train/ape/transparent.png", transparency=bytes([128] * 256))
    write(tmp_path / "train/ape/with-alpha.png", np.dstack([flat, pixels(5)]))
    dataset = load_dataset(f"folder:{tmp_path}")
    for position in range(2, 6):
        image = dataset.train.images[position].numpy().transpose(1, 2, 0)
        assert np.abs(image.astype(int) - flat).max() <= (3 if position == 2 else 0)  # JPEG rounds


def test_grey_with_alpha_and_black_and_white_are_grey(tmp_path: Path) -> None:
    write_all(tmp_path)
    grey = pixels(5)
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(pixels(6))]).save(tmp_path / "train/ape/2.png")
    write(tmp_path / "train/ape/3.png", grey // 128 * 255, "1")
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.image_shape == (1, HEIGHT, WIDTH)
    np.testing.assert_array_equal(dataset.train.images[2, 0].numpy(), grey)
    np.testing.assert_array_equal(dataset.train.images[3, 0].numpy(), grey // 128 * 255)


def test_sixteen_bits_are_refused_rather_than_cut(tmp_path: Path) -> None:
    write_all(tmp_path)
    write(tmp_path / "train/ape/2.png", pixels(1).astype(np.uint16) * 257)
    with pytest.raises(DatasetError, match=r"train/ape/2\.png: has more than 8 bits"):
        load(tmp_path)


def test_hidden_files_and_anything_beside_the_splits_are_ignored(tmp_path: Path) -> None:
    write_all(tmp_path)
    expected = load_dataset(f"folder:{tmp_path}").sha256
    for name in ("README", "train/.listing", "train/ape/.thumbs", "test/bee/.DS_Store"):
        (tmp_path / name).write_text("no image")
    (tmp_path / "test/.cache").mkdir()
    assert load_dataset(f"folder:{tmp_path}").sha256 == expected


def test_the_first_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    write_all(tmp_path)
    write(tmp_path / "train/bee/0.png", pixels(0, (WIDTH, HEIGHT)))
    write(tmp_path / "train/bee/1.png", pixels(0, (2, 2)))
    with pytest.raises(DatasetError, match=r"train/bee/0\.png: is 5x7 pixels, but .*train/ape/0\.png is 7x5"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_truncated_image_is_named(kind: str, tmp_path: Path) -> None:
    write_all(tmp_path, COLOUR)
    file = tmp_path / f"test/ape/broken.{kind}"
    write(file, pixels(0, COLOUR))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DatasetError, match=rf"test/ape/broken\.{kind}: not readable as an image"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"a note", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    write_all(tmp_path)
    (tmp_path / "train/bee/note.png").write_bytes(content)
    with pytest.raises(DatasetError, match=r"train/bee/note\.png: not readable as an image"):
        load(tmp_path)


def test_a_folder_among_the_images_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    write(tmp_path / "train/bee/more/0.png", pixels(0))
    with pytest.raises(DatasetError, match=r"train/bee/more: not readable as an image"):
        load(tmp_path)


def test_an_image_beside_the_classes_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    write(tmp_path / "train/cat.png", pixels(0))
    with pytest.raises(DatasetError, match=r"train/cat\.png: not a folder"):
        load(tmp_path)


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_a_class_of_one_split_only_is_named(split: str, other: str, tmp_path: Path) -> None:
    write_all(tmp_path)
    write(tmp_path / split / "cat/0.png", pixels(0))
    with pytest.raises(DatasetError, match=rf"class 'cat' is in {split} but not in {other}"):
        load(tmp_path)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir()
    (tmp_path / "train/cat/.hidden").touch()
    with pytest.raises(DatasetError, match=r"train/cat: this class has no images"):
        load(tmp_path)


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    (tmp_path / "test").rename(tmp_path / "validation")
    with pytest.raises(DatasetError, match=rf"{tmp_path}/test: not readable as a folder"):
        load(tmp_path)


def test_a_split_without_images_is_named(tmp_path: Path) -> None:
    write_all(tmp_path)
    (tmp_path / "test").rename(tmp_path / "old")
    (tmp_path / "test").mkdir()
    with pytest.raises(DatasetError, match=rf"{tmp_path}/test: there are no images"):
        load(tmp_path)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / split / "ape/0.png", pixels(0))
    with pytest.raises(DatasetError, match=r"one class only \('ape'\)"):
        load(tmp_path)


def test_a_missing_folder_or_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"^folder:{tmp_path}/none: no such folder"):
        load(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"^folder:: the path is missing"):
        load_dataset("folder:")
    with pytest.raises(DatasetError, match="no such folder"):
        load_dataset("folder:~no-such-user-robustfdd/zoo")


@pytest.mark.parametrize("shown", [True, False])
def test_progress_is_shown_on_stderr_for_many_images(
    shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_all(tmp_path)
    monkeypatch.setattr(folder, "_SHOW_PROGRESS_ABOVE", 7 if shown else 8)
    load(tmp_path)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert ("Reading images" in captured.err) == shown
