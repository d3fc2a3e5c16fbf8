"""How the features before the last linear layer are distributed, and how large the logits are.

After Figure 4 of Ke et al. 2020, a histogram of the FC activations of networks trained with different dropouts, in
evaluation and therefore without any dropout. The paper names neither its images nor what it calls close to zero:

* The features are taken as the pooled last feature maps, before any dropout, of :data:`N_IMAGES` test images.
* An activation counts as near zero if it is below :data:`NEAR_ZERO` (which is one bin of the histogram), and, by a
  second measure, if it is below :data:`NEAR_ZERO_RELATIVE` times the mean of the network's activations. The second one
  is the one to compare networks by: a network can halve all its features and double the weights after them without
  being another function, which would make an absolute share larger and leaves the relative one as it is.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from robustfdd.analysis.base import Analysis, TrainedModel, captured_inputs, register
from robustfdd.classifier import batches, frozen
from robustfdd.datasets.base import test_indices, to_pixels

#: Test images, evenly over the classes; all where there are fewer.
N_IMAGES = 2000
#: The width of a bin of the histogram; the first begins at 0, as features are means of what a ReLU made.
BIN_WIDTH = 0.01
#: Bins of that width; one more takes everything above them.
N_BINS = 2000
#: Activations below this one are near zero.
NEAR_ZERO = BIN_WIDTH
#: Activations below this multiple of the mean are near zero by the relative measure.
NEAR_ZERO_RELATIVE = 0.1

_BATCH = 250


def compute(trained: TrainedModel) -> dict[str, pd.DataFrame]:
    """The histogram (``activations``: left, right, count) and one row of statistics (``activation-summary``)."""
    model, test = trained.model, trained.dataset.test
    index = test_indices(test.labels, N_IMAGES, seed=0)
    features, logits = [], []
    with frozen(model), torch.no_grad(), captured_inputs(model.map_dropout) as inputs:
        for part in batches(len(index), _BATCH):
            logits.append(model(to_pixels(test.images[index[part]])).cpu())
            features.append(inputs[model.map_dropout].mean((2, 3)).cpu())
    return tables(torch.cat(features).double().numpy(), torch.cat(logits).double().numpy())


def tables(features: np.ndarray, logits: np.ndarray) -> dict[str, pd.DataFrame]:
    """The tables of features, shape (N, C), at least 0, and logits, shape (N, K)."""
    edges = np.append(np.arange(N_BINS + 1) * BIN_WIDTH, np.inf)
    counts = np.bincount(np.searchsorted(edges, features.ravel(), side="right") - 1, minlength=N_BINS + 1)
    filled = int(counts.nonzero()[0][-1]) + 1
    mean = float(features.mean())
    top = np.sort(logits, axis=1)
    summary = {
        "n_images": len(features),
        "n_features": features.shape[1],
        "mean": mean,
        "std": float(features.std()),
        "near_zero": NEAR_ZERO,
        "share_near_zero": float((features < NEAR_ZERO).mean()),
        "near_zero_relative": NEAR_ZERO_RELATIVE,
        "share_near_zero_relative": float((features < NEAR_ZERO_RELATIVE * mean).mean()),
        "mean_max_abs_logit": float(np.abs(logits).max(1).mean()),
        "mean_logit_margin": float((top[:, -1] - top[:, -2]).mean()),
    }
    histogram = {"left": edges[:filled], "right": edges[1 : filled + 1], "count": counts[:filled]}
    return {"activations": pd.DataFrame(histogram), "activation-summary": pd.DataFrame([summary])}


register(
    Analysis(
        name="activations",
        title="activations before the last layer",
        tables=("activations", "activation-summary"),
        settings={
            "n_images": N_IMAGES,
            "bin_width": BIN_WIDTH,
            "n_bins": N_BINS,
            "near_zero": NEAR_ZERO,
            "near_zero_relative": NEAR_ZERO_RELATIVE,
        },
        compute=compute,
    )
)
