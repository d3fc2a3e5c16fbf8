"""Figure 4: how the activations before the last linear layer are distributed, and how many are near zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import matplotlib.ticker as ticks
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from robustfdd.report.analyses import analysis_table, first_of, mean_and_spread, methods_of, seeds_of, shares
from robustfdd.report.artefact import Artefact
from robustfdd.report.figures import drawing, render
from robustfdd.report.grid import Grid
from robustfdd.report.results import Results
from robustfdd.report.study import Method, number
from robustfdd.report.style import style
from robustfdd.report.tables import seeds_text
from robustfdd.rounding import fixed, mean

ORDER = 44

_FIGURE = "figure4-activations"
_TABLE = "figure4-near-zero"
_STATISTICS = (
    "n_images",
    "n_features",
    "mean",
    "std",
    "near_zero",
    "share_near_zero",
    "near_zero_relative",
    "share_near_zero_relative",
    "mean_max_abs_logit",
    "mean_logit_margin",
)
#: Bars of a panel, about; the axis ends where fewer activations than this share lie above.
_N_BARS = 60
#: Panels in a row, at most.
_N_COLUMNS = 4
_BEYOND = 1e-4


@dataclass(frozen=True)
class _Histogram:
    """Shares of a method's activations in each bar; together they may be less than 1, as the axis has an end."""

    method: Method
    share: npt.NDArray[np.float64]
    beyond: float


def _histograms(bins: pd.DataFrame, methods: list[Method]) -> tuple[npt.NDArray[np.float64], list[_Histogram]]:
    """The edges of the bars, the same for all methods, and the histograms, over all seeds together."""
    finite = bins[np.isfinite(bins["right"])]
    width = float((finite["right"] - finite["left"]).median())
    counts = {}
    n_shown = 1
    for method in methods:
        mine = bins[bins["method"] == method.label]
        position = np.rint(mine["left"] / width).astype(int)
        counts[method.label] = np.bincount(position, weights=mine["count"])
        share = counts[method.label] / counts[method.label].sum()
        above = share[::-1].cumsum()[::-1]  # in this bin or a higher one
        n_shown = max(n_shown, int((above >= _BEYOND).sum()))
    merged = math.ceil(n_shown / _N_BARS)
    n_bars = math.ceil(n_shown / merged)
    found = []
    for method in methods:
        share = counts[method.label] / counts[method.label].sum()
        padded = np.zeros(n_bars * merged)
        inside = share[: len(padded)]
        padded[: len(inside)] = inside
        bars = padded.reshape(n_bars, merged).sum(1)
        found.append(_Histogram(method, bars, float(share[len(padded) :].sum())))
    return np.array([i * merged * width for i in range(n_bars + 1)], dtype=np.float64), found


def _draw(
    edges: npt.NDArray[np.float64],
    histograms: list[_Histogram],
    near_zero: dict[str, Fraction],
    reference: Method | None,
    positions: dict[str, int],
) -> dict[str, bytes]:
    n_rows = math.ceil(len(histograms) / _N_COLUMNS)
    n_columns = math.ceil(len(histograms) / n_rows)
    least = min(float(h.share[h.share > 0].min()) for h in histograms)
    outline = next((h for h in histograms if reference and h.method.label == reference.label), None)
    with drawing():
        figure = Figure(figsize=(max(2.6 * n_columns, 4.0), 2.3 * n_rows + 0.5))
        grid = figure.subplots(n_rows, n_columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(histograms) :]:
            axes.set_axis_off()
        for i, (axes, found) in enumerate(zip(grid.flat, histograms, strict=False)):
            colour = style(positions[found.method.label]).colour
            axes.stairs(100 * found.share, edges, fill=True, color=colour, alpha=0.75)
            if outline is not None and found is not outline:
                axes.stairs(100 * outline.share, edges, color="#111827", linewidth=0.9)
            axes.set_title(
                f"{found.method.title}\n{fixed(100 * near_zero[found.method.label], 1)} % near zero", fontsize=9
            )
            axes.set_yscale("log")
            axes.set_ylim(100 * least / 2, 100)
            axes.set_xlim(0, edges[-1])
            axes.yaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(ticks.NullFormatter())
            axes.grid(True, which="major")
            if i + n_columns >= len(histograms):
                axes.tick_params(labelbottom=True)
        figure.supxlabel("Activation (pooled feature)", fontsize=10)
        figure.supylabel("Share of activations (%), logarithmic", fontsize=10)
        return render(figure)


