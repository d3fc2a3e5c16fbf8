"""Figure 6: which of the last feature maps a dropout drops, in the plane of their principal components."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustfdd.report.analyses import MethodRows, analysis_table, cell_borders, first_of, methods_of
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.figures import drawn
from robustfdd.report.results import Results
from robustfdd.report.study import Method
from robustfdd.rounding import fixed

ORDER = 46

_AXES = ("pc1", "pc2", "pc3")
_COLUMNS = ("image", "class", "channel", *_AXES, "density", "drop_probability", "dropped", "n_bins")
_SHOWN = ("spatial", "fdd-2d")
_LOOKS = {"retained": ("#0072B2", "o"), "dropped": ("#E69F00", "x")}


def _chosen(methods: list[Method]) -> list[Method]:
    """Spatial dropout and FDD-2D; where a run has neither, the first two of its layers that drop whole maps."""
    found = [method for dropout in _SHOWN if (method := first_of(methods, dropout)) is not None]
    return found or methods[:2]


def _rows(frame: pd.DataFrame, method: Method) -> pd.DataFrame:
    """The maps of one image, under the model of the first seed."""
    mine = frame[frame["method"] == method.label]
    mine = mine[mine["seed"] == mine["seed"].min()]
    rows: pd.DataFrame = mine[mine["image"] == mine["image"].iloc[0]]
    return rows


@drawn
def _draw(found: list[MethodRows]) -> Figure:
    figure = Figure(figsize=(8.4, 3.9 * len(found)))
    for i, (method, rows) in enumerate(found):
        dropped = rows["dropped"].to_numpy(dtype=bool)
        points = rows[list(_AXES)].to_numpy(dtype=float)
        flat = figure.add_subplot(len(found), 2, 2 * i + 1)
        solid = figure.add_subplot(len(found), 2, 2 * i + 2, projection="3d")
        cell_borders(flat, points[:, :2], int(rows["n_bins"].iloc[0]))
        for label, which in (("retained", ~dropped), ("dropped", dropped)):
            colour, marker = _LOOKS[label]
            look: dict[str, Any] = {"color": colour, "marker": marker, "s": 18, "linewidths": 1.1, "alpha": 0.85}
            flat.scatter(*points[which, :2].T, label=f"{label} ({which.sum()})", **look)
            solid.scatter(*points[which].T, depthshade=False, **look)
        flat.set_title(f"{method.title}: two components")
        flat.set_xlabel("Component 1")
        flat.set_ylabel("Component 2")
        flat.legend(loc="best", fontsize=8, frameon=True)
        solid.set_title(f"{method.title}: three components")
        for number, axis in enumerate((solid.xaxis, solid.yaxis, solid.zaxis), start=1):
            axis.set_major_locator(MaxNLocator(4))
            axis.set_tick_params(labelsize=7, pad=0)
            axis.set_label_text(f"Component {number}", fontsize=8)
        solid.set_box_aspect(None, zoom=0.88)
    return figure


def _shares(method: Method, rows: pd.DataFrame) -> str:
    """What share of the maps the draw dropped, in the densest cell and elsewhere."""
    dense = rows["density"] == rows["density"].max()
    parts = [
        f"{fixed(Fraction(100 * int(part['dropped'].sum()), len(part)), 0)} % of the {len(part)} maps {where}"
        for part, where in ((rows[dense], "in the densest cell"), (rows[~dense], "in the other cells"))
        if len(part)
    ]
    return f"{method.title} dropped {' and '.join(parts)}."


def build(results: Results) -> list[Exhibit]:
    """Two and three components under spatial dropout and FDD-2D; none without a layer that drops whole last maps."""
    frame = analysis_table(results, "planes", _COLUMNS)
    if frame is None:
        return []
    found = [(method, _rows(frame, method)) for method in _chosen(methods_of(results, frame))]
    first = found[0][1].iloc[0]
    seeds = sorted({int(rows["seed"].iloc[0]) for _, rows in found})
    caption = (
        f"{results.study.dataset}, test image {first['image']} ({first['class']}), seed "
        f"{' and '.join(map(str, seeds))}: each point is one of the {len(found[0][1]):,} last feature maps, at its "
        "coordinates on the principal axes over the maps of that image, under the network trained with the method; "
        "one draw of its layer. Lines: the cells that FDD-2D counts in. "
        f"{' '.join(_shares(method, rows) for method, rows in found)} After Figure 6 of Ke et al. (2020)."
    )
    shown = pd.concat([rows for _, rows in found], ignore_index=True)[["method", "seed", *_COLUMNS]]
    title = "Figure 6: dropped and retained feature maps on their principal components"
    return [Exhibit("figure6-dropped-maps", title, caption, shown, figure=_draw(found))]
