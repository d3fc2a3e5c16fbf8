"""The records of a run, sorted into the places that its plan has for them, so that what is missing shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from robustfdd.audited import PgdSettings, settings_of
from robustfdd.errors import RunDirectoryError
from robustfdd.records import PER_SAMPLE, SCHEMA, Run, Verdict
from robustfdd.report.study import Epsilon, Study, Unit, read_study
from robustfdd.report.verdicts import VERDICT_TABLE, Audited, gravest, read_audits

Metric = Literal["robust_accuracy", "survival_rate"]


@dataclass(frozen=True)
class Place:
    """Where a cell belongs in the plan; ``step`` counts the radii of its grid from 1, and 0 is epsilon = 0."""

    method: str
    attack: str
    norm: str
    engine: str
    step: int


@dataclass(frozen=True)
class UnitState:
    """What became of a planned unit: ``missing`` is how many of its ``expected`` cells have no record."""

    unit: Unit
    expected: int
    missing: int


@dataclass(frozen=True)
class Results:
    """A run and its study.

    Attributes:
        run: as loaded.
        study: what was planned.
        places: for every place that has records, the row of ``run.cells`` of each training seed.
        unplanned: how many records belong to no unit or radius of the plan; no table shows them.
        audits: what the audits say, by label of the method and training seed.
    """

    run: Run
    study: Study
    places: Mapping[Place, Mapping[int, int]]
    unplanned: int
    audits: Mapping[tuple[str, int], Audited] = field(default_factory=dict)

    def rows(self, place: Place) -> dict[int, pd.Series[Any]]:
        """The record of each seed at a place, by ascending seed; empty where there is a gap."""
        found = self.places.get(place, {})
        return {seed: self.run.cells.loc[found[seed]] for seed in sorted(found)}

    def values(self, place: Place, metric: Metric) -> dict[int, Fraction]:
        """A metric at a place, a fraction in [0, 1] for each seed that has one (no image attacked: no rate)."""
        values = {}
        for seed, row in sorted(self.places.get(place, {}).items()):
            n_images, n_attacked, n_broken = self._counts[row]
            if of := n_images if metric == "robust_accuracy" else n_attacked:
                values[seed] = Fraction(n_attacked - n_broken, of)
        return values

    @cached_property
    def _counts(self) -> Mapping[int, tuple[int, int, int]]:
        """By row of the records: how many images there are, were attacked, and were broken."""
        columns = self.run.cells[["n_images", "n_attacked", "n_broken"]].astype(int)
        return dict(zip(columns.index, columns.itertuples(index=False, name=None), strict=True))

    @cached_property
    def _settings(self) -> Mapping[str, PgdSettings | None]:
        """The attacks of the study as an audit would audit them, by name."""
        return {attack.name: settings_of(attack.settings, self.study.protocol) for attack in self.study.attacks}

    def verdict(self, place: Place) -> Verdict | None:
        """What the audits say of the figure at a place, the gravest of its seeds; None where it was not audited."""
        found = self.audited_at(place)
        if not found:
            return None
        audits = [found.get((place.method, seed)) for seed in self.places[place]]
        return gravest([audit.verdict if audit is not None else None for audit in audits])

    def audited_at(self, place: Place) -> Mapping[tuple[str, int], Audited]:
        """The audits of the figures of single models at a place, by method and seed.

        Only what was crafted in single precision can have been audited.
        """
        if not place.step or not self.audits or self.study.attack_precision != "fp32":
            return {}
        eps = self.study.grid(place.attack, place.norm)[place.step - 1]
        found = {}
        for seed, row in self.places.get(place, {}).items():
            audit = self.audits.get((place.method, seed))
            if audit is not None and audit.covers(
                place.norm,
                eps,
                self._settings.get(place.attack),
                n_images=self._counts[row][0],
                eot_samples=int(self.run.cells["eot_samples"].loc[row]),
            ):
                found[place.method, seed] = audit
        return found

    @cached_property
    def _planned(self) -> Mapping[tuple[str, str, str, str], set[int]]:
        found: dict[tuple[str, str, str, str], set[int]] = {}
        for unit in self.study.units:
            found.setdefault((unit.method, unit.attack, unit.norm, unit.engine), set()).add(unit.seed)
        return found

    def planned_seeds(self, place: Place) -> tuple[int, ...]:
        """The training seeds that the plan has for a place."""
        return tuple(sorted(self._planned.get((place.method, place.attack, place.norm, place.engine), ())))

    def clean_place(self, method: str, norm: str) -> Place:
        """The place from which a method's clean accuracy is read: a unit that the tables show, of this norm first.

        The accuracy at epsilon = 0 does not depend on attack and norm, so a failed attack leaves no gap in it.
        """
        norms = sorted(self.study.norms, key=lambda other: other != norm)
        places = [self.place(method, a.name, other, 0) for other in norms for a in self.study.attacks if other in a.eps]
        nowhere = Place(method, "", norm, "", 0)
        # Not every attack is planned for every method.
        return max(places, key=lambda p: (len(self.places.get(p, {})), len(self.planned_seeds(p))), default=nowhere)

    def place(self, method: str, attack: str, norm: str, step: int) -> Place:
        """The place that tables and curves show of a method under an attack: that of the attack's first engine."""
        return Place(method, attack, norm, self.study.engine_of(attack, norm), step)

    def counts(self, column: str, *, norm: str | None = None) -> tuple[int, int] | None:
        """Smallest and largest count of images in a column, over the engines shown; None without records."""
        shown = [
            row
            for place, _, row in self._located()
            if norm in (None, place.norm) and place.engine == self.study.engine_of(place.attack, place.norm)
        ]
        counts = self.run.cells.loc[shown, column]
        return (int(counts.min()), int(counts.max())) if shown else None

    def _located(self) -> Iterator[tuple[Place, int, int]]:
        """Every record of the plan: its place, its seed and its row."""
        return ((place, seed, row) for place, seeds in self.places.items() for seed, row in seeds.items())

    def unit_states(self) -> list[UnitState]:
        """Every planned unit, in the order of the plan."""
        states = []
        for unit in self.study.units:
            steps = range(len(self.study.grid(unit.attack, unit.norm)) + 1)
            places = (Place(unit.method, unit.attack, unit.norm, unit.engine, step) for step in steps)
            missing = sum(unit.seed not in self.places.get(place, {}) for place in places)
            states.append(UnitState(unit, len(steps), missing))
        return states

    def not_run(self) -> list[UnitState]:
        """Planned units that have not all of their cells and did not fail."""
        failed = {failure.unit for failure in self.run.failures}
        return [state for state in self.unit_states() if state.missing and state.unit.unit not in failed]

    def long_table(self) -> pd.DataFrame:
        """Every record without its per-sample columns, one row a cell, in the order of the plan."""
        study = self.study
        names = (
            [attack.name for attack in study.attacks],
            study.norms,
            study.engines,
            [method.label for method in study.methods],
        )
        attacks, norms, engines, methods = ({name: i for i, name in enumerate(part)} for part in names)

        def position(found: tuple[Place, int, int]) -> tuple[int, ...]:
            p, seed, _ = found
            return attacks[p.attack], norms[p.norm], engines[p.engine], p.step, methods[p.method], seed

        rows = [row for _, _, row in sorted(self._located(), key=position)]
        columns = [name for name in ("unit", *SCHEMA.names) if name not in PER_SAMPLE]
        frame: pd.DataFrame = self.run.cells.loc[rows, columns]
        # A normalisation that is not known makes a normalised epsilon of nothing.
        return frame if self.study.eps_scale is not None else frame.assign(eps_normalized=np.nan)

    def unsteady_methods(self) -> list[str]:
        """Methods recorded as deterministic one of whose models predicted one clean image differently in two units.

        Predictions at epsilon = 0 depend on the model alone, so a difference means a random forward pass.
        """
        first: dict[tuple[str, int], tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
        unsteady = set()
        for place, seed, row in self._located():
            if place.step == 0:
                index, prediction = (np.asarray(self.run.cells.at[row, n]) for n in ("image_index", "clean_prediction"))
                known_index, known = first.setdefault((place.method, seed), (index, prediction))
                _, here, there = np.intersect1d(index, known_index, assume_unique=True, return_indices=True)
                if (prediction[here] != known[there]).any():
                    unsteady.add(place.method)
        unsteady -= set(self.eot_samples())
        return [method.label for method in self.study.methods if method.label in unsteady]

    def eot_samples(self) -> dict[str, tuple[int, ...]]:
        """How many passes each method with a declared random forward was attacked with, for one gradient.

        Returns:
            By label, in the order of the study, the different numbers in its records, ascending; that of the plan
            where there are no records yet.
        """
        column = self.run.cells["eot_samples"]
        recorded: dict[str, set[int]] = {}
        for place, _, row in self._located():
            recorded.setdefault(place.method, set()).add(int(column.loc[row]))
        numbers = {
            method.label: tuple(sorted(recorded.get(method.label, {method.eot_samples}) - {0}))
            for method in self.study.methods
        }
        return {label: found for label, found in numbers.items() if found}

    def identical_methods(self) -> list[list[str]]:
        """Groups of methods whose trained weights are the same and which predicted every image alike.

        The weights alone do not decide it, since a layer may rescale in evaluation; nor do the predictions, since
        networks that learned nothing all predict one class.
        """
        facts: dict[str, list[tuple[object, ...]]] = {}
        for model in self.run.models:
            facts.setdefault(str(model.get("method")), []).append((model.get("seed"), model.get("weights_sha256")))
        trained = {label for label, found in facts.items() if all(digest for _, digest in found)}
        for place, seed, row in self._located():
            if place.method in trained:
                prediction = np.asarray(self.run.cells.at[row, "prediction"]).tobytes()
                facts[place.method].append((place.attack, place.norm, place.engine, place.step, seed, prediction))
        groups: dict[frozenset[tuple[object, ...]], list[str]] = {}
        for method in self.study.methods:
            if method.label in trained:
                groups.setdefault(frozenset(facts[method.label]), []).append(method.label)
        return [group for group in groups.values() if len(group) > 1]


def _check_text(run: Run) -> None:
    """Refuse text that JSON can hold and no other file: this package writes none."""
    parts = {"manifest.json": run.manifest, "models": run.models, "failures": [vars(each) for each in run.failures]}
    for name, content in parts.items():
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise RunDirectoryError(f"{run.path / name}: damaged: holds text that is not Unicode ({error})") from error


def sort_results(run: Run) -> Results:
    """Give every record of a run its place in the plan.

    Raises:
        RunDirectoryError: the manifest is damaged, text is not Unicode, a verdict is unknown, or two records claim one
            place.
    """
    _check_text(run)
    study = read_study(run.manifest, run.path / "manifest.json")
    audits = read_audits(study, run.analyses.get(VERDICT_TABLE), run.path / "analysis")
    planned = {(unit.method, unit.seed, unit.attack, unit.norm, unit.engine) for unit in study.units}
    steps = {
        (attack.name, norm): {eps.key: step for step, eps in enumerate(attack.eps[norm], start=1)}
        for attack, norm in study.planes
    }
    named = {method.label for method in study.methods}
    places: dict[Place, dict[int, int]] = {}
    unplanned = 0
    columns = ["unit", "method", "seed", "attack", "norm", "engine", "eps_pixel"]
    for row, (unit, method, seed, attack, norm, engine, eps) in zip(
        run.cells.index, run.cells[columns].itertuples(index=False, name=None), strict=True
    ):
        grid = steps.get((attack, norm), {})
        step = 0 if eps == 0 and grid else grid.get(Epsilon(None, eps).key)
        if step is None or method not in named or (method, seed, attack, norm, engine) not in planned:
            unplanned += 1
            continue
        found = places.setdefault(Place(method, attack, norm, engine, step), {})
        if seed in found:
            other = str(run.cells.at[found[seed], "unit"])
            raise RunDirectoryError(
                f"{run.path / 'results'}: {other}.parquet and {unit}.parquet both hold {method}, seed {seed}, "
                f"{attack}, {norm}, {engine}, eps {eps:g}"
            )
        found[seed] = row
    return Results(run, study, places, unplanned, audits)
