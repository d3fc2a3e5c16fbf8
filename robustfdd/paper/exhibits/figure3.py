"""Figure 3: the average heat maps of the density groups, and how dispersed they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustfdd.paper.published import Published, load
from robustfdd.report.analyses import analysis_table, first_of, mean_and_spread, methods_of, seeds_of
from robustfdd.report.artefact import Artefact
from robustfdd.report.figures import drawing, render
from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Results
from robustfdd.report.study import Method
from robustfdd.report.tables import seeds_text
from robustfdd.rounding import fixed

ORDER = 43

_FIGURE = "figure3-average-heat-maps"
_TABLE = "figure3-entropies"
_GROUPS = ("low", "medium", "high", "all")
#: The three entropies of a group, and what a table calls them.
_ENTROPIES = {
    "average_entropy": "mean of single maps, nats",
    "entropy_of_average": "average map, nats",
    "grey_level_entropy_of_average": "grey levels of average map, bits",
}
_COLUMNS = (
    "group",
    "n_images",
    "of_images",
    "n_top",
    "n_heatmaps",
    "share_of_maps",
    *_ENTROPIES,
    "height",
    "width",
    "heatmap",
)
#: The names of the published figures, by group.
_PUBLISHED = {"low": "heat-map-entropy-low-density", "high": "heat-map-entropy-high-density"}


def _shown(methods: list[Method]) -> list[Method]:
    """The networks without dropout and with FDD-2D; the first one where a run has neither."""
    return [m for dropout in ("none", "fdd-2d") if (m := first_of(methods, dropout)) is not None] or methods[:1]


def _draw(found: list[tuple[Method, pd.DataFrame]], published: str) -> dict[str, bytes]:
    with drawing():
        figure = Figure(figsize=(8.8, 2.35 * len(found) + 0.5))
        grid = figure.subplots(len(found), len(_GROUPS), squeeze=False)
        for line, (method, rows) in zip(grid, found, strict=True):
            maps = {
                str(row["group"]): np.asarray(row["heatmap"], dtype=float).reshape(row["height"], row["width"])
                for _, row in rows.iterrows()
            }
            top = max(values.max() for values in maps.values())
            image = None
            for axes, group in zip(line, _GROUPS, strict=True):
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if group not in maps:
                    axes.set_title(f"{group}: no maps", fontsize=9)
                    continue
                image = axes.imshow(maps[group], cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
                row = rows[rows["group"] == group].iloc[0]
                axes.set_title(f"{group}: {fixed(row['entropy_of_average'], 3)} nats", fontsize=9)
            line[0].set_ylabel(method.title, fontsize=10)
            if image is not None:
                bar = figure.colorbar(image, ax=list(line), shrink=0.85, pad=0.01)
                bar.ax.tick_params(labelsize=7)
                bar.set_label("Share of the map", fontsize=8)
        figure.supxlabel(published, fontsize=9)
        return render(figure)


def _table(results: Results, frame: pd.DataFrame, published: Published, caption: str) -> Artefact:
    rows = []
    for method in methods_of(results, frame):
        mine = frame[frame["method"] == method.label]
        for column, meaning in _ENTROPIES.items():
            values = {group: mine[mine["group"] == group][column].tolist() for group in _GROUPS}
            cells = [mean_and_spread(values[group], 3) if values[group] else GAP for group in _GROUPS]
            rows.append((method.title, meaning, *cells))
    cells = [fixed(published.value(_PUBLISHED[group]), 3) if group in _PUBLISHED else GAP for group in _GROUPS]
    rows.append((published.source.short, "of heat maps, base not stated", *cells))
    names = [row[0] for row in rows]
    title = "Figure 3: entropy of the heat maps by feature density"
    headers = ("Method", "Entropy", *(group.capitalize() for group in _GROUPS))
    grid = Grid(_TABLE, title, caption, headers, tuple(rows), n_text=2, rules=group_starts(names))
    data = frame[["method", "seed", *(name for name in _COLUMNS if name != "heatmap")]]
    return Artefact(_TABLE, title, caption, data, grid)


def build(results: Results) -> list[Artefact]:
    """The average heat maps and the entropies of all methods; none for a run without this analysis."""
    frame = analysis_table(results, "density-groups", _COLUMNS)
    if frame is None:
        return []
    published = load()
    found = []
    for method in _shown(methods_of(results, frame)):
        mine = frame[frame["method"] == method.label]
        found.append((method, mine[mine["seed"] == mine["seed"].min()]))
    largest = float(np.log(frame["height"].iloc[0] * frame["width"].iloc[0]))
    drawn = (
        f"The networks of {' and '.join(method.title for method, _ in found)}"
        if len(found) > 1
        else (f"The network of {found[0][0].title}")
    )
    first_seeds = " and ".join(map(str, sorted({int(rows["seed"].iloc[0]) for _, rows in found})))
    how = (
        f"{results.study.dataset}, {frame['of_images'].max():,} test images. Of each image, the {frame['n_top'].max()} "
        "feature maps with the largest response in each density group (the thirds of its occupied cells, ordered by "
        "the number of maps in them) are brought back to the input by deconvolution; all: the three groups together."
    )
    values = {group: published.value(name) for group, name in _PUBLISHED.items()}
    theirs = ", ".join(f"{group} {fixed(value, 3)}" for group, value in values.items())
    entropy = (
        f"The entropy of a heat map that sums to 1 is at most {fixed(largest, 3)} nats, for one that is the same "
        "everywhere, and 0 for a single pixel: larger is more dispersed"
    )
    note = (
        f"{published.source.short} give {theirs} for a toy network of 5 layers; they state neither the base of the "
        "logarithm nor the size of the heat map, so that only the order of the groups can be compared, not the values."
    )
    caption = (
        f"{how} {drawn}, seed {first_seeds}. In each title the entropy of the average map; the colours of a row are on "
        f"one scale. {entropy}. {note}"
    )
    spread = " Mean ± sample standard deviation over seeds." if len(seeds_of(frame)) > 1 else ""
    table_caption = (
        f"{how} {seeds_text(seeds_of(frame)).capitalize()}.{spread} {entropy}. The paper's average entropy of a "
        "grouped heat map can mean the first or the second; the third is the entropy of the histogram of 256 grey "
        f"levels, which says nothing of places. {note}"
    )
    title = "Figure 3: average heat maps by feature density"
    figure = _draw(found, f"{published.source.short}, toy network: {theirs} (base of the logarithm not stated)")
    data = pd.concat([rows for _, rows in found], ignore_index=True)
    data = data[["method", "seed", *(name for name in _COLUMNS if name != "heatmap")]]
    return [Artefact(_FIGURE, title, caption, data, figure=figure), _table(results, frame, published, table_caption)]
