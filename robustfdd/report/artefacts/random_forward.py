"""How far the figures of methods with a random forward pass move from one prediction to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from robustfdd.report.artefact import Artefact
from robustfdd.report.grid import GAP, Grid, group_starts
from robustfdd.report.results import Place, Results
from robustfdd.report.study import ZERO, Epsilon, Method, norm_title, unit_titles
from robustfdd.report.tables import seeds_text

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
    recorded: float
    repeated: tuple[float, ...]

    def figures(self) -> tuple[float, float, float, float, float]:
        """Recorded, mean, sample standard deviation, smallest, largest."""
        values = np.asarray(self.repeated)
        std = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        return self.recorded, float(values.mean()), std, float(values.min()), float(values.max())


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
                100 * float(row["robust_accuracy"]),
                tuple(100 * float(value) for value in row["repeated_accuracy"]),
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
            recorded, mean, std, low, high = item.figures()
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
                    "recorded": recorded,
                    "mean": mean,
                    "std": std,
                    "min": low,
                    "max": high,
                }
            )
    frame: pd.DataFrame = pd.DataFrame.from_records(records)
    return frame


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
        means = np.mean([item.figures() for item in group], axis=0)
        rows.append(
            (
                attack if named else "",
                (norm_title(norm) if first.place.step else GAP) if named else "",
                title if named else "",
                *first.eps.texts(study.eps_unit),
                _range([item.eot_samples for item in group]),
                _range([len(item.repeated) for item in group]),
                *(GAP if np.isnan(value) else f"{value:.2f}" for value in means),
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
        *(f"ε ({unit})" for unit in unit_titles(study.eps_unit)),
        *("EOT samples", "Repeats", "Recorded", "Mean", "Std", "Min", "Max"),
    )
    starts = group_starts(["\n".join(kind) for kind in kinds])
    grid = Grid(_NAME, _TITLE, caption, headers, tuple(rows), n_text=3, rules=starts)
    return [Artefact(_NAME, _TITLE, caption, _frame(groups), grid)]
