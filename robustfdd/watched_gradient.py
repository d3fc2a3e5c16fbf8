"""Gradients that are no numbers: seen on their way back to the images, whichever library asked for them.

A NaN moves no image. Libraries take it for a gradient of zero, or carry it into the image; either way the image stays
right, and a fault of the model's arithmetic looks like robustness. So it is noted image by image, and the measurement
says what follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class WatchedGradient(nn.Module):
    """A model that notes the images whose gradient has an entry that is NaN or infinite; there it hands on 0.

    Args:
        model: a classifier, in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # of this wrapper only: the modes inside are the model's own
        self._images: Tensor | None = None
        self._undefined = torch.zeros(0, dtype=torch.bool)

    def watch(self, x: Tensor) -> None:
        """Begin anew with the images of an attack, float, shape (N, C, H, W)."""
        self._images = x
        self._undefined = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    @property
    def undefined(self) -> Tensor:
        """The watched images that have had such a gradient since :meth:`watch`; boolean, shape (N,)."""
        return self._undefined

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        watched: Tensor = _Watched.apply(x, self) if x.requires_grad else x
        logits: Tensor = self.model(watched)
        return logits

    def note(self, x: Tensor, undefined: Tensor) -> None:
        """Take notice of a gradient: which of the images ``x`` it is undefined for, boolean, shape (n,)."""
        if self._images is None:
            return
        if len(x) == len(self._images):
            self._undefined |= undefined
        elif bool(undefined.any()):
            # An attack that asks about some of its images does not say which. An iterate lies next to its image; where
            # two images are the same, it may be of either.
            images = self._images.flatten(1)
            for iterate in x[undefined].flatten(1):
                distance = torch.linalg.vector_norm(images - iterate, dim=1)
                self._undefined |= distance <= distance.min()


class _Watched(torch.autograd.Function):
    """The identity, whose gradient is looked at."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, watch: WatchedGradient) -> Tensor:
        ctx.x, ctx.watch = x.detach(), watch
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        finite = torch.isfinite(gradient)
        ctx.watch.note(ctx.x, ~finite.flatten(1).all(1))
        return torch.where(finite, gradient, torch.zeros_like(gradient)), None
