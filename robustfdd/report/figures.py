"""The figures as files: PNG for the screen and PDF, with its fonts embedded, for print; and what they share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from io import BytesIO
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfdd.report.curves import Panel
from robustfdd.report.results import Results
from robustfdd.report.study import Study
from robustfdd.report.style import EpsilonAxis, Style, style
from robustfdd.report.tables import Entry

_DPI = 160
#: The line of the worst case where it is beside a curve, in points.
THIN = 0.7
#: Axes, and the lines of a legend that stand for all colours.
GREY = "#6b7280"
#: How many characters of an axis are as long as a small panel.
SMALL = 33
#: Panels of the overview, or of small multiples, in a row, at most.
_COLUMNS = 4
_SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # Matplotlib brings it along, so a figure is the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
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

P = ParamSpec("P")


def drawn(draw: Callable[P, Figure]) -> Callable[P, dict[str, bytes]]:
    """Make a function that draws a figure give its files by extension, ``png`` and ``pdf``.

    It draws with the settings of every figure of a report, whatever the user's are.
    """

    @wraps(draw)
    def files(*args: P.args, **kwargs: P.kwargs) -> dict[str, bytes]:
        with mpl.rc_context(), warnings.catch_warnings():
            mpl.rcdefaults()
            mpl.rcParams.update(_SETTINGS)
            # A name may hold a character that the font lacks; it is shown as a box.
            warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
            return render(draw(*args, **kwargs))

    return files


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


def named(figure: Figure, handles: Sequence[Artist], titles: Sequence[str], **where: Any) -> None:
    """A legend with names as they stand; ``where`` is further arguments of Matplotlib's ``Figure.legend``."""
    # Matplotlib leaves out a label that starts with an underscore, so the names are put in afterwards.
    made = figure.legend(handles, [str(i) for i in range(len(titles))], **where)
    for text, title in zip(made.get_texts(), titles, strict=True):
        text.set_text(title)


def legend(
    figure: Figure,
    entries: Sequence[tuple[str, Style]],
    *,
    marker: bool = True,
    line: bool = True,
    worst: bool = False,
    **where: Any,
) -> None:
    """A legend of methods.

    Args:
        figure: the figure.
        entries: the title and the look of each method.
        marker: whether the lines have markers.
        line: whether there is a line at all.
        worst: whether it also says what the thin lines are.
        where: further arguments of Matplotlib's ``Figure.legend``, e.g. ``loc``.
    """
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.line if line else "", marker=look.marker if marker else "")
        for _, look in entries
    ]
    more = [Line2D([], [], color=GREY, linewidth=THIN)] if worst else []
    named(figure, [*handles, *more], [*(title for title, _ in entries), *("worst case" for _ in more)], **where)


def looks(study: Study) -> dict[str, tuple[str, Style]]:
    """The title of every method and the look that it has in every figure, by label."""
    return {method.label: (method.title, style(i)) for i, method in enumerate(study.methods)}


