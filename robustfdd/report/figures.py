"""The figures as files: PNG for the screen and PDF, with its fonts embedded, for print."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfdd.report.curves import Panel
from robustfdd.report.results import Results
from robustfdd.report.style import Style, style

_DPI = 160
#: The line of the worst case where it is beside a curve, in points.
THIN = 0.7
#: Panels of the overview in a row, at most.
_COLUMNS = 4
_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # Matplotlib brings it along, so a figure is the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#6b7280",
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "pdf.fonttype": 42,  # TrueType, not Type 3, which publishers refuse
    "figure.constrained_layout.use": True,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib with the settings of every figure of a report, whatever the user's are; drawn and rendered inside."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        # A name may hold a character that the font lacks; it is shown as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def render(figure: Figure) -> dict[str, bytes]:
    """The figure as files: ``png`` and ``pdf``; without a date, so that the bytes depend on the figure alone."""
    # Lay out once: left in place, the layout engine would run again for each file, which doubles the time.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    files = {}
    for extension, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
        buffer = BytesIO()
        figure.savefig(buffer, format=extension, dpi=_DPI, metadata=metadata)
        files[extension] = buffer.getvalue()
    return files


def legend(
    figure: Figure,
    styles: Sequence[Style],
    titles: Sequence[str],
    *,
    marker: bool,
    worst: bool = False,
    **where: Any,
) -> None:
    """A legend of methods, each title as it stands.

    Args:
        figure: the figure.
        styles: the look of each method.
        titles: their names.
        marker: whether the lines have markers.
        worst: whether it also says what the thin lines are.
        where: further arguments of Matplotlib's ``Figure.legend``, e.g. ``loc``.
    """
    handles = [
        Line2D([], [], color=item.colour, linestyle=item.line, marker=item.marker if marker else "") for item in styles
    ]
    if worst:
        handles.append(Line2D([], [], color="#6b7280", linewidth=THIN))
        titles = [*titles, "worst case"]
    # Matplotlib leaves out a label that starts with an underscore, so the names are put in afterwards.
    made = figure.legend(handles, [str(i) for i in range(len(titles))], **where)
    for text, title in zip(made.get_texts(), titles, strict=True):
        text.set_text(title)


def _draw_panel(axes: Axes, panel: Panel, *, characters: float) -> None:
    positions = np.asarray(panel.axis.positions)
    for curve in panel.curves:
        mean = np.array([entry.point for entry in curve.entries])
        std = np.array([entry.spread for entry in curve.entries])
        look = curve.style
        if curve.worst:
            low = [entry.point for entry in curve.worst]
            axes.plot(positions, low, color=look.colour, linewidth=THIN)
        axes.plot(positions, mean, color=look.colour, linestyle=look.line, marker=look.marker, clip_on=False)
        if np.isfinite(std).any():
            axes.fill_between(positions, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0)
    axes.set_title(panel.title)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(0, 100)
    axes.grid(True)

    def ticks(labels: Sequence[str]) -> list[str]:
        shown = panel.axis.labelled(labels, characters)
        return [label if i in shown else "" for i, label in enumerate(labels)]

    axes.set_xticks(positions, ticks(panel.axis.labels[0]))
    axes.set_xlabel(panel.axis.title)
    if panel.axis.two_units:
        top = axes.secondary_xaxis("top")
        top.set_xticks(positions, ticks(panel.axis.labels[1]))
        top.spines["top"].set_visible(True)
        top.set_xlabel(f"ε ({panel.axis.units[1]})")


def draw_panel(panel: Panel) -> dict[str, bytes]:
    """One panel: robust accuracy over epsilon, all methods, a band of one standard deviation over seeds.

    Thin lines without marks are the worst case over all attacks, each in the colour of its method.

    Returns:
        The files by extension, ``png`` and ``pdf``.
    """
    with drawing():
        figure = Figure(figsize=(7.2, 4.2))
        axes = figure.add_subplot()
        _draw_panel(axes, panel, characters=50)
        axes.set_ylabel("Robust accuracy (%)")
        titles = [curve.method.title for curve in panel.curves]
        worst = any(curve.worst for curve in panel.curves)
        legend(figure, [c.style for c in panel.curves], titles, marker=True, worst=worst, loc="outside right center")
        return render(figure)


def draw_overview(found: Sequence[Panel]) -> dict[str, bytes]:
    """All panels, norm by norm, under one legend.

    Returns:
        The files by extension, ``png`` and ``pdf``.
    """
    lines: list[Sequence[Panel]] = []
    for norm in dict.fromkeys(panel.norm for panel in found):
        mine = [panel for panel in found if panel.norm == norm]
        lines += [mine[start : start + _COLUMNS] for start in range(0, len(mine), _COLUMNS)]
    n_columns = max(map(len, lines))
    with drawing():
        mpl.rcParams.update({"xtick.labelsize": 8, "ytick.labelsize": 9})
        figure = Figure(figsize=(max(3.3 * n_columns, 5.0), 3.1 * len(lines) + 0.6))
        grid = figure.subplots(len(lines), n_columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for row, line in enumerate(lines):
            for column, panel in enumerate(line):
                axes = grid[row, column]
                axes.set_axis_on()
                _draw_panel(axes, panel, characters=33)
                if column == 0:
                    axes.set_ylabel("Robust accuracy (%)")
        curves = found[0].curves
        legend(
            figure,
            [curve.style for curve in curves],
            [curve.method.title for curve in curves],
            marker=True,
            worst=True,
            loc="outside lower center",
            ncols=min(len(curves) + 1, 2 * n_columns),
        )
        return render(figure)


def draw_training(results: Results) -> dict[str, bytes] | None:
    """Training loss and accuracy over epochs, one line a model; None where no epochs are recorded.

    Returns:
        The files by extension, ``png`` and ``pdf``.
    """
    methods = [method.label for method in results.study.methods]
    models = [model for model in results.run.models if model.get("epochs") and model.get("method") in methods]
    if not models:
        return None
    shown = [method for method in results.study.methods if any(model["method"] == method.label for model in models)]
    with drawing():
        figure = Figure(figsize=(9.6, 3.6))
        loss, accuracy = figure.subplots(1, 2)
        for model in models:
            look = style(methods.index(model["method"]))
            epochs = range(1, len(model["epochs"]) + 1)
            # A marker where there is one epoch, or nothing would be seen.
            marker = look.marker if len(epochs) == 1 else ""
            line = {"color": look.colour, "linestyle": look.line, "marker": marker}
            loss.plot(epochs, [entry.get("loss", np.nan) for entry in model["epochs"]], **line)
            accuracy.plot(epochs, [100 * entry.get("train_accuracy", np.nan) for entry in model["epochs"]], **line)
        for axes, label in ((loss, "Training loss"), (accuracy, "Training accuracy (%)")):
            axes.set_xlabel("Epoch")
            axes.set_ylabel(label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(True)
        styles = [style(methods.index(method.label)) for method in shown]
        titles = [method.title for method in shown]
        legend(figure, styles, titles, marker=False, loc="outside right center")
        return render(figure)