def _table(results: Results, summary: pd.DataFrame, caption: str) -> Artefact:
    rows = []
    for method in methods_of(results, summary):
        mine = summary[summary["method"] == method.label]
        rows.append(
            (
                method.title,
                mean_and_spread([100 * value for value in shares(mine, "share_near_zero_relative")], 1),
                mean_and_spread([100 * value for value in shares(mine, "share_near_zero")], 1),
                mean_and_spread(mine["mean"].tolist(), 3),
                mean_and_spread(mine["mean_max_abs_logit"].tolist(), 2),
                mean_and_spread(mine["mean_logit_margin"].tolist(), 2),
            )
        )
    headers = (
        "Method",
        "Near zero, relative (%)",
        "Near zero, absolute (%)",
        "Mean activation",
        "Largest |logit|",
        "Logit margin",
    )
    title = "Figure 4: activations near zero, and the size of the logits"
    grid = Grid(_TABLE, title, caption, headers, tuple(rows), n_text=1)
    return Artefact(_TABLE, title, caption, summary[["method", "seed", *_STATISTICS]], grid)


def build(results: Results) -> list[Artefact]:
    """A histogram for every method and a table of the shares near zero; none for a run without this analysis."""
    bins = analysis_table(results, "activations", ("left", "right", "count"))
    summary = analysis_table(results, "activation-summary", _STATISTICS)
    if bins is None or summary is None:
        return []
    methods = methods_of(results, bins)
    edges, histograms = _histograms(bins, methods)
    reference = first_of(methods, "none")
    near_zero = {
        method.label: mean(shares(summary[summary["method"] == method.label], "share_near_zero_relative"))
        for method in methods
    }
    relative, absolute = (
        number(float(summary["near_zero_relative"].iloc[0])),
        number(float(summary["near_zero"].iloc[0])),
    )
    images = " to ".join(f"{n:,}" for n in sorted({summary["n_images"].min(), summary["n_images"].max()}))
    seeds = seeds_text(seeds_of(summary))
    what = (
        f"{results.study.dataset}: the {summary['n_features'].max():,} pooled features before the last linear layer, "
        f"in evaluation, before any dropout on them or on the last maps, for {images} test images; {seeds}."
    )
    meaning = (
        f"Near zero: below {relative} of the mean activation of the network itself, since a network that halves all "
        "its features and doubles the weights after them is the same function"
    )
    beyond = max(found.beyond for found in histograms)
    tail = f" Up to {100 * beyond:.2g} % of a method's activations lie beyond the axis." if beyond else ""
    line = f" Black line: {reference.title}, for comparison." if reference and len(methods) > 1 else ""
    caption = (
        f"{what} The vertical axis is logarithmic, and the axes of all panels are the same.{line}{tail} {meaning}. "
        "After Figure 4 of Ke et al. (2020), who show counts of unspecified images."
    )
    table_caption = (
        f"{what} {meaning}; absolute: below {absolute}. Largest |logit| and logit margin (the largest logit less the "
        "second): means over the images, with the forward pass of evaluation. Without rescaling, evaluation sees more "
        "active features than training did, so that the logits come out larger."
        + (" Mean ± sample standard deviation over seeds." if len(seeds_of(summary)) > 1 else "")
    )
    frame = pd.concat(
        [
            pd.DataFrame({"method": h.method.label, "left": edges[:-1], "right": edges[1:], "share": h.share})
            for h in histograms
        ],
        ignore_index=True,
    )
    positions = {method.label: i for i, method in enumerate(results.study.methods)}
    title = "Figure 4: activations before the last linear layer"
    figure = _draw(edges, histograms, near_zero, reference, positions)
    return [Artefact(_FIGURE, title, caption, frame, figure=figure), _table(results, summary, table_caption)]