def small_multiples(
    n: int, *, width: float, height: float, least: float, rest: float, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with n panels of that size, in rows of about one length.

    Args:
        n: how many panels.
        width: of a panel, in inches.
        height: likewise.
        least: width of the figure, at least.
        rest: height for what is not panels.
        shared: further arguments of Matplotlib's ``subplots``.
    """
    n_rows = math.ceil(n / _COLUMNS)
    n_columns = math.ceil(n / n_rows)
    figure = Figure(figsize=(max(width * n_columns, least), height * n_rows + rest))
    grid = list(figure.subplots(n_rows, n_columns, squeeze=False, **shared).flat)
    for axes in grid[n:]:
        axes.set_axis_off()
    for i in range(n):
        grid[i].tick_params(labelbottom=i + n_columns >= n)
    return figure, grid[:n]


def bare(axes: Axes) -> None:
    """Axes for a picture: no ticks and no frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def epsilon_ticks(axes: Axes, axis: EpsilonAxis, characters: float = SMALL) -> None:
    """Put epsilon on the x axis, in the first unit; as many ticks have labels as have room."""
    _ticks(axes, axis, 0, characters)
    axes.set_xlabel(axis.title)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(True)


def _ticks(axes: Any, axis: EpsilonAxis, unit: int, characters: float) -> None:
    shown = axis.labelled(axis.labels[unit], characters)
    axes.set_xticks(axis.positions, [text if i in shown else "" for i, text in enumerate(axis.labels[unit])])


def draw_line(axes: Axes, x: Sequence[float], entries: Sequence[Entry], look: Style, *, zorder: float = 2) -> None:
    """The curve of a method."""
    axes.plot(x, points(entries), look.line, color=look.colour, marker=look.marker, clip_on=False, zorder=zorder)


def draw_band(axes: Axes, x: Sequence[float], entries: Sequence[Entry], look: Style, *, zorder: float = 1) -> None:
    """One standard deviation over seeds on both sides of the curve of a method, where there is one."""
    mean, std = points(entries), np.array([entry.spread for entry in entries])
    if np.isfinite(std).any():
        axes.fill_between(x, mean - std, mean + std, color=look.colour, alpha=0.15, linewidth=0, zorder=zorder)


def points(entries: Sequence[Entry]) -> npt.NDArray[np.float64]:
    """The means of entries as a figure draws them, NaN for a gap."""
    return np.array([entry.point for entry in entries])


def _draw_panel(axes: Axes, panel: Panel, *, characters: float) -> None:
    x = panel.axis.positions
    for curve in panel.curves:
        if curve.worst:
            axes.plot(x, points(curve.worst), color=curve.style.colour, linewidth=THIN)
        draw_line(axes, x, curve.entries, curve.style)
        draw_band(axes, x, curve.entries, curve.style)
    axes.set_title(panel.title)
    axes.set_ylim(0, 100)
    epsilon_ticks(axes, panel.axis, characters)
    if panel.axis.two_units:
        top = axes.secondary_xaxis("top")
        _ticks(top, panel.axis, 1, characters)
        top.spines["top"].set_visible(True)
        top.set_xlabel(f"ε ({panel.axis.units[1]})")


@drawn
def draw_panel(panel: Panel) -> Figure:
    """One panel: robust accuracy over epsilon, all methods, a band of one standard deviation over seeds.

    Thin lines without marks are the worst case over all attacks, each in the colour of its method.
    """
    figure = Figure(figsize=(7.2, 4.2))
    axes = figure.add_subplot()
    _draw_panel(axes, panel, characters=50)
    axes.set_ylabel("Robust accuracy (%)")
    entries = [(curve.method.title, curve.style) for curve in panel.curves]
    legend(figure, entries, worst=any(curve.worst for curve in panel.curves), loc="outside right center")
    return figure


@drawn
def draw_overview(found: Sequence[Panel]) -> Figure:
    """All panels, norm by norm, under one legend."""
    lines: list[Sequence[Panel]] = []
    for norm in dict.fromkeys(panel.norm for panel in found):
        mine = [panel for panel in found if panel.norm == norm]
        lines += [mine[start : start + _COLUMNS] for start in range(0, len(mine), _COLUMNS)]
    n_columns = max(map(len, lines))
    mpl.rcParams.update({"xtick.labelsize": 8, "ytick.labelsize": 9})
    figure = Figure(figsize=(max(3.3 * n_columns, 5.0), 3.1 * len(lines) + 0.6))
    grid = figure.subplots(len(lines), n_columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for row, line in enumerate(lines):
        for axes, panel in zip(grid[row], line, strict=False):
            axes.set_axis_on()
            _draw_panel(axes, panel, characters=SMALL)
        grid[row, 0].set_ylabel("Robust accuracy (%)")
    entries = [(curve.method.title, curve.style) for curve in found[0].curves]
    ncols = min(len(entries) + 1, 2 * n_columns)
    legend(figure, entries, worst=True, loc="outside lower center", ncols=ncols)
    return figure


def draw_training(results: Results) -> dict[str, bytes] | None:
    """Training loss and accuracy over epochs, one line a model; None where no epochs are recorded."""
    found = looks(results.study)
    models = [model for model in results.run.models if model.get("epochs") and model.get("method") in found]
    return _draw_training(models, found) if models else None


@drawn
def _draw_training(models: Sequence[Any], found: dict[str, tuple[str, Style]]) -> Figure:
    figure = Figure(figsize=(9.6, 3.6))
    loss, accuracy = figure.subplots(1, 2)
    for model in models:
        _, look = found[model["method"]]
        epochs = range(1, len(model["epochs"]) + 1)
        # A marker where there is one epoch, or nothing would be seen.
        line = {"color": look.colour, "linestyle": look.line, "marker": look.marker if len(epochs) == 1 else ""}
        loss.plot(epochs, [entry.get("loss", np.nan) for entry in model["epochs"]], **line)
        accuracy.plot(epochs, [100 * entry.get("train_accuracy", np.nan) for entry in model["epochs"]], **line)
    for axes, label in ((loss, "Training loss"), (accuracy, "Training accuracy (%)")):
        axes.set_xlabel("Epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(True)
    trained = {model["method"] for model in models}
    entries = [look for label, look in found.items() if label in trained]
    legend(figure, entries, marker=False, loc="outside right center")
    return figure
