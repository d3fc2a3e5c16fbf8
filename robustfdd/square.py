"""The Square attack: random search with squares of shrinking size, which sees nothing of a model but its logits.

Source: Andriushchenko, Croce, Flammarion & Hein 2020, "Square Attack: a Query-efficient Black-box Adversarial Attack
via Random Search" (ECCV), algorithms 1 to 3. Every image has its own stream of random numbers, so its result does not
depend on the batch that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustfdd.ascent import forward, margin
from robustfdd.threat import Threat

#: The share of pixels that a square covers halves at these of 10,000 queries (section 4 of the source).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

Streams = Sequence[np.random.Generator]
_Array = npt.NDArray[np.float32]


def _share(p_init: float, query: int, queries: int) -> float:
    """The share of pixels that the square of a query covers."""
    scaled = query / queries * 10_000
    return float(p_init / 2 ** sum(scaled > at for at in _HALVINGS))


def _bump(s: int) -> _Array:
    """The shape of an L2 window of side s, of unit length: two pyramids of opposite sign, side by side."""

    def pyramid(height: int, width: int) -> npt.NDArray[np.float64]:
        found = np.zeros((height, width))
        top, left = height // 2 + 1, width // 2 + 1
        for grown in range(max(top, left)):
            rows = slice(max(top - 1 - grown, 0), min(top + grown, height))
            columns = slice(max(left - 1 - grown, 0), min(left + grown, width))
            found[rows, columns] += 1.0 / (grown + 1) ** 2
        return np.asarray(found / np.sqrt((found**2).sum()))

    whole = np.zeros((s, s))
    half = s // 2
    whole[:half] = pyramid(half, s)
    whole[half:] = -pyramid(s - half, s)
    return np.asarray(whole / np.sqrt((whole**2).sum()), dtype=np.float32)


def _signs(stream: np.random.Generator, shape: tuple[int, ...]) -> _Array:
    return np.asarray(2 * stream.integers(0, 2, shape) - 1, dtype=np.float32)


def _odd(side: int, most: int) -> int:
    """The side of an L2 window: made odd by one pixel more, and where there is no room by what is missing."""
    side = min(side + 1 - side % 2, most)
    return side - 1 + side % 2


def _lengths(window: npt.NDArray[Any]) -> _Array:
    """Of each channel of a window of shape (C, s, s), in L2; shape (C, 1, 1)."""
    return np.asarray(np.sqrt((window**2).sum((1, 2), keepdims=True)))


def _first(stream: np.random.Generator, shape: tuple[int, ...], threat: Threat) -> _Array:
    """Where the search begins: vertical stripes in L-infinity, a grid of windows in L2."""
    c, h, w = shape
    if threat.norm == "linf":
        return np.asarray(threat.eps * np.broadcast_to(_signs(stream, (c, 1, w)), shape), dtype=np.float32)
    delta = np.zeros(shape, dtype=np.float32)
    s = max(min(h, w) // 5, 1)
    bump = _bump(s) if s > 1 else np.ones((1, 1), dtype=np.float32)
    for top in range((h - 5 * s) // 2 if h >= 5 * s else 0, h - s + 1, s):
        for left in range((w - 5 * s) // 2 if w >= 5 * s else 0, w - s + 1, s):
            turned = bump if stream.random() < 0.5 else bump.T
            delta[:, top : top + s, left : left + s] += turned * _signs(stream, (c, 1, 1))
    return delta


def _proposal(stream: np.random.Generator, delta: _Array, share: float, threat: Threat) -> _Array:
    """Another perturbation, changed in one square."""
    c, h, w = delta.shape
    new: _Array = delta.copy()
    if threat.norm == "linf":
        s = min(max(round(math.sqrt(share * h * w)), 1), h, w)
        top, left = stream.integers(0, h - s + 1), stream.integers(0, w - s + 1)
        new[:, top : top + s, left : left + s] = threat.eps * _signs(stream, (c, 1, 1))
        return np.asarray(new)
    s = _odd(max(round(math.sqrt(share * h * w)), 3), min(h, w))
    bump = _bump(s) if s > 1 else np.ones((1, 1), dtype=np.float32)
    one = (slice(None), *(slice(at, at + s) for at in (stream.integers(0, h - s + 1), stream.integers(0, w - s + 1))))
    two = (slice(None), *(slice(at, at + s) for at in (stream.integers(0, h - s + 1), stream.integers(0, w - s + 1))))
    mask = np.zeros((h, w), dtype=bool)
    mask[one[1:]] = mask[two[1:]] = True
    # Each channel of the new window has what the channel had in both windows, and its share of what was unused.
    unused = max(threat.eps**2 - float((delta**2).sum()), 0.0)
    available = np.sqrt(unused / c + (delta[:, mask] ** 2).sum(1))[:, None, None]
    inside = delta[one]
    turned = bump if stream.random() < 0.5 else bump.T
    fresh = turned * _signs(stream, (c, 1, 1)) + inside / np.maximum(_lengths(inside), 1e-10)
    fresh *= available / np.maximum(_lengths(fresh), 1e-10)
    new[two] = 0
    new[one] = fresh
    return np.asarray(new)


def _put(x: Tensor, delta: Tensor, threat: Threat) -> Tensor:
    """The perturbed images, inside ball and box; in L2 the whole radius is used."""
    if threat.norm == "l2":
        length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-12)
        delta = delta * (threat.eps / length).view(-1, 1, 1, 1)
    return (x + delta).clamp(0, 1)


def square(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, queries: int, p_init: float, streams: Streams
) -> tuple[Tensor, Tensor, int]:
    """Search until an image is misclassified or the queries are used up.

    Args:
        model: a frozen classifier.
        x: images in [0, 1], shape (N, C, H, W).
        y: true labels, shape (N,).
        threat: norm and radius, above 0, in pixel units.
        queries: proposals for each image.
        p_init: share of the pixels in the first square, in (0, 1].
        streams: random numbers, one stream an image.

    Returns:
        The perturbed images, their margins (above 0 where misclassified; shape (N,)), and how many images were asked
        about, counted anew at every query.

    Raises:
        ModelContractError: the model returns NaN for a perturbed image.
    """
    shape = tuple(x.shape[1:])
    deltas = np.stack([_first(stream, shape, threat) for stream in streams]) if len(x) else np.zeros((0, *shape))
    best = _put(x, torch.from_numpy(deltas).to(x), threat)
    best_margin = margin(forward(model, best), y)
    asked = len(x)
    for query in range(queries):
        active = (best_margin <= 0).nonzero().squeeze(1)
        if not len(active):
            break
        share = _share(p_init, query, queries)
        index = active.cpu().numpy()
        # What the box cut off is not there to build on.
        now = (best[active] - x[active]).cpu().numpy() if threat.norm == "l2" else deltas[index]
        proposed = np.stack([_proposal(streams[i], now[k], share, threat) for k, i in enumerate(index)])
        candidates = _put(x[active], torch.from_numpy(proposed).to(x), threat)
        found = margin(forward(model, candidates), y[active])
        asked += len(active)
        better = found > best_margin[active]
        at = active[better]
        best[at], best_margin[at] = candidates[better], found[better]
        deltas[at.cpu().numpy()] = proposed[better.cpu().numpy()]
    return best, best_margin, asked
