"""Figure 7: accuracy under FGSM over epsilon, with the published curves behind the run's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfdd.paper.matching import match_methods, run_dataset, same_balls
from robustfdd.paper.published import Published, PublishedCell, eps_key, load
from robustfdd.report.exhibit import Exhibit
from robustfdd.report.figures import THIN, draw_band, draw_line, drawn, epsilon_ticks, legend, looks, points
from robustfdd.report.results import Results
from robustfdd.report.study import ZERO, Epsilon, Method, Study, count_text, norm_title, seeds_text
from robustfdd.report.style import EpsilonAxis, epsilon_axis
from robustfdd.report.tables import Entry, entry_at, worst_entry
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import worst_case

ORDER = 70

_PLACE = "figure7"
_ATTACK = "fgsm"
#: The columns of the data.
_DATA = (
    *("source", "norm", "method", "dropout", "eps_normalized", "eps_pixel"),
    *("accuracy_percent", "std_percent", "n_seeds"),
)
#: Methods up to which the worst case is drawn too.
_N_ENVELOPES = 6
#: Opacity of the published curves.
_FAINT = 0.4


@dataclass(frozen=True)
class _Panel:
    """One norm: the run's radii and figures by method, the published ones, and the axis that has them all."""

    norm: str
    radii: tuple[Epsilon, ...]
    axis: EpsilonAxis
    positions: Mapping[str, float]  # of each normalised radius on the axis
    ours: Mapping[str, tuple[Entry, ...]]
    worst: Mapping[str, tuple[Entry, ...]]  # the run's worst case at its radii; empty where it would hide the curves
    published: tuple[PublishedCell, ...]

    def at(self, radii: Sequence[float | None]) -> list[float]:
        """Where normalised radii stand on the axis; they are known, since they are the paper's."""
        return [self.positions[eps_key(eps or 0.0)] for eps in radii]


def _panel(results: Results, cells: Sequence[PublishedCell], norm: str) -> _Panel:
    study = results.study
    grid = study.grid(_ATTACK, norm)
    published = tuple(cell for cell in cells if cell.norm == norm)
    theirs = (Epsilon(c.eps_normalized, c.eps_normalized * (study.eps_scale or 1.0)) for c in published)
    # By their text, so that a radius that both have is one tick.
    union: dict[str, Epsilon] = {}
    for eps in (*grid, *(eps for eps in theirs if eps.pixel > 0)):
        union.setdefault(eps_key(eps.normalized or 0.0), eps)
    radii = sorted(union.values(), key=lambda eps: eps.pixel)
    axis = epsilon_axis(radii, study.eps_unit)
    positions = zip((eps_key(eps.normalized or 0.0) for eps in (ZERO, *radii)), axis.positions, strict=True)
    labels = [method.label for method in study.methods]
    ours = {
        label: tuple(
            entry_at(results, results.place(label, _ATTACK, norm, step), "robust_accuracy")
            for step in range(len(grid) + 1)
        )
        for label in labels
    }
    worst = worst_case(results, norm)
    steps = [worst.steps()[eps.key] for eps in grid]
    envelopes = {
        label: (ours[label][0], *(worst_entry(worst, label, step, "robust_accuracy") for step in steps))
        for label in (labels if len(labels) <= _N_ENVELOPES else ())
    }
    return _Panel(norm, (ZERO, *grid), axis, dict(positions), ours, envelopes, published)


def _draw(axes: Axes, panel: _Panel, study: Study, matched: Mapping[str, Method]) -> None:
    look_of = looks(study)
    for name, method in matched.items():
        cells = sorted((c for c in panel.published if c.method == name), key=lambda cell: cell.eps_normalized)
        _, look = look_of[method.label]
        x, y = panel.at([cell.eps_normalized for cell in cells]), [cell.accuracy_percent for cell in cells]
        axes.plot(x, y, color=look.colour, linestyle=look.line, linewidth=1.0, alpha=_FAINT, zorder=1)
    x = panel.at([eps.normalized for eps in panel.radii])
    for label, (_, look) in look_of.items():
        draw_line(axes, x, panel.ours[label], look, zorder=3)
        if label in panel.worst:
            low = points(panel.worst[label])
            axes.plot(x, low, color=look.colour, linestyle=(0, (4, 3)), linewidth=THIN, zorder=2)
        draw_band(axes, x, panel.ours[label], look, zorder=2)
    axes.set_ylim(0, 100)
    axes.set_title(f"FGSM, {norm_title(panel.norm)}")
    epsilon_ticks(axes, panel.axis)


