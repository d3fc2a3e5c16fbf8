"""What the dropout layers cost in an epoch of training."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from robustfdd.paper.published import load
from robustfdd.report.analyses import SPREAD, analysis_table, by_method, mean_and_spread, seeds_of
from robustfdd.report.exhibit import Exhibit, entry, table
from robustfdd.report.results import Results
from robustfdd.report.study import Method, seeds_text

ORDER = 48

_COLUMNS = (
    *("layers", "batch_size", "steps_per_epoch", "step_seconds", "estimate_seconds", "mask_seconds", "estimate_share"),
    *("mask_share", "repetitions", "hardware", "device", "threads"),
)
#: The measured columns that are shown, and what they are called.
_SHOWN = {
    "step_seconds": "Training without dropout (s)",
    "estimate_seconds": "Estimate (s)",
    "estimate_share": "Share (%)",
    "mask_seconds": "Mask (s)",
    "mask_share": "Share (%)",
}
_PUBLISHED = "pca-seconds-per-epoch"


def _text(values: pd.Series[float]) -> str:
    """The mean, with two significant digits or all of its whole ones, and the spread."""
    mean = float(values.mean())
    return mean_and_spread(values.tolist(), next((n for n in range(6) if mean * 10**n >= 10), 6))


def _caption(results: Results, frame: pd.DataFrame, methods: Sequence[Method]) -> str:
    where = "; ".join(
        dict.fromkeys(
            f"{hardware}, " + (str(device) if device != "cpu" else f"{threads} CPU thread{'s' if threads > 1 else ''}")
            for hardware, device, threads in zip(frame["hardware"], frame["device"], frame["threads"], strict=True)
        )
    )
    one = frame.iloc[0]
    not_dynamic = [m.title for m in methods if (m.settings.get("variant") or {}).get("dynamic") is False]
    caption = (
        f"{results.study.dataset}, batches of {one['batch_size']}, {one['steps_per_epoch']} steps an epoch; measured "
        f"on {where}; {seeds_text(seeds_of(frame))}.{SPREAD if len(seeds_of(frame)) > 1 else ''} Seconds an epoch: of "
        "training steps without dropout (forward, backward, update); of estimating the drop probabilities, which for "
        "feature density dropout is the principal components and the counts; and of the whole mask, estimate and draw. "
        f"Shares are of the training steps. Each is the median of {one['repetitions']} measurements by turns, on one "
        "batch, times the steps; reading and augmenting images are left out. Methods with a constant probability "
        "estimate nothing, and show what a mask costs anyway. The published figure was measured on other hardware, a "
        "GPU, over all training images of a data set that is not named; only the share can be compared, which the "
        "paper calls negligible."
    )
    if not_dynamic:
        caption += (
            f" {' and '.join(not_dynamic)} does not drop in training; its figures are for as many images in evaluation."
        )
    return caption


def build(results: Results) -> list[Exhibit]:
    """One row a method with a dropout layer, and what is published; none for a run without this analysis."""
    frame = analysis_table(results, "cost", _COLUMNS)
    if frame is None:
        return []
    published, methods = load(), by_method(results, frame)
    scale = {name: 100 if name.endswith("share") else 1 for name in _SHOWN}
    items = [{"method": m.title, **{name: _text(scale[name] * rows[name]) for name in _SHOWN}} for m, rows in methods]
    theirs = f"{published.value(_PUBLISHED):g}"
    items.append({"method": f"{published.source.short}: PCA", "estimate_seconds": theirs})
    columns = [entry("Method", "method", "name"), *(entry(header, name) for name, header in _SHOWN.items())]
    return [
        table(
            "cost-of-dropout",
            "Cost of the dropout layers in an epoch of training",
            _caption(results, frame, [method for method, _ in methods]),
            items,
            columns,
            frame=frame[["method", "seed", *_COLUMNS]],
        )
    ]
