"""How far the figures of methods with a random forward pass move from one prediction to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pandas as pd

from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Place, Results
from robustfdd.report.study import ZERO, Epsilon, Method, norm_title
from robustfdd.report.tables import seeds_text
from robustfdd.rounding import fixed, fixed_root, mean, share, variance

ORDER = 80

_NAME = "random-forward"
_TITLE = "Robust accuracy (%) over repeated predictions of random forward passes"


@dataclass(frozen=True)
class _Record:
    """One cell of one model: what was recorded, and what each prediction of the same images gave, in percent."""

    place: Place
    method: Method
    attack: str
    eps: Epsilon
    seed: int
    eot_samples: int
    recorded: Fraction
    repeated: tuple[Fraction, ...]

    @property
    def variance(self) -> Fraction | None:
        """Sample variance over the predictions; None for one."""
        return variance(self.repeated) if len(self.repeated) > 1 else None


def _records(results: Results, methods: list[Method]) -> list[list[_Record]]:
    """The records with repeated predictions: those of all seeds at one place together."""
    study = results.study
    # At epsilon = 0 there is nothing attacked: one row a method.
    places = [(results.clean_place(method.label, study.norms[0]), method, "Clean", ZERO) for method in methods] + [
        (results.place(method.label, attack.name, norm, step), method, attack.title, eps)
        for attack in study.attacks
        for norm, grid in attack.eps.items()
        for method in methods
        for step, eps in enumerate(grid, start=1)
    ]
    groups = []
    for place, method, attack_title, eps in places:
        found = [
            _Record(
                place,
                method,
                attack_title,
                eps,
                seed,
                int(row["eot_samples"]),
                100 * share(row["robust_accuracy"], int(row["n_images"])),
                tuple(100 * share(value, int(row["n_images"])) for value in row["repeated_accuracy"]),
            )
            for seed, row in results.rows(place).items()
            if len(row["repeated_accuracy"])
        ]
        if found:
            groups.append(found)
    return groups


def _frame(groups: list[list[_Record]]) -> pd.DataFrame:
    records: list[dict[str, Any]] = []
    for group in groups:
        for item in group:
            records.append(
                {
                    "attack": item.place.attack if item.place.step else "clean",
                    "norm": item.place.norm if item.place.step else None,
                    "method": item.method.label,
                    "seed": item.seed,
                    "eps_normalized": item.eps.normalized,
                    "eps_pixel": item.eps.pixel,
                    "eot_samples": item.eot_samples,
                    "n_predictions": len(item.repeated),
                    "recorded": float(item.recorded),
                    "mean": float(mean(item.repeated)),
                    "std": None if item.variance is None else math.sqrt(item.variance),
                    "min": float(min(item.repeated)),
                    "max": float(max(item.repeated)),
                }
            )
    frame: pd.DataFrame = pd.DataFrame.from_records(records)
    return frame


def _mean_deviation(variances: list[Fraction]) -> str:
    """The mean of the standard deviations; of one, or of equal ones, correctly rounded."""
    if len(set(variances)) == 1:
        return fixed_root(variances[0], 2)
    return fixed(math.fsum(map(math.sqrt, variances)) / len(variances), 2)


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def build(results: Results) -> list[Artefact]:
    """One row for each cell of the methods that were attacked through EOT; none where no forward pass is random."""
    declared = results.eot_samples()
    methods = [method for method in results.study.methods if method.label in declared]
    groups = _records(results, methods) if results.study.norms else []
    if not groups:
        return []
    study = results.study
    kinds = [(group[0].attack, group[0].place.norm, group[0].method.title) for group in groups]
    rows = []
    for i, group in enumerate(groups):
        first = group[0]
        attack, norm, title = kinds[i]
        named = i == 0 or kinds[i] != kinds[i - 1]
        variances = [item.variance for item in group if item.variance is not None]
        rows.append(
            (
                attack if named else "",
                (norm_title(norm) if first.place.step else GAP) if named else "",
                title if named else "",
                *first.eps.texts(study.eps_unit)[: len(study.units_shown)],
                _range([item.eot_samples for item in group]),
                _range([len(item.repeated) for item in group]),
                fixed(mean([item.recorded for item in group]), 2),
                fixed(mean([mean(item.repeated) for item in group]), 2),
                _mean_deviation(variances) if len(variances) == len(group) else GAP,
                fixed(mean([min(item.repeated) for item in group]), 2),
                fixed(mean([max(item.repeated) for item in group]), 2),
            )
        )
    caption = (
        f"{study.dataset}; {study.engines_text()}; {seeds_text(study.seeds)}"
        f"{', each figure the mean over them' if any(len(group) > 1 for group in groups) else ''}. These methods "
        "drop at test time, so two predictions of one image may differ. Recorded: the figure of all other tables, from "
        "the first prediction. Mean, standard deviation, smallest and largest: over the repeats, predictions of the "
        "same perturbed images. EOT samples: passes averaged for each gradient of the attack."
    )
    headers = (
        *("Attack", "Norm", "Method"),
        *(f"ε ({unit})" for unit in study.units_shown),
        *("EOT samples", "Repeats", "Recorded", "Mean", "Std", "Min", "Max"),
    )
    starts = group_starts(["\n".join(kind) for kind in kinds])
    grid = Grid(_NAME, _TITLE, caption, headers, tuple(rows), n_text=3, rules=starts)
    return [Artefact(_NAME, _TITLE, caption, _frame(groups), grid)]
