"""Figure 3: the average heat maps of the density groups, and how dispersed they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustfdd.paper.published import Published, load
from robustfdd.report.analyses import SPREAD, MethodRows, analysis_table, by_method, first_of, mean_and_spread, seeds_of
from robustfdd.report.exhibit import Exhibit, entry, table
from robustfdd.report.figures import bare, drawn
from robustfdd.report.results import Results
from robustfdd.report.study import Method, seeds_text
from robustfdd.rounding import fixed

ORDER = 43

_GROUPS = ("low", "medium", "high", "all")
#: The three entropies of a group, and what a table calls them.
_ENTROPIES = {
    "average_entropy": "mean of single maps, nats",
    "entropy_of_average": "average map, nats",
    "grey_level_entropy_of_average": "grey levels of average map, bits",
}
#: What is read besides the heat maps, and written as data.
_DATA = (
    *("group", "n_images", "of_images", "n_top", "n_heatmaps", "share_of_maps"),
    *_ENTROPIES,
    *("height", "width"),
)
#: The names of the published figures, by group.
_PUBLISHED = {"low": "heat-map-entropy-low-density", "high": "heat-map-entropy-high-density"}


def _shown(methods: list[Method]) -> list[Method]:
    """The networks without dropout and with FDD-2D; the first one where a run has neither."""
    return [m for dropout in ("none", "fdd-2d") if (m := first_of(methods, dropout)) is not None] or methods[:1]


@drawn
def _draw(found: list[MethodRows], published: str) -> Figure:
    figure = Figure(figsize=(8.8, 2.35 * len(found) + 0.5))
    grid = figure.subplots(len(found), len(_GROUPS), squeeze=False)
    for line, (method, rows) in zip(grid, found, strict=True):
        maps = {
            str(row["group"]): (np.asarray(row["heatmap"], dtype=float).reshape(row["height"], row["width"]), row)
            for _, row in rows.iterrows()
        }
        top = max(values.max() for values, _ in maps.values())
        image = None
        for axes, group in zip(line, _GROUPS, strict=True):
            bare(axes)
            if group not in maps:
                axes.set_title(f"{group}: no maps", fontsize=9)
                continue
            values, row = maps[group]
            image = axes.imshow(values, cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
            axes.set_title(f"{group}: {fixed(row['entropy_of_average'], 3)} nats", fontsize=9)
        line[0].set_ylabel(method.title, fontsize=10)
        if image is not None:
            bar = figure.colorbar(image, ax=list(line), shrink=0.85, pad=0.01)
            bar.ax.tick_params(labelsize=7)
            bar.set_label("Share of the map", fontsize=8)
    figure.supxlabel(published, fontsize=9)
    return figure


def _table(results: Results, frame: pd.DataFrame, published: Published, caption: str) -> Exhibit:
    items = []
    for method, mine in by_method(results, frame):
        for column, meaning in _ENTROPIES.items():
            values = {str(group): mean_and_spread(rows[column].tolist(), 3) for group, rows in mine.groupby("group")}
            items.append({"method": method.title, "entropy": meaning, **values})
    theirs = {group: fixed(published.value(name), 3) for group, name in _PUBLISHED.items()}
    items.append({"method": published.source.short, "entropy": "of heat maps, base not stated", **theirs})
    names = [entry("Method", "method", "name"), entry("Entropy", "entropy", "name")]
    columns = [*names, *(entry(group.capitalize(), group) for group in _GROUPS)]
    title = "Figure 3: entropy of the heat maps by feature density"
    data = frame[["method", "seed", *_DATA]]
    return table("figure3-entropies", title, caption, items, columns, frame=data, group=lambda row: row["method"])


def _captions(
    results: Results, frame: pd.DataFrame, found: list[MethodRows], short: str, theirs: str
) -> tuple[str, str]:
    """Of the figure, and of the table."""
    drawn_of = f"The network{'s' if len(found) > 1 else ''} of {' and '.join(method.title for method, _ in found)}"
    first_seeds = " and ".join(map(str, sorted({int(rows["seed"].iloc[0]) for _, rows in found})))
    how = (
        f"{results.study.dataset}, {frame['of_images'].max():,} test images. Of each image, the {frame['n_top'].max()} "
        "feature maps with the largest response in each density group (the thirds of its occupied cells, ordered by "
        "the number of maps in them) are brought back to the input by deconvolution; all: the three groups together."
    )
    largest = float(np.log(frame["height"].iloc[0] * frame["width"].iloc[0]))
    entropy = (
        f"The entropy of a heat map that sums to 1 is at most {fixed(largest, 3)} nats, for one that is the same "
        "everywhere, and 0 for a single pixel: larger is more dispersed"
    )
    note = (
        f"{short} give {theirs} for a toy network of 5 layers; they state neither the base of the "
        "logarithm nor the size of the heat map, so that only the order of the groups can be compared, not the values."
    )
    seeds = seeds_of(frame)
    return (
        f"{how} {drawn_of}, seed {first_seeds}. In each title the entropy of the average map; the colours of a row are "
        f"on one scale. {entropy}. {note}",
        f"{how} {seeds_text(seeds).capitalize()}.{SPREAD if len(seeds) > 1 else ''} {entropy}. The paper's average "
        "entropy of a grouped heat map can mean the first or the second; the third is the entropy of the histogram of "
        f"256 grey levels, which says nothing of places. {note}",
    )


def build(results: Results) -> list[Exhibit]:
    """The average heat maps and the entropies of all methods; none for a run without this analysis."""
    frame = analysis_table(results, "density-groups", (*_DATA, "heatmap"))
    if frame is None:
        return []
    published = load()
    first = [(method, rows[rows["seed"] == rows["seed"].min()]) for method, rows in by_method(results, frame)]
    shown = _shown([method for method, _ in first])
    found = [item for method in shown for item in first if item[0] is method]
    short = published.source.short
    theirs = ", ".join(f"{group} {fixed(published.value(name), 3)}" for group, name in _PUBLISHED.items())
    caption, table_caption = _captions(results, frame, found, short, theirs)
    figure = _draw(found, f"{short}, toy network: {theirs} (base of the logarithm not stated)")
    data = pd.concat([rows for _, rows in found], ignore_index=True)[["method", "seed", *_DATA]]
    title = "Figure 3: average heat maps by feature density"
    return [
        Exhibit("figure3-average-heat-maps", title, caption, data, figure=figure),
        _table(results, frame, published, table_caption),
    ]
