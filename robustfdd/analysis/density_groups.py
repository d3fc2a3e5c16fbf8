"""Where in the image the feature maps of low, medium and high density respond.

After Figures 2 and 3 of Ke et al. 2020: the maps of an image are grouped by the density of FDD-2D, the three of each
group with the largest response are brought back to the input by deconvolution, and the entropy of the heat maps of a
group says how dispersed they are. The paper leaves much open; here

* the *groups* are the thirds of an image's occupied cells, ordered by the number of maps in them. Cells with the same
  number are not torn apart: the middle of their places in the order decides for all of them. Limits on the density
  itself, at thirds of the largest, would leave most images without a medium group, because one cell, that of the
  maps that hardly respond, holds about half of all maps and no other one nearly as many;
* the *response* of a map is its sum over positions; maps that respond to an image with nothing have no heat map;
* a *heat map* is the absolute value of the deconvolution, summed over the colours and divided by its sum;
* its *entropy* is -sum h ln h over the pixels h, in nats: 0 for a single pixel, ln(H * W) for a uniform map. It is
  given as the mean over the heat maps of a group, and for the average of these maps;
* the *grey-level entropy* of the average map, in bits, is that of the histogram of its 256 grey levels after its
  largest value is made 255, which image processing packages call the entropy of an image. It says nothing of places.
* *all* is the average over the heat maps of the three groups together.

The network is the trained one, without dropout, as in evaluation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from robustfdd.analysis.base import Analysis, TrainedModel, images_of_different_classes, register
from robustfdd.analysis.deconvolution import ChannelSums, deconvolve
from robustfdd.analysis.planes import plane
from robustfdd.classifier import batches
from robustfdd.datasets.base import test_indices, to_pixels
from robustfdd.dropouts.density import feature_density

#: Test images that are averaged over, evenly over the classes.
N_IMAGES = 32
#: Test images, of different classes, whose single heat maps are kept.
N_SHOWN = 2
#: Components and cells of the density: those of FDD-2D.
N_COMPONENTS = 2
N_BINS = 5
#: The groups, each with the same share of an image's occupied cells, from the lowest density.
GROUPS = ("low", "medium", "high")
#: Heat maps of a group and image.
N_TOP = 3

_BATCH = 32


def group_of(density: Tensor) -> Tensor:
    """The group of each map, a position in :data:`GROUPS`.

    Args:
        density: the number of maps in the cell of each map, shape (N, C), integer.

    Returns:
        Shape (N, C), int64.
    """
    group = torch.empty_like(density)
    for row, out in zip(density, group, strict=True):
        counts, position, n_maps = row.unique(return_inverse=True, return_counts=True)
        n_cells = n_maps // counts  # cells that hold exactly so many maps
        # Twice the middle of the places of these cells in the order, so that it is a whole number.
        middle = 2 * n_cells.cumsum(0) - n_cells
        out[:] = (len(GROUPS) * middle // (2 * n_cells.sum()))[position]
    return group


def entropy(heat: npt.NDArray[np.float64]) -> float:
    """-sum h ln h of values that sum to 1."""
    positive = heat[heat > 0]
    return float(-(positive * np.log(positive)).sum())


def grey_level_entropy(heat: npt.NDArray[np.float64]) -> float:
    """The entropy in bits of the histogram of 256 grey levels, of which the largest value is the whitest."""
    levels = np.rint(255 * heat / heat.max()).astype(int)
    share = np.bincount(levels.ravel(), minlength=256) / levels.size
    return entropy(share) / float(np.log(2))


def heat_maps(sums: ChannelSums, images: Tensor, channels: Tensor) -> npt.NDArray[np.float64]:
    """Heat maps that sum to 1, shape (N, H, W), of one channel for each image; NaN where nothing comes back."""
    found = []
    for part in batches(len(images), _BATCH):
        back = deconvolve(sums, images[part], channels[part]).double().abs().sum(1)
        total = back.sum((1, 2), keepdim=True)
        found.append(torch.where(total > 0, back / total, torch.nan).cpu().numpy())
    return np.concatenate(found)


def _strongest(response: Tensor, group: Tensor) -> list[tuple[int, int, int, int]]:
    """(image, group, rank from 1, channel) of the maps of each image and group with the largest response above 0."""
    chosen = []
    for image, (values, groups) in enumerate(zip(response, group, strict=True)):
        for g in range(len(GROUPS)):
            inside = torch.where((groups == g) & (values > 0), values, -torch.inf)
            order = inside.argsort(descending=True, stable=True)[:N_TOP]
            chosen += [
                (image, g, rank, int(channel)) for rank, channel in enumerate(order, start=1) if inside[channel] > 0
            ]
    return chosen


def compute(trained: TrainedModel) -> dict[str, pd.DataFrame]:
    """The averages of each group (``density-groups``); of a few images the heat maps, the maps and the pixels."""
    test, sums = trained.dataset.test, ChannelSums(trained.model)
    shown = images_of_different_classes(test.labels, N_SHOWN)
    # Shown images first; an image may be among both.
    averaged = test_indices(test.labels.cpu(), N_IMAGES, seed=0)
    index = torch.cat((shown, averaged)).to(trained.device)
    images = to_pixels(test.images[index])
    with torch.no_grad():
        maps = sums.network.feature_maps(images)
        response = maps.sum((2, 3)).cpu()
        density = feature_density(maps, N_COMPONENTS, N_BINS).cpu()
        points = plane(maps[: len(shown)], N_COMPONENTS).cpu()
    group = group_of(density)
    chosen = pd.DataFrame(_strongest(response, group), columns=["image", "group", "rank", "channel"])
    where, channels = torch.tensor(chosen["image"].to_list()), torch.tensor(chosen["channel"].to_list())
    heat = heat_maps(sums, images[where.to(trained.device)], channels.to(trained.device))
    whole = np.isfinite(heat).all(axis=(1, 2))
    chosen, heat = chosen[whole].reset_index(drop=True), heat[whole]
    is_shown = (chosen["image"] < len(shown)).to_numpy()
    return {
        "density-groups": _averages(chosen[~is_shown], heat[~is_shown], group[len(shown) :]),
        "density-heatmaps": pd.DataFrame(
            {
                "image": shown.numpy()[chosen["image"][is_shown]],
                "group": [GROUPS[g] for g in chosen["group"][is_shown]],
                "rank": chosen["rank"][is_shown].to_numpy(),
                "channel": chosen["channel"][is_shown].to_numpy(),
                "response": [
                    float(response[i, c])
                    for i, c in zip(chosen["image"][is_shown], chosen["channel"][is_shown], strict=True)
                ],
                "entropy": [entropy(values) for values in heat[is_shown]],
                "height": heat.shape[1],
                "width": heat.shape[2],
                "heatmap": [values.astype(np.float32).ravel() for values in heat[is_shown]],
            }
        ),
        "density-channels": pd.DataFrame(
            {
                "image": shown.repeat_interleave(density.shape[1]).numpy(),
                "channel": np.tile(np.arange(density.shape[1]), len(shown)),
                "pc1": points[:, :, 0].flatten().numpy(),
                "pc2": points[:, :, 1].flatten().numpy(),
                "density": density[: len(shown)].flatten().numpy(),
                "n_bins": N_BINS,
                "group": [GROUPS[g] for g in group[: len(shown)].flatten()],
            }
        ),
        "density-images": pd.DataFrame(
            {
                "image": shown.numpy(),
                "class": [trained.dataset.classes[int(label)] for label in test.labels[shown.to(trained.device)]],
                "channels": images.shape[1],
                "height": images.shape[2],
                "width": images.shape[3],
                "pixels": [test.images[i].cpu().numpy().ravel() for i in shown.tolist()],
            }
        ),
    }


def _averages(chosen: pd.DataFrame, heat: npt.NDArray[np.float64], group: Tensor) -> pd.DataFrame:
    """One row a group that has heat maps, and one for all of them.

    Args:
        chosen: image and group of each heat map.
        heat: shape (M, H, W).
        group: of every map of every image, shape (N, C).
    """
    singles = np.array([entropy(values) for values in heat])
    rows = []
    for name, position in [*((name, g) for g, name in enumerate(GROUPS)), ("all", None)]:
        mine = np.ones(len(heat), dtype=bool) if position is None else (chosen["group"] == position).to_numpy()
        if not mine.any():
            continue
        average = heat[mine].mean(0)
        rows.append(
            {
                "group": name,
                "n_images": int(chosen["image"][mine].nunique()),
                "of_images": len(group),
                "n_top": N_TOP,
                "n_heatmaps": int(mine.sum()),
                "share_of_maps": 1.0 if position is None else float((group == position).double().mean()),
                "average_entropy": float(singles[mine].mean()),
                "entropy_of_average": entropy(average),
                "grey_level_entropy_of_average": grey_level_entropy(average),
                "height": average.shape[0],
                "width": average.shape[1],
                "heatmap": average.astype(np.float32).ravel(),
            }
        )
    frame: pd.DataFrame = pd.DataFrame(rows)
    return frame


register(
    Analysis(
        name="density-groups",
        title="heat maps by feature density",
        tables=("density-groups", "density-heatmaps", "density-channels", "density-images"),
        settings={
            "n_images": N_IMAGES,
            "n_shown": N_SHOWN,
            "n_components": N_COMPONENTS,
            "n_bins": N_BINS,
            "groups": list(GROUPS),
            "n_top": N_TOP,
        },
        compute=compute,
    )
)
