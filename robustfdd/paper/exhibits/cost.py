"""What the dropout layers cost in an epoch of training."""

from __future__ import annotations

import pandas as pd

from robustfdd.paper.published import load
from robustfdd.report.analyses import analysis_table, mean_and_spread, methods_of, seeds_of
from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import GAP, Grid
from robustfdd.report.results import Results
from robustfdd.report.tables import seeds_text

ORDER = 48

_NAME = "cost-of-dropout"
_TITLE = "Cost of the dropout layers in an epoch of training"
_COLUMNS = (
    "layers",
    "batch_size",
    "steps_per_epoch",
    "step_seconds",
    "estimate_seconds",
    "mask_seconds",
    "estimate_share",
    "mask_share",
    "repetitions",
    "hardware",
    "device",
    "threads",
)
_PUBLISHED = "pca-seconds-per-epoch"


def _text(values: pd.Series[float]) -> str:
    """The mean, with two significant digits or all of its whole ones, and the spread."""
    mean = float(values.mean())
    return mean_and_spread(values.tolist(), next((n for n in range(6) if mean * 10**n >= 10), 6))


def build(results: Results) -> list[Artefact]:
    """One row a method with a dropout layer, and what is published; none for a run without this analysis."""
    frame = analysis_table(results, "cost", _COLUMNS)
    if frame is None:
        return []
    published = load()
    methods = methods_of(results, frame)
    rows = []
    for method in methods:
        mine = frame[frame["method"] == method.label]

        rows.append(
            (
                method.title,
                _text(mine["step_seconds"]),
                _text(mine["estimate_seconds"]),
                _text(100 * mine["estimate_share"]),
                _text(mine["mask_seconds"]),
                _text(100 * mine["mask_share"]),
            )
        )
    rows.append((f"{published.source.short}: PCA", GAP, f"{published.value(_PUBLISHED):g}", GAP, GAP, GAP))
    where = "; ".join(
        dict.fromkeys(
            f"{hardware}, " + (str(device) if device != "cpu" else f"{threads} CPU thread{'s' if threads > 1 else ''}")
            for hardware, device, threads in zip(frame["hardware"], frame["device"], frame["threads"], strict=True)
        )
    )
    one = frame.iloc[0]
    not_dynamic = [m.title for m in methods if (m.settings.get("variant") or {}).get("dynamic") is False]
    spread = " Mean ± sample standard deviation over seeds." if len(seeds_of(frame)) > 1 else ""
    caption = (
        f"{results.study.dataset}, batches of {one['batch_size']}, {one['steps_per_epoch']} steps an epoch; measured "
        f"on {where}; {seeds_text(seeds_of(frame))}.{spread} Seconds an epoch: of training steps without dropout "
        "(forward, backward, update); of estimating the drop probabilities, which for feature density dropout is the "
        "principal components and the counts; and of the whole mask, estimate and draw. Shares are of the training "
        f"steps. Each is the median of {one['repetitions']} measurements by turns, on one batch, times the steps; "
        "reading and augmenting images are left out. Methods with a constant probability estimate nothing, and show "
        "what a mask costs anyway. The published figure was measured on other hardware, a GPU, over all training "
        "images of a data set that is not named; only the share can be compared, which the paper calls negligible."
    )
    if not_dynamic:
        caption += (
            f" {' and '.join(not_dynamic)} does not drop in training; its figures are for as many images in evaluation."
        )
    headers = (
        "Method",
        "Training without dropout (s)",
        "Estimate (s)",
        "Share (%)",
        "Mask (s)",
        "Share (%)",
    )
    grid = Grid(_NAME, _TITLE, caption, headers, tuple(rows), n_text=1)
    return [Artefact(_NAME, _TITLE, caption, frame[["method", "seed", *_COLUMNS]], grid)]
