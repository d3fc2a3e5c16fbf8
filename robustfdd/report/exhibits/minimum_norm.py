"""How far the nearest adversarial example is that an attack without a given radius finds: the median over images."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustfdd.records import Outcome
from robustfdd.report.exhibit import GAP, Column, Exhibit, data, fields, frame_of, table
from robustfdd.report.results import Results
from robustfdd.report.study import Attack, Method, Study, norm_title, number
from robustfdd.report.tables import over_seeds
from robustfdd.report.verdicts import marks_text
from robustfdd.rounding import exact, mean, variance

ORDER = 36


@dataclass(frozen=True)
class _Median:
    """The median of one model in pixel units; ``beyond`` where fewer than half of the attacked images were broken."""

    attack: str
    norm: str
    method: str
    seed: int
    value: float
    beyond: bool
    n_attacked: int
    n_broken: int

    @property
    def known(self) -> float | None:
        """The median, if it is not beyond the largest radius."""
        return None if self.beyond else self.value

    @property
    def bound(self) -> float | None:
        """The largest radius, if the median is beyond it."""
        return self.value if self.beyond else None


def median_distance(outcome: np.ndarray[Any, Any], distance: np.ndarray[Any, Any]) -> float:
    """The radius at which half of the attacked images are broken.

    Args:
        outcome: of every image at the largest radius, see :class:`robustfdd.records.Outcome`.
        distance: of the perturbation of every image; read only where it is broken.

    Returns:
        The median over the attacked images, halfway between the two in the middle of an even number, of which the
        second may not be broken; infinity where fewer than half are broken; NaN where none was attacked.
    """
    n_attacked = int((outcome != Outcome.MISCLASSIFIED).sum())
    if not n_attacked:
        return math.nan
    broken = np.sort(distance[outcome == Outcome.BROKEN].astype(np.float64))
    middle = [position for position in ((n_attacked - 1) // 2, n_attacked // 2) if position < len(broken)]
    return float(broken[middle].mean()) if middle else math.inf


def _medians(results: Results, method: Method, attack: Attack, norm: str) -> list[_Median]:
    """The median of each seed that has a record at the largest radius."""
    radii = attack.eps[norm]
    found = []
    for seed, row in results.rows(results.place(method.label, attack.name, norm, len(radii))).items():
        value = median_distance(np.asarray(row["outcome"]), np.asarray(row["distance"]))
        if not math.isnan(value):
            beyond = math.isinf(value)
            place = attack.name, norm, method.label, seed
            counted = int(row["n_attacked"]), int(row["n_broken"])
            found.append(_Median(*place, radii[-1].pixel if beyond else value, beyond, *counted))
    return found


def _text(medians: list[_Median], scale: float) -> str:
    """The mean over seeds and its spread; a lower bound where a seed has no more than one."""
    if not medians:
        return GAP
    values = [exact(item.value) / exact(scale) for item in medians]
    if any(item.beyond for item in medians):
        return f"> {number(mean(values), 3)}"
    spread = f" ± {number(math.sqrt(variance(values)), 2)}" if len(values) > 1 else ""
    return number(mean(values), 3) + spread


def _data(study: Study) -> list[Column[_Median]]:
    def normalized(item: _Median) -> float | None:
        return None if item.known is None or study.eps_scale is None else item.known / study.eps_scale

    return [
        *fields("attack norm method seed median_pixel=known"),
        data("median_normalized", normalized),
        *fields("beyond_eps_pixel=bound n_attacked n_broken"),
    ]


def _caption(results: Results, attacks: Collection[str]) -> str:
    study = results.study
    return (
        f"{study.dataset}; {study.engines_text(attacks=attacks)}; {over_seeds(study)}; distances in "
        f"{study.units_shown[0]} units. The radius at which half of the images attacked (those "
        "classified correctly before) are broken, from the distance of every image; larger is more robust, or harder "
        "for the attack. >: fewer than half are broken at the largest ε of the study; the median lies beyond it. "
        f"{marks_text(results, ())}"
    )


def build(results: Results) -> list[Exhibit]:
    """One row for each attack of that kind and norm, one column a method; none for a run without such attacks."""
    study = results.study
    attacks = [(attack, norm) for attack, norm in study.planes if attack.minimum_norm and attack.eps[norm]]
    found = {
        (attack.name, norm, method.label): _medians(results, method, attack, norm)
        for attack, norm in attacks
        for method in study.methods
    }
    if not any(found.values()):
        return []
    scale = 1.0 if study.eps_unit == "pixel" or study.eps_scale is None else study.eps_scale

    def column(method: Method) -> Column[tuple[Attack, str]]:
        return Column(method.title, lambda item: _text(found[item[0].name, item[1], method.label], scale))

    columns: list[Column[tuple[Attack, str]]] = [
        Column("Attack", lambda item: item[0].title, kind="name"),
        Column("Norm", lambda item: norm_title(item[1]), kind="name"),
        *map(column, study.methods),
    ]
    frame = frame_of([item for medians in found.values() for item in medians], _data(study))
    title = "Median distance to the nearest adversarial example found"
    caption = _caption(results, {attack.name for attack, _ in attacks})
    return [table("minimum-distance", title, caption, attacks, columns, frame=frame, section="robust")]
