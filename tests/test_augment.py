from __future__ import annotations

import numpy as np
import pytest
import torch

from robustfdd.datasets.augment import AUGMENTATIONS, PADDING, augment
from robustfdd.errors import ConfigurationError

SHIFTS = 2 * PADDING + 1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(1))


def references(image: np.ndarray, kind: str) -> dict[tuple[int, int, bool], np.ndarray]:
    """Every result that one image (C, H, W) may have, by shift down, shift right and whether it is flipped."""
    c, h, w = image.shape
    padded = np.zeros((c, h + 2 * PADDING, w + 2 * PADDING), dtype=image.dtype)
    padded[:, PADDING : PADDING + h, PADDING : PADDING + w] = image
    shifts = range(SHIFTS) if "crop" in kind else (PADDING,)
    results = {}
    for top in shifts:
        for left in shifts:
            cropped = padded[:, top : top + h, left : left + w]
            results[top, left, False] = cropped
            if "flip" in kind:
                results[top, left, True] = cropped[:, :, ::-1]
    return results


def draws(images: torch.Tensor, kind: str, seed: int = 0) -> np.ndarray:
    """What was drawn for each image, found by comparing with all that could have come out; fails if nothing fits."""
    augmented = augment(images, kind, generator(seed)).numpy()
    found = []
    for before, after in zip(images.numpy(), augmented, strict=True):
        matches = [key for key, expected in references(before, kind).items() if np.array_equal(expected, after)]
        assert len(matches) == 1
        found.append(matches[0])
    return np.array(found)


@pytest.mark.parametrize("kind", ["flip", "crop", "crop-flip"])
@pytest.mark.parametrize("shape", [(40, 3, 8, 8), (40, 1, 5, 11), (1, 3, 9, 6)])
def test_every_image_is_one_of_its_crops_and_flips(kind: str, shape: tuple[int, ...]) -> None:
    assert len(draws(random_images(*shape), kind)) == shape[0]


def test_draws_are_uniform_and_independent_from_image_to_image() -> None:
    n = 1000
    found = draws(random_images(n, 1, 6, 7), "crop-flip")
    for column, size in ((0, SHIFTS), (1, SHIFTS), (2, 2)):
        counts = np.bincount(found[:, column], minlength=size)
        # Five standard deviations of a binomial; the seed is fixed, so this cannot fail by chance later.
        assert np.abs(counts - n / size).max() < 5 * np.sqrt(n / size * (1 - 1 / size))
    # Down, right and flip do not depend on one another, nor on the image before.
    columns = np.column_stack([found[1:], found[:-1]]).astype(float)
    correlation = np.corrcoef(columns.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(n)


def test_flip_alone_does_not_shift_and_crop_alone_does_not_flip() -> None:
    images = random_images(100, 1, 6, 7)
    assert set(draws(images, "flip")[:, 2]) == {0, 1}
    assert set(draws(images, "crop")[:, 2]) == {0}


def test_none_returns_the_images_and_draws_nothing() -> None:
    images, source = random_images(3, 1, 4, 4), generator()
    before = source.get_state()
    assert augment(images, "none", source) is images
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("kind", ["flip", "crop", "crop-flip"])
def test_only_the_generator_decides(kind: str) -> None:
    images = random_images(50, 3, 6, 6)
    original = images.clone()
    global_state = torch.get_rng_state()
    source = generator(5)
    first, second = augment(images, kind, source), augment(images, kind, source)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(images, original)
    torch.manual_seed(99)
    assert torch.equal(augment(images, kind, generator(5)), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_type_shape_and_layout_are_kept(kind: str) -> None:
    images = random_images(4, 3, 6, 7)
    augmented = augment(images, kind, generator())
    assert augmented.dtype == torch.uint8
    assert augmented.shape == images.shape
    assert augmented.is_contiguous()
    as_float = augment(images.float(), kind, generator())
    assert torch.equal(as_float, augmented.float())
    channels_last = augment(images.contiguous(memory_format=torch.channels_last), kind, generator())
    assert torch.equal(channels_last, augmented)


def test_an_empty_batch_stays_empty() -> None:
    assert augment(random_images(0, 3, 6, 7), "crop-flip", generator()).shape == (0, 3, 6, 7)


def test_unknown_kind_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"'cutout'; allowed: none, flip, crop, crop-flip"):
        augment(random_images(1, 1, 4, 4), "cutout", generator())


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives() -> None:
    images = random_images(64, 3, 32, 32)
    assert torch.equal(
        augment(images.cuda(), "crop-flip", generator()).cpu(), augment(images, "crop-flip", generator())
    )
