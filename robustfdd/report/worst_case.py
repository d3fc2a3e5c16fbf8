"""The worst case per image: what is left when every attack through every engine may have a go at an image.

An adversarial example of one radius is one of every larger radius. So at radius e an image is broken if any attack
through any engine broke it at any radius up to e, and the robust accuracy of the worst case can only fall with e. It is
the least that the records allow to be said, and still an upper bound: an attack that was not run may break more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

import numpy as np
import numpy.typing as npt

from robustfdd.records import Outcome
from robustfdd.report.results import Metric, Place, Results
from robustfdd.report.study import Epsilon, Study, Unit, norm_title

#: What it is called in data, where an attack has its name, and for people.
NAME, TITLE = "worst-case", "Worst case"

Outcomes = npt.NDArray[np.int8]

#: Outcomes from the best to the worst: of several for one image the worst counts, so what any attack breaks is broken.
_ORDER = np.array([Outcome.SURVIVED, Outcome.UNDEFINED, Outcome.BROKEN, Outcome.MISCLASSIFIED], dtype=np.int8)
_RANKS = np.argsort(_ORDER)


@dataclass(frozen=True)
class WorstCase:
    """The worst case in one norm.

    Attributes:
        norm: ``"linf"`` or ``"l2"``.
        grid: the radii of all attacks of the study in this norm, ascending and without 0.
        outcomes: by method, seed and step (radii are counted from 1), the outcome of every image as
            :class:`robustfdd.records.Outcome`; nothing where a planned record up to that radius is missing, since a
            missing attack would flatter.
        planned: by method and step, the seeds that have something planned up to that radius.
    """

    norm: str
    grid: tuple[Epsilon, ...]
    outcomes: Mapping[tuple[str, int, int], Outcomes]
    planned: Mapping[tuple[str, int], tuple[int, ...]]

    def planned_seeds(self, method: str, step: int) -> tuple[int, ...]:
        """The training seeds that the plan has for a method up to a radius."""
        return self.planned.get((method, step), ())

    def values(self, method: str, step: int, metric: Metric) -> dict[int, Fraction]:
        """A metric at a radius, a fraction in [0, 1] for each seed that has one (no image attacked: no rate)."""
        found = {}
        for seed in self.planned_seeds(method, step):
            outcome = self.outcomes.get((method, seed, step))
            if outcome is None:
                continue
            of = len(outcome) if metric == "robust_accuracy" else int((outcome != Outcome.MISCLASSIFIED).sum())
            if of:
                found[seed] = Fraction(int((outcome == Outcome.SURVIVED).sum()), of)
        return found

    def steps(self) -> dict[str, int]:
        """The step of every radius, by :attr:`robustfdd.report.study.Epsilon.key`."""
        return {eps.key: step for step, eps in enumerate(self.grid, start=1)}


def union_grid(study: Study, norm: str) -> tuple[Epsilon, ...]:
    """The radii of all attacks of a study in a norm, ascending, each once."""
    found: dict[str, Epsilon] = {}
    for attack in study.attacks:
        for eps in attack.eps.get(norm, ()):
            found.setdefault(eps.key, eps)
    return tuple(sorted(found.values(), key=lambda eps: eps.pixel))


def worst_case(results: Results, norm: str) -> WorstCase:
    """The worst case in a norm, of every method and seed at every radius of the study.

    Images are taken by their index, and only those that all records of a model in this norm have. An image that was
    misclassified before any attack has not survived; where the forward pass is random, one that any unit found
    misclassified.
    """
    study = results.study
    grid = union_grid(study, norm)
    steps = {eps.key: step for step, eps in enumerate(grid, start=1)}
    cells: dict[tuple[str, int], dict[int, list[int | None]]] = {}
    for unit in study.units:
        if unit.norm == norm:
            found = cells.setdefault((unit.method, unit.seed), {})
            for own, eps in enumerate(study.grid(unit.attack, norm), start=1):
                place = Place(unit.method, unit.attack, norm, unit.engine, own)
                found.setdefault(steps[eps.key], []).append(results.places.get(place, {}).get(unit.seed))
    outcomes: dict[tuple[str, int, int], Outcomes] = {}
    planned: dict[tuple[str, int], list[int]] = {}
    for (method, seed), found in sorted(cells.items(), key=lambda item: item[0][1]):
        for step in range(min(found, default=len(grid) + 1), len(grid) + 1):
            planned.setdefault((method, step), []).append(seed)
        for step, outcome in _cumulated(results, found, len(grid)).items():
            outcomes[method, seed, step] = outcome
    return WorstCase(norm, grid, outcomes, {key: tuple(seeds) for key, seeds in planned.items()})


def _cumulated(results: Results, cells: Mapping[int, Sequence[int | None]], n_steps: int) -> dict[int, Outcomes]:
    """The worst outcome of every image of one model up to each step, as far as no record is missing.

    Args:
        results: the run.
        cells: by the step of their radius, the rows of the planned records; None for one that is missing.
        n_steps: how many radii there are.
    """
    indices, recorded = results.run.cells["image_index"], results.run.cells["outcome"]
    there = [np.asarray(indices.at[row]) for rows in cells.values() for row in rows if row is not None]
    shared = reduce(np.intersect1d, there) if there else np.array([], dtype=np.int32)
    found: dict[int, Outcomes] = {}
    worst = np.zeros(len(shared), dtype=np.int8)
    for step in range(min(cells, default=n_steps + 1), n_steps + 1):
        for row in cells.get(step, ()):
            if row is None:
                return found
            index = np.asarray(indices.at[row])
            order = np.argsort(index)
            outcome = np.asarray(recorded.at[row])[order[np.searchsorted(index, shared, sorter=order)]]
            worst = np.maximum(worst, _RANKS[outcome])
        if len(shared):
            found[step] = _ORDER[worst]
    return found


def explanation(results: Results, norm: str) -> str:
    """What the rows of the worst case are, over what, and which attack some methods were spared, in words."""
    study = results.study
    attacks = [attack for attack in study.attacks if norm in attack.eps]
    units = [unit for unit in study.units if unit.norm == norm]
    engines = [name for name in study.engines if any(unit.engine == name for unit in units)]
    over = ", ".join(attack.title for attack in attacks)
    through = f" through {' and '.join(engines)}" if len(engines) > 1 else ""
    text = (
        f"{TITLE}: an image counts as broken if any attack of the study in {norm_title(norm)}{through} broke it at "
        f"this ε or a smaller one ({over})."
    )
    lacking = spared(study, norm)
    for attack in attacks:
        text += _made_on(study, [unit for unit in units if unit.attack == attack.name], attack.title)
        if attack.title in lacking:
            text += f" {attack.title} was not planned for {', '.join(lacking[attack.title])}."
    return text


def spared(study: Study, norm: str) -> dict[str, list[str]]:
    """The methods that some attacks are not planned for in a norm, though for others: titles, by that of the attack.

    The worst case of these rests on fewer attacks, and does not compare with that of the others.
    """
    found = {}
    for attack in study.attacks:
        planned = {unit.method for unit in study.units if (unit.attack, unit.norm) == (attack.name, norm)}
        without = [method.title for method in study.methods if method.label not in planned]
        if planned and without:
            found[attack.title] = without
    return found


def _made_on(study: Study, units: Sequence[Unit], attack: str) -> str:
    """On which networks an attack makes its examples, in a sentence; empty where it makes them on the attacked ones."""
    title = {method.label: method.title for method in study.methods}
    groups: dict[str, dict[str, None]] = {}
    for unit in units:
        if unit.source is None:
            continue
        seed = unit.seed if unit.source_seed is None else unit.source_seed
        place = title.get(unit.source, unit.source)
        if seed != unit.seed:
            place = "its own network of another seed" if unit.source == unit.method else f"{place} of another seed"
        groups.setdefault(place, {})[title.get(unit.method, unit.method)] = None
    if not groups:
        return ""
    ranked = sorted(groups, key=lambda place: len(groups[place]), reverse=True)
    parts = [f"for {', '.join(groups[place])} on {place}" for place in ranked]
    if len(ranked) == 1 or len(groups[ranked[0]]) > len(groups[ranked[1]]):
        parts[0] = f"on {ranked[0]}"
    return f" {attack}: examples made {'; '.join(parts)}."
