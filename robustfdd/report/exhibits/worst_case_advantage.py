"""What is left of the advantage of feature density dropout in the worst case."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, product
from typing import TypeAlias

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from robustfdd.report.analyses import first_of
from robustfdd.report.exhibit import GAP, Column, Exhibit, data, fields, frame_of, table
from robustfdd.report.figures import GREY, drawn, epsilon_ticks, legend, looks
from robustfdd.report.results import Results
from robustfdd.report.study import Attack, Epsilon, Method, file_stem, norm_title, seeds_text, signed
from robustfdd.report.style import epsilon_axis
from robustfdd.report.tables import entry_at, worst_entry
from robustfdd.report.verdicts import marks_text
from robustfdd.report.worst_case import explanation, worst_case
from robustfdd.rounding import mean, rounded

ORDER = 34

_BASELINES = ("none", "original", "spatial")
#: The attacks of the paper with several steps, and the one with one step, for radii that have no other.
_MULTI_STEP, _ONE_STEP = ("bim", "pgd"), "fgsm"

#: The figures of a method and of a baseline, exactly.
_Pair: TypeAlias = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class _Advantage:
    """One method against one baseline at one radius, mean over seeds, in percent and percentage points.

    Attributes:
        method: that may be better.
        baseline: what it is held against.
        eps: the radius.
        attack: the weakest of the paper's attacks with this radius; None where there is none.
        under_attack: robust accuracy of method and baseline under it; None for a gap.
        worst: likewise in the worst case.
    """

    method: Method
    baseline: Method
    eps: Epsilon
    attack: Attack | None
    under_attack: _Pair | None
    worst: _Pair | None

    @property
    def compared(self) -> tuple[str, str]:
        """The labels of the two."""
        return self.method.label, self.baseline.label


def _compared(results: Results) -> tuple[list[Method], list[Method]]:
    """The methods whose advantage is looked at, and the baselines: one is enough for a study without FDD."""
    methods = results.study.methods
    baselines = [found for name in _BASELINES if (found := first_of(methods, name)) is not None]
    density = [method for method in methods if str(method.dropout).startswith("fdd")]
    if density:
        return density, baselines
    return [method for method in methods if method not in baselines[:1]], baselines[:1]


def _pair(first: Fraction | None, second: Fraction | None) -> _Pair | None:
    return None if first is None or second is None else (first, second)


def _weakest(
    results: Results, norm: str, eps: Epsilon, methods: Sequence[Method]
) -> tuple[Attack | None, dict[str, Fraction | None]]:
    """Of the paper's attacks with several steps that have this radius, the one that leaves most images correct.

    Returns:
        The attack and the robust accuracy of each method under it, by label; FGSM's where no other has the radius.
    """
    found: list[tuple[Attack, dict[str, Fraction | None]]] = []
    labels = [method.label for method in methods]
    for attack in results.study.attacks:
        steps = {other.key: step for step, other in enumerate(attack.eps.get(norm, ()), start=1)}
        if attack.name in (*_MULTI_STEP, _ONE_STEP) and eps.key in steps:
            places = (results.place(label, attack.name, norm, steps[eps.key]) for label in labels)
            means = [entry_at(results, place, "robust_accuracy").mean for place in places]
            found.append((attack, dict(zip(labels, means, strict=True))))
    several = [item for item in found if item[0].name in _MULTI_STEP] or found
    shared = [label for label in labels if all(values[label] is not None for _, values in several)]
    if not several:
        return None, {}
    return max(several, key=lambda item: mean([item[1][label] or 0 for label in shared])) if shared else several[0]


def _advantages(results: Results, norm: str) -> list[_Advantage]:
    methods, baselines = _compared(results)
    worst = worst_case(results, norm)
    weakest = [_weakest(results, norm, eps, [*methods, *baselines]) for eps in worst.grid]
    found = []
    for method, baseline in product(methods, baselines):
        for step, (eps, (attack, means)) in enumerate(zip(worst.grid, weakest, strict=True), start=1):
            under = _pair(means.get(method.label), means.get(baseline.label))
            low = _pair(*(worst_entry(worst, m.label, step, "robust_accuracy").mean for m in (method, baseline)))
            found.append(_Advantage(method, baseline, eps, attack, under, low))
    return found


def _signed(pair: _Pair | None) -> str:
    return GAP if pair is None else signed(pair[0] - pair[1], 1)


def _columns(found: Sequence[_Advantage], results: Results) -> list[Column[list[_Advantage]]]:
    """One row for each method and baseline, one column for each radius."""

    def column(eps: Epsilon, attack: Attack | None, i: int) -> Column[list[_Advantage]]:
        header = f"{eps.texts(results.study.eps_unit)[0]} {attack.title if attack else GAP}"
        return Column(header, lambda row: f"{_signed(row[i].under_attack)} → {_signed(row[i].worst)}")

    radii = {item.eps: item.attack for item in found}
    return [
        Column("Method", lambda row: row[0].method.title, kind="once"),
        Column("Against", lambda row: row[0].baseline.title, kind="name"),
        *(column(eps, attack, i) for i, (eps, attack) in enumerate(radii.items())),
    ]


def _data(norm: str) -> list[Column[_Advantage]]:
    def figures(of: str, pair: Callable[[_Advantage], _Pair | None]) -> list[Column[_Advantage]]:
        def column(name: str, value: Callable[[_Pair], float]) -> Column[_Advantage]:
            return data(f"{name}_{of}", lambda item: None if (found := pair(item)) is None else value(found))

        return [
            column("method", lambda pair: rounded(pair[0], 9)),
            column("baseline", lambda pair: rounded(pair[1], 9)),
            column("advantage", lambda pair: rounded(pair[0] - pair[1], 4)),
        ]

    return [
        data("norm", lambda _: norm),
        *fields("method=method.label baseline=baseline.label"),
        *fields("eps_normalized=eps.normalized eps_pixel=eps.pixel attack=attack.name"),
        *figures("paper_attack", lambda item: item.under_attack),
        *figures("worst_case", lambda item: item.worst),
    ]


def _point(pair: _Pair | None) -> float:
    return math.nan if pair is None else float(pair[0] - pair[1])


@drawn
def _draw(found: Sequence[_Advantage], results: Results, norm: str) -> Figure:
    """One panel for each baseline: the advantage of every method over epsilon, as published and in the worst case."""
    baselines = {item.baseline.label: item.baseline for item in found}
    methods = dict.fromkeys(item.method.label for item in found)
    look_of = looks(results.study)
    axis = epsilon_axis(list(dict.fromkeys(item.eps for item in found)), results.study.eps_unit)
    dashes = (0, (4, 2))
    figure = Figure(figsize=(max(3.3 * len(baselines), 5.0), 3.7))
    panels = figure.subplots(1, len(baselines), squeeze=False, sharey=True)[0]
    for axes, (label, baseline) in zip(panels, baselines.items(), strict=True):
        axes.axhline(0, color=GREY, linewidth=0.8)
        for method in methods:
            _, look = look_of[method]
            line = {"color": look.colour, "marker": look.marker, "linewidth": 1.2, "markersize": 4.5}
            mine = [item for item in found if item.compared == (method, label)]
            axes.plot(axis.positions[1:], [_point(item.under_attack) for item in mine], linestyle="-", **line)
            worst = [_point(item.worst) for item in mine]
            axes.plot(axis.positions[1:], worst, linestyle=dashes, markerfacecolor="white", **line)
        axes.set_title(f"against {baseline.title}")
        epsilon_ticks(axes, axis)
    panels[0].set_ylabel(f"Advantage, {norm_title(norm)} (points)")
    handles = [Line2D([], [], color=GREY, linewidth=1.2, linestyle=line) for line in ("-", dashes)]
    panels[0].legend(handles, ["paper's attack", "worst case"], loc="best", fontsize=8)
    entries = [look_of[label] for label in methods]
    legend(figure, entries, line=False, loc="outside lower center", ncols=min(len(entries), 6))
    return figure


def _caption(results: Results, norm: str) -> str:
    study = results.study
    means = "means over " if len(study.trained_seeds) > 1 else ""
    return (
        f"{study.dataset}; robust accuracy of the method minus that of the baseline, in points, {means}"
        f"{seeds_text(study.seeds)}; above 0 the method is better. Before the arrow: under the attack that is named, "
        "the weakest at that ε of the paper's attacks with several steps (FGSM where there is none); after it: in the "
        "worst case. An advantage that is gone there was one over the attack, not over adversarial examples. "
        f"ε in {study.units_shown[0]} units. {explanation(results, norm)} {marks_text(results, ())}"
    )


def build(results: Results) -> list[Exhibit]:
    """A table and a figure for each norm; none without a baseline, or where one attack through one engine is all."""
    exhibits = []
    for norm in results.study.norms:
        found = _advantages(results, norm)
        run = {(unit.attack, unit.engine) for unit in results.study.units if unit.norm == norm}
        if len(run) < 2 or not any(item.worst or item.under_attack for item in found):
            continue
        who = "feature density dropout" if str(found[0].method.dropout).startswith("fdd") else "each method"
        exhibits.append(
            table(
                file_stem(f"worst-case-advantage-{norm}"),
                f"What is left of the advantage of {who} in the worst case, {norm_title(norm)}",
                _caption(results, norm),
                [list(row) for _, row in groupby(found, key=lambda item: item.compared)],
                _columns(found, results),
                frame=frame_of(found, _data(norm)),
                group=lambda row: row[0].method.label,
                figure=_draw(found, results, norm),
                section="robust",
            )
        )
    return exhibits
