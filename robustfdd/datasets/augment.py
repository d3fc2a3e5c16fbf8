"""Random crops and flips of whole batches, on the device the images are on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robustfdd.errors import ConfigurationError

AUGMENTATIONS = ("none", "flip", "crop", "crop-flip")

#: Zeros put around an image before it is cropped back to its size: the usual 4 of CIFAR training (Lee et al. 2015,
#: "Deeply-supervised nets"; He et al. 2016, section 4.2).
PADDING = 4


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Augment a batch, every image by random draws of its own.

    Args:
        images: shape (N, C, H, W), any type; uint8 as data sets hold them.
        kind: ``"none"``; ``"flip"``: left and right swapped with probability 1/2; ``"crop"``: padded with
            :data:`PADDING` zeros on each side, then cut to H x W at a place drawn uniformly; ``"crop-flip"``: both.
        generator: the only source of randomness, on any device. ``"none"`` draws nothing from it.

    Returns:
        The same shape, type and device; for ``"none"`` the very same tensor.

    Raises:
        ConfigurationError: the kind is unknown.
    """
    if kind not in AUGMENTATIONS:
        raise ConfigurationError(f"unknown augmentation {kind!r}; allowed: {', '.join(AUGMENTATIONS)}")
    if kind == "none":
        return images
    n, c, h, w = images.shape
    device = images.device
    rows = torch.arange(h, device=device).expand(n, h)
    columns = torch.arange(w, device=device).expand(n, w)
    if "flip" in kind:
        flipped = torch.randint(2, (n, 1), generator=generator, device=generator.device).to(device)
        columns = torch.where(flipped.bool(), w - 1 - columns, columns)
    if "crop" in kind:
        images = F.pad(images, (PADDING,) * 4)
        top, left = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator, device=generator.device).to(device)
        rows, columns = rows + top, columns + left
    # One gather by the position of every pixel of the result in its (padded) image, the same for all channels.
    positions = rows[:, :, None] * images.shape[3] + columns[:, None, :]
    return images.flatten(2).gather(2, positions.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)
