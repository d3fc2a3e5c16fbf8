"""Figure 4: how the activations before the last linear layer are distributed, and how many are near zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import matplotlib.ticker as ticks
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from robustfdd.report.analyses import (
    SPREAD,
    MethodRows,
    analysis_table,
    by_method,
    first_of,
    mean_and_spread,
    seeds_of,
    shares,
)
from robustfdd.report.exhibit import Column, Exhibit, table
from robustfdd.report.figures import drawn, small_multiples
from robustfdd.report.results import Results
from robustfdd.report.study import Method, count_text, number, seeds_text
from robustfdd.report.style import style
from robustfdd.rounding import Figure as Number
from robustfdd.rounding import fixed, mean

ORDER = 44

_STATISTICS = (
    *("n_images", "n_features", "mean", "std", "near_zero", "share_near_zero", "near_zero_relative"),
    *("share_near_zero_relative", "mean_max_abs_logit", "mean_logit_margin"),
)
#: Bars of a panel, about; the axis ends where fewer activations than this share lie above.
_N_BARS = 60
_BEYOND = 1e-4


@dataclass(frozen=True)
class _Histogram:
    """Shares of a method's activations in each bar; together they may be less than 1, as the axis has an end."""

    method: Method
    share: npt.NDArray[np.float64]
    beyond: float
    near_zero: Fraction


def _histograms(
    results: Results, bins: pd.DataFrame, summary: pd.DataFrame
) -> tuple[npt.NDArray[np.float64], list[_Histogram]]:
    """The edges of the bars, the same for all methods, and the histograms, over all seeds together."""
    finite = bins[np.isfinite(bins["right"])]
    width = float((finite["right"] - finite["left"]).median())
    found = []
    for method, rows in by_method(results, bins):
        counts = np.bincount(np.rint(rows["left"] / width).astype(int), weights=rows["count"])
        found.append((method, counts / counts.sum()))
    # In a bin or a higher one.
    above = [share[::-1].cumsum()[::-1] for _, share in found]
    n_shown = max(1, *(int((share >= _BEYOND).sum()) for share in above))
    merged = math.ceil(n_shown / _N_BARS)
    n_bars = math.ceil(n_shown / merged)
    histograms = []
    for method, share in found:
        padded = np.zeros(n_bars * merged)
        inside = share[: len(padded)]
        padded[: len(inside)] = inside
        near_zero = mean(shares(summary[summary["method"] == method.label], "share_near_zero_relative"))
        bars, beyond = padded.reshape(n_bars, merged).sum(1), float(share[len(padded) :].sum())
        histograms.append(_Histogram(method, bars, beyond, near_zero))
    return np.array([i * merged * width for i in range(n_bars + 1)], dtype=np.float64), histograms


@drawn
def _draw(
    edges: npt.NDArray[np.float64], histograms: list[_Histogram], reference: Method | None, positions: dict[str, int]
) -> Figure:
    least = min(float(h.share[h.share > 0].min()) for h in histograms)
    outline = next((h for h in histograms if h.method is reference), None)
    n = len(histograms)
    figure, grid = small_multiples(n, width=2.6, height=2.3, least=4.0, rest=0.5, sharex=True, sharey=True)
    for axes, found in zip(grid, histograms, strict=True):
        axes.stairs(100 * found.share, edges, fill=True, color=style(positions[found.method.label]).colour, alpha=0.75)
        if outline is not None and found is not outline:
            axes.stairs(100 * outline.share, edges, color="#111827", linewidth=0.9)
        axes.set_title(f"{found.method.title}\n{fixed(100 * found.near_zero, 1)} % near zero", fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(100 * least / 2, 100)
        axes.set_xlim(0, edges[-1])
        axes.yaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticks.NullFormatter())
        axes.grid(True, which="major")
    figure.supxlabel("Activation (pooled feature)", fontsize=10)
    figure.supylabel("Share of activations (%), logarithmic", fontsize=10)
    return figure


def _column(header: str, decimals: int, of: Callable[[pd.DataFrame], list[Number]]) -> Column[MethodRows]:
    return Column(header, lambda item: mean_and_spread(of(item[1]), decimals))


def _percent(column: str) -> Callable[[pd.DataFrame], list[Number]]:
    return lambda rows: [100 * value for value in shares(rows, column)]


_COLUMNS: list[Column[MethodRows]] = [
    Column("Method", lambda item: item[0].title, kind="name"),
    _column("Near zero, relative (%)", 1, _percent("share_near_zero_relative")),
    _column("Near zero, absolute (%)", 1, _percent("share_near_zero")),
    _column("Mean activation", 3, lambda rows: rows["mean"].tolist()),
    _column("Largest |logit|", 2, lambda rows: rows["mean_max_abs_logit"].tolist()),
    _column("Logit margin", 2, lambda rows: rows["mean_logit_margin"].tolist()),
]


def _captions(
    results: Results, summary: pd.DataFrame, histograms: list[_Histogram], reference: Method | None
) -> tuple[str, str]:
    """Of the figure, and of the table."""
    relative, absolute = (number(float(summary[name].iloc[0])) for name in ("near_zero_relative", "near_zero"))
    images = count_text((summary["n_images"].min(), summary["n_images"].max()))
    seeds = seeds_of(summary)
    what = (
        f"{results.study.dataset}: the {summary['n_features'].max():,} pooled features before the last linear layer, "
        f"in evaluation, before any dropout on them or on the last maps, for {images} test images; {seeds_text(seeds)}."
    )
    meaning = (
        f"Near zero: below {relative} of the mean activation of the network itself, since a network that halves all "
        "its features and doubles the weights after them is the same function"
    )
    beyond = max(found.beyond for found in histograms)
    tail = f" Up to {100 * beyond:.2g} % of a method's activations lie beyond the axis." if beyond else ""
    line = f" Black line: {reference.title}, for comparison." if reference and len(histograms) > 1 else ""
    return (
        f"{what} The vertical axis is logarithmic, and the axes of all panels are the same.{line}{tail} {meaning}. "
        "After Figure 4 of Ke et al. (2020), who show counts of unspecified images.",
        f"{what} {meaning}; absolute: below {absolute}. Largest |logit| and logit margin (the largest logit less the "
        "second): means over the images, with the forward pass of evaluation. Without rescaling, evaluation sees more "
        f"active features than training did, so that the logits come out larger.{SPREAD if len(seeds) > 1 else ''}",
    )


def build(results: Results) -> list[Exhibit]:
    """A histogram for every method and a table of the shares near zero; none for a run without this analysis."""
    bins = analysis_table(results, "activations", ("left", "right", "count"))
    summary = analysis_table(results, "activation-summary", _STATISTICS)
    if bins is None or summary is None:
        return []
    edges, histograms = _histograms(results, bins, summary)
    reference = first_of([found.method for found in histograms], "none")
    caption, table_caption = _captions(results, summary, histograms, reference)
    parts = [
        pd.DataFrame({"method": h.method.label, "left": edges[:-1], "right": edges[1:], "share": h.share})
        for h in histograms
    ]
    frame = pd.concat(parts, ignore_index=True)
    figure = _draw(edges, histograms, reference, {method.label: i for i, method in enumerate(results.study.methods)})
    titles = (
        "Figure 4: activations before the last linear layer",
        "Figure 4: activations near zero, and the size of the logits",
    )
    items, data = by_method(results, summary), summary[["method", "seed", *_STATISTICS]]
    return [
        Exhibit("figure4-activations", titles[0], caption, frame, figure=figure),
        table("figure4-near-zero", titles[1], table_caption, items, _COLUMNS, frame=data),
    ]
