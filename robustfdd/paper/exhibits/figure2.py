"""Figure 2: where in an image the feature maps of low, medium and high density respond."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robustfdd.report.analyses import analysis_table, cell_borders, first_of, methods_of
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.figures import bare, drawn
from robustfdd.report.results import Results
from robustfdd.report.study import seed_text
from robustfdd.rounding import fixed

ORDER = 42

_HEATMAPS = ("image", "group", "rank", "channel", "response", "entropy", "height", "width", "heatmap")
_CHANNELS = ("image", "channel", "pc1", "pc2", "density", "n_bins", "group")
_IMAGES = ("image", "class", "channels", "height", "width", "pixels")
#: The groups and their colours.
GROUPS = {"low": "#E69F00", "medium": "#009E73", "high": "#0072B2"}


def _pixels(row: pd.Series) -> npt.NDArray[np.float64]:
    """The image for Matplotlib: (H, W, 3), values in [0, 1]; one of another number of colours in grey."""
    values = np.asarray(row["pixels"], dtype=float).reshape(row["channels"], row["height"], row["width"]) / 255
    colours = values if len(values) == 3 else np.repeat(values.mean(0, keepdims=True), 3, axis=0)
    picture: npt.NDArray[np.float64] = colours.transpose(1, 2, 0)
    return picture


@drawn
def _draw(heat: pd.DataFrame, channels: pd.DataFrame, images: pd.DataFrame) -> Figure:
    n_top = int(heat["rank"].max())
    # Many axes of known sizes: laid out by hand, in a fraction of the time.
    size = 2.1 + 1.35 * (n_top + 1) + 1.2, 4.3 * len(images) + 0.3
    figure = Figure(figsize=size)
    figure.set_layout_engine("none")
    borders = {"left": 0.6 / size[0], "right": 0.99, "bottom": 0.5 / size[1], "top": 1 - 0.35 / size[1]}
    parts = figure.add_gridspec(len(images), 1, hspace=0.25, **borders)
    ratios = [2.1, *[1] * (n_top + 1)]
    for line, (_, image) in enumerate(images.iterrows()):
        picture = _pixels(image)
        grid = parts[line, 0].subgridspec(len(GROUPS), n_top + 2, width_ratios=ratios, wspace=0.12, hspace=0.3)
        _draw_plane(figure.add_subplot(grid[:, 0]), channels[channels["image"] == image["image"]])
        original = figure.add_subplot(grid[:, 1])
        original.imshow(picture, interpolation="nearest")
        original.set_title(f"{image['class']}\n(image {image['image']})", fontsize=9)
        bare(original)
        mine = heat[heat["image"] == image["image"]]
        for i, (group, colour) in enumerate(GROUPS.items()):
            for j in range(n_top):
                axes = figure.add_subplot(grid[i, 2 + j])
                bare(axes)
                if j == 0:
                    axes.set_ylabel(group, color=colour, fontsize=10)
                row = mine[(mine["group"] == group) & (mine["rank"] == j + 1)]
                if len(row):
                    _draw_heat(axes, picture, row.iloc[0])
    return figure


def _draw_heat(axes: Axes, picture: npt.NDArray[np.float64], row: pd.Series) -> None:
    heat = np.asarray(row["heatmap"], dtype=float).reshape(row["height"], row["width"])
    axes.imshow(picture.mean(2), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.imshow(heat, cmap="inferno", alpha=0.25 + 0.7 * heat / heat.max(), interpolation="nearest")
    axes.set_title(f"map {row['channel']}: {fixed(row['entropy'], 2)}", fontsize=8)


def _draw_plane(axes: Axes, rows: pd.DataFrame) -> None:
    cell_borders(axes, rows[["pc1", "pc2"]].to_numpy(dtype=float), int(rows["n_bins"].iloc[0]))
    for group, colour in GROUPS.items():
        mine = rows[rows["group"] == group]
        axes.scatter(mine["pc1"], mine["pc2"], color=colour, s=10, label=f"{group} ({len(mine)})")
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8, ncols=len(GROUPS), columnspacing=1, handletextpad=0
    )
    axes.set_xlabel("Component 1", fontsize=9)
    axes.set_ylabel("Component 2", fontsize=9)
    axes.tick_params(labelsize=8)


def build(results: Results) -> list[Exhibit]:
    """The images of one model, the one without dropout where there is one; none for a run without this analysis."""
    heat = analysis_table(results, "density-heatmaps", _HEATMAPS)
    channels = analysis_table(results, "density-channels", _CHANNELS)
    images = analysis_table(results, "density-images", _IMAGES)
    if heat is None or channels is None or images is None:
        return []
    methods = methods_of(results, heat)
    method = first_of(methods, "none") or methods[0]
    seed = int(heat[heat["method"] == method.label]["seed"].min())
    mine, planes, pictures = (
        frame[(frame["method"] == method.label) & (frame["seed"] == seed)] for frame in (heat, channels, images)
    )
    largest = float(np.log(mine["height"].iloc[0] * mine["width"].iloc[0]))
    caption = (
        f"{results.study.dataset}, {len(pictures)} test images, the network of {method.title}, {seed_text(seed)}. "
        "Left: the last feature maps of the image on two principal components, with the cells in which FDD-2D counts "
        "them; the occupied cells, ordered by the number of maps in them, are cut into thirds: low, medium and high "
        "density. "
        f"Right: the {int(mine['rank'].max())} maps of each group with the largest response, the largest first, "
        "brought back to the input by deconvolution; bright is where the absolute value is large, each map on its own "
        f"scale; the figure is its entropy in nats, at most {fixed(largest, 2)}, for a map that is the same "
        "everywhere. After Figure 2 of Ke et al. (2020), who show a toy network of 5 layers."
    )
    frame = mine[["method", "seed", *(name for name in _HEATMAPS if name != "heatmap")]].reset_index(drop=True)
    title, figure = "Figure 2: heat maps of feature maps of low, medium and high density", _draw(mine, planes, pictures)
    return [Exhibit("figure2-heat-maps", title, caption, frame, figure=figure)]
