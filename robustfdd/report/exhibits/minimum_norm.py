"""How far the nearest adversarial example is that an attack without a given radius finds: the median over images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from robustfdd.records import Outcome
from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import GAP, Grid
from robustfdd.report.results import Results
from robustfdd.report.study import Attack, Method, norm_title, number
from robustfdd.report.tables import seeds_text
from robustfdd.report.verdicts import marks_text
from robustfdd.rounding import exact, mean, variance

ORDER = 36

_NAME = "minimum-distance"
_TITLE = "Median distance to the nearest adversarial example found"


@dataclass(frozen=True)
class _Median:
    """The median of one model in pixel units; ``beyond`` where fewer than half of the attacked images were broken."""

    seed: int
    value: float
    beyond: bool
    n_attacked: int
    n_broken: int


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
            counted = int(row["n_attacked"]), int(row["n_broken"])
            found.append(_Median(seed, radii[-1].pixel if beyond else value, beyond, *counted))
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


def build(results: Results) -> list[Artefact]:
    """One row for each attack of that kind and norm, one column a method; none for a run without such attacks."""
    study = results.study
    attacks = [(a, norm) for a in study.attacks if a.minimum_norm for norm, radii in a.eps.items() if radii]
    found = {
        (attack.name, norm, method.label): _medians(results, method, attack, norm)
        for attack, norm in attacks
        for method in study.methods
    }
    if not any(found.values()):
        return []
    scale = 1.0 if study.eps_unit == "pixel" or study.eps_scale is None else study.eps_scale
    caption = (
        f"{study.dataset}; {study.engines_text(attacks={attack.name for attack, _ in attacks})}; "
        f"{'mean ± sample standard deviation over ' if len(study.trained_seeds) > 1 else ''}{seeds_text(study.seeds)}; "
        f"distances in {study.units_shown[0]} units. The radius at which half of the images attacked (those "
        "classified correctly before) are broken, from the distance of every image; larger is more robust, or harder "
        "for the attack. >: fewer than half are broken at the largest ε of the study; the median lies beyond it. "
        f"{marks_text(results, ())}"
    )
    rows = tuple(
        (
            attack.title,
            norm_title(norm),
            *(_text(found[attack.name, norm, method.label], scale) for method in study.methods),
        )
        for attack, norm in attacks
    )
    headers = ("Attack", "Norm", *(method.title for method in study.methods))
    grid = Grid(_NAME, _TITLE, caption, headers, rows, n_text=2)
    frame: pd.DataFrame = pd.DataFrame.from_records(
        [
            {
                "attack": attack,
                "norm": norm,
                "method": label,
                "seed": item.seed,
                "median_pixel": None if item.beyond else item.value,
                "median_normalized": None if item.beyond or study.eps_scale is None else item.value / study.eps_scale,
                "beyond_eps_pixel": item.value if item.beyond else None,
                "n_attacked": item.n_attacked,
                "n_broken": item.n_broken,
            }
            for (attack, norm, label), medians in found.items()
            for item in medians
        ]
    )
    return [Artefact(_NAME, _TITLE, caption, frame, grid, section="robust")]