@drawn
def _figure(panels: Sequence[_Panel], study: Study, matched: Mapping[str, Method]) -> Figure:
    figure = Figure(figsize=(max(4.4 * len(panels), 5.6), 4.4))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        _draw(axes, panel, study, matched)
    grid[0].set_ylabel("Accuracy (%)")
    grid[0].legend([Line2D([], [], color="#000000", linewidth=1.0, alpha=_FAINT)], ["paper"], loc="upper right")
    entries = list(looks(study).values())
    legend(figure, entries, loc="outside lower center", ncols=min(len(entries), 6))
    return figure


def _frame(study: Study, panels: Sequence[_Panel]) -> pd.DataFrame:
    records: list[tuple[Any, ...]] = []
    for panel in panels:
        for method in study.methods:
            for eps, entry in zip(panel.radii, panel.ours[method.label], strict=True):
                mean = None if entry.mean is None else float(entry.mean)
                names = "run", panel.norm, method.label, method.dropout
                records.append((*names, eps.normalized, eps.pixel, mean, entry.std, entry.n_seeds))
        for cell in panel.published:
            pixel = cell.eps_normalized * (study.eps_scale or 1.0)
            names = "paper", panel.norm, cell.method, cell.method
            records.append((*names, cell.eps_normalized, pixel, cell.accuracy_percent, None, None))
    frame: pd.DataFrame = pd.DataFrame.from_records(records, columns=_DATA)
    whole: pd.DataFrame = frame.astype({"n_seeds": "Int64", "std_percent": "float64"})
    return whole


def _caption(results: Results, published: Published, matched: Mapping[str, Method], theirs: set[str]) -> str:
    study = results.study
    place = next(place for place in published.places if place.name == _PLACE)
    images = results.counts("n_images")
    sentences = [
        f"{study.dataset}; {f'{count_text(images)} test images, ' if images else ''}all of them in the denominator; "
        f"{study.engines_text(attacks={_ATTACK})}; protocol {study.protocol}; {seeds_text(study.seeds)}."
    ]
    if len(study.trained_seeds) > 1:
        sentences.append("Bands: one sample standard deviation over training seeds.")
    names = ", ".join(method.title for name, method in matched.items() if name in theirs)
    sentences.append(
        f"Faint lines of the same colour, without marks: {published.source.short}, {place.title}, for {names}."
        if names
        else f"No method of this run is one of {published.source.short}, {place.title}."
    )
    if len(study.methods) <= _N_ENVELOPES:
        sentences.append("Thin dashed lines: the worst case of this run over all its attacks up to each ε.")
    sentences.append(marks_text(results, ()))
    absent = [published.methods[name].title for name in published.methods if name in theirs and name not in matched]
    if absent:
        sentences.append(f"Published, but not drawn, since this run has no such method: {', '.join(absent)}.")
    return " ".join([*sentences, "Of the published figures:", *place.notes])


def build(results: Results) -> list[Exhibit]:
    """FGSM in each norm that the run has, with the published curves; none where there are none for the data set.

    Published radii are normalised ones, so a run that normalises its images in another way than the paper has none
    either.
    """
    published = load()
    dataset = run_dataset(results)
    cells = published.cells_of(dataset, _PLACE)
    norms = [norm for norm in results.study.norms if results.study.grid(_ATTACK, norm)]
    if not any(cell.norm in norms for cell in cells) or not same_balls(results, published, dataset):
        return []
    matched, _ = match_methods(results, published)
    panels = [_panel(results, cells, norm) for norm in norms]
    if not any(entry.mean is not None for panel in panels for entries in panel.ours.values() for entry in entries):
        return []
    published_methods = {cell.method for cell in cells if cell.norm in norms}
    title, figure = "Figure 7: accuracy under FGSM over ε, beside the paper", _figure(panels, results.study, matched)
    caption = _caption(results, published, matched, published_methods)
    return [Exhibit("figure7-fgsm", title, caption, _frame(results.study, panels), figure=figure)]
