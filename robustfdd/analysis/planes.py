"""The last feature maps of a few images on their principal axes: density, drop probability, and one draw.

After Figure 6 of Ke et al. 2020, for layers that drop whole maps of the last stage. The axes are those on which
feature density dropout counts (:func:`robustfdd.dropouts.density.principal_coordinates`), whatever the layer is, and
the density is that of FDD-2D, so that layers can be compared.
"""

from __future__ import annotations

import copy

import pandas as pd
import torch
from torch import Tensor

from robustfdd.analysis.base import Analysis, TrainedModel, images_of_different_classes, register
from robustfdd.classifier import frozen
from robustfdd.datasets.base import to_pixels
from robustfdd.dropouts import DROPOUTS, Dropout, build_dropout
from robustfdd.dropouts.density import feature_density, principal_coordinates
from robustfdd.models import ModelConfig

#: Test images of different classes.
N_IMAGES = 3
#: Components and cells of the density: those of FDD-2D.
N_COMPONENTS = 2
N_BINS = 5
#: Axes that are recorded.
N_AXES = 3
#: Of the one draw of the layer.
DRAW_SEED = 0


def plane(maps: Tensor, n_axes: int) -> Tensor:
    """Coordinates of each sample's maps on its principal axes, in the order of their variance.

    Args:
        maps: shape (N, C, H, W).
        n_axes: number of axes; those that do not exist have the coordinate 0.

    Returns:
        Shape (N, C, n_axes), float32. The arbitrary sign of an axis is such that its largest coordinate is positive.
    """
    points = principal_coordinates(maps.flatten(2).float(), n_axes)
    points = torch.nn.functional.pad(points, (0, n_axes - points.shape[2]))
    order = points.square().sum(1).argsort(dim=1, descending=True, stable=True)
    points = points.gather(2, order[:, None].expand_as(points))
    largest = points.gather(1, points.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -points, points)


def drops_last_maps(config: ModelConfig) -> bool:
    """Whether the network has a layer on its last feature maps that decides over each map as a whole."""
    spec = DROPOUTS[config.dropout]
    if spec.site != "maps" or config.placement != "last":
        return False
    layer = build_dropout(config.dropout, n_units=2, **config.options)
    return isinstance(layer, Dropout) and layer.drop_probability(torch.ones(1, 2, 3, 3)).shape == (1, 2)


def compute(trained: TrainedModel) -> dict[str, pd.DataFrame]:
    """One row a feature map and image: where it lies, its density, its drop probability, and whether it is dropped."""
    model, test = trained.model, trained.dataset.test
    index = images_of_different_classes(test.labels, N_IMAGES)
    layer = copy.deepcopy(model.map_dropout)
    assert isinstance(layer, Dropout), "see drops_last_maps"
    layer.active = "always"
    layer.generator = torch.Generator().manual_seed(DRAW_SEED)
    with frozen(model), torch.no_grad():
        maps = model.feature_maps(to_pixels(test.images[index.to(trained.device)]))
        points = plane(maps, N_AXES).cpu()
        density = feature_density(maps, N_COMPONENTS, N_BINS).cpu()
        probability = layer.drop_probability(maps).cpu()
        dropped = (layer.multiplier(maps) == 0).cpu()
    n_images, n_channels = density.shape
    columns = {
        "image": index.repeat_interleave(n_channels),
        "channel": torch.arange(n_channels).repeat(n_images),
        **{f"pc{axis + 1}": points[:, :, axis].flatten() for axis in range(N_AXES)},
        "density": density.flatten(),
        "drop_probability": probability.flatten(),
        "dropped": dropped.flatten(),
    }
    frame = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    names = [trained.dataset.classes[int(label)] for label in test.labels[index.to(trained.device)]]
    frame.insert(1, "class", [name for name in names for _ in range(n_channels)])
    frame["n_bins"] = N_BINS
    return {"planes": frame}


register(
    Analysis(
        name="planes",
        title="feature maps on their principal axes",
        tables=("planes",),
        settings={
            "n_images": N_IMAGES,
            "n_components": N_COMPONENTS,
            "n_bins": N_BINS,
            "n_axes": N_AXES,
            "draw_seed": DRAW_SEED,
        },
        compute=compute,
        applies=drops_last_maps,
    )
)
