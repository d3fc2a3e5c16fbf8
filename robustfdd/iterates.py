"""What an attack passes on its way: of everything it asks the model about, the best image inside its budget."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from robustfdd.ascent import margin
from robustfdd.threat import Threat, in_box


class BestIterate(nn.Module):
    """A model that remembers, for each image under attack, the perturbed image of the largest margin it was asked for.

    Libraries return the last iterate of an attack, or the best one by a criterion of their own. Every forward pass
    whose batch has the shape of the watched one is looked at, image by image: what lies inside budget and box of the
    watched image is an iterate of its attack, whatever the library meant it for.

    Args:
        model: a classifier, in evaluation mode.
        threat: norm and radius, in pixel units.
    """

    def __init__(self, model: nn.Module, threat: Threat) -> None:
        super().__init__()
        self.model = model
        self.threat = threat
        self.training = model.training  # of this wrapper only: the modes inside are the model's own
        self._watched: tuple[Tensor, Tensor] | None = None

    def watch(self, x: Tensor, y: Tensor) -> None:
        """Begin anew with these images, float, shape (N, C, H, W), and their true labels, shape (N,)."""
        self._watched = (x, y)
        self._best = x.clone()
        self._margin = torch.full((len(x),), -math.inf, device=x.device)

    def best(self) -> Tensor:
        """The images of the largest margin since :meth:`watch`, inside budget and box; the watched ones by default."""
        return self._best

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        logits: Tensor = self.model(x)
        if self._watched is not None and x.shape == self._watched[0].shape:
            with torch.no_grad():
                self._look_at(x.detach(), logits.detach())
        return logits

    def _look_at(self, x: Tensor, logits: Tensor) -> None:
        assert self._watched is not None
        images, labels = self._watched
        margins = margin(logits, labels)
        better = (margins > self._margin) & self.threat.within(images, x) & in_box(x)
        self._margin = torch.where(better, margins, self._margin)
        self._best = torch.where(better[:, None, None, None], x.clamp(0, 1), self._best)
