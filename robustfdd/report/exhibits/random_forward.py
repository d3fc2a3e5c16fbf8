"""How far the figures of methods with a random forward pass move from one prediction to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from robustfdd.report.exhibit import GAP, Column, Exhibit, data, fields, frame_of, radius, table
from robustfdd.report.results import Place, Results
from robustfdd.report.study import ZERO, Epsilon, Method, Study, norm_title, seeds_text
from robustfdd.rounding import fixed, fixed_root, mean, share, variance

ORDER = 80


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
    repeated: Sequence[Fraction]

    @property
    def mean(self) -> Fraction:
        """Over the predictions."""
        return mean(self.repeated)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the predictions; None for one."""
        return None if self.variance is None else math.sqrt(self.variance)

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
        for attack, norm in study.planes
        for method in methods
        for step, eps in enumerate(attack.eps[norm], start=1)
    ]
    groups = []
    for place, method, title, eps in places:
        group = []
        for seed, row in results.rows(place).items():
            values = (row["robust_accuracy"], *row["repeated_accuracy"])
            if len(values) > 1:
                recorded, *repeated = (100 * share(value, int(row["n_images"])) for value in values)
                group.append(_Record(place, method, title, eps, seed, int(row["eot_samples"]), recorded, repeated))
        if group:
            groups.append(group)
    return groups


#: The data, one row a cell of one model.
_DATA: list[Column[_Record]] = [
    data("attack", lambda item: item.place.attack if item.place.step else "clean"),
    data("norm", lambda item: item.place.norm if item.place.step else None),
    *fields("method=method.label seed eps_normalized=eps.normalized eps_pixel=eps.pixel eot_samples"),
    data("n_predictions", lambda item: len(item.repeated)),
    *fields("recorded mean std"),
    data("min", lambda item: min(item.repeated)),
    data("max", lambda item: max(item.repeated)),
]


def _mean_deviation(group: list[_Record]) -> str:
    """The mean of the standard deviations; of one, or of equal ones, correctly rounded."""
    variances = [item.variance for item in group if item.variance is not None]
    if len(variances) < len(group):
        return GAP
    if len(set(variances)) == 1:
        return fixed_root(variances[0], 2)
    return fixed(math.fsum(map(math.sqrt, variances)) / len(variances), 2)


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _columns(study: Study) -> list[Column[list[_Record]]]:
    """One row for all seeds of a cell: every figure is the mean over them."""

    def figure(header: str, of: Callable[[_Record], Fraction]) -> Column[list[_Record]]:
        return Column(header, lambda group: fixed(mean([of(item) for item in group]), 2))

    return [
        Column("Attack", lambda group: group[0].attack, kind="once"),
        Column("Norm", lambda group: norm_title(group[0].place.norm) if group[0].place.step else GAP, kind="once"),
        Column("Method", lambda group: group[0].method.title, kind="once"),
        *radius(study, lambda group: group[0].eps),
        Column("EOT samples", lambda group: _range([item.eot_samples for item in group])),
        Column("Repeats", lambda group: _range([len(item.repeated) for item in group])),
        figure("Recorded", lambda item: item.recorded),
        figure("Mean", lambda item: item.mean),
        Column("Std", _mean_deviation),
        figure("Min", lambda item: min(item.repeated)),
        figure("Max", lambda item: max(item.repeated)),
    ]


def build(results: Results) -> list[Exhibit]:
    """One row for each cell of the methods that were attacked through EOT; none where no forward pass is random."""
    study, declared = results.study, results.eot_samples()
    groups = _records(results, [method for method in study.methods if method.label in declared]) if study.norms else []
    if not groups:
        return []
    caption = (
        f"{study.dataset}; {study.engines_text()}; {seeds_text(study.seeds)}"
        f"{', each figure the mean over them' if any(len(group) > 1 for group in groups) else ''}. These methods "
        "drop at test time, so two predictions of one image may differ. Recorded: the figure of all other tables, from "
        "the first prediction. Mean, standard deviation, smallest and largest: over the repeats, predictions of the "
        "same perturbed images. EOT samples: passes averaged for each gradient of the attack."
    )
    return [
        table(
            "random-forward",
            "Robust accuracy (%) over repeated predictions of random forward passes",
            caption,
            groups,
            _columns(study),
            frame=frame_of([item for group in groups for item in group], _DATA),
            group=lambda group: (group[0].attack, group[0].place.norm, group[0].method.title),
        )
    ]
