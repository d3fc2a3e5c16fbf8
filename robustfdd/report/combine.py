"""Several runs as one: the seeds, methods or attacks of one study that were run apart, put together for one report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from robustfdd.errors import ConfigurationError, RunDirectoryError
from robustfdd.records import Run
from robustfdd.report.results import Results, sort_results
from robustfdd.report.study import norm_title, normalization_of, pixel_radii, read_study
from robustfdd.text import printable

#: What two methods of one label, or two attacks of one name, may differ in: names for people, and what is united.
_FREE_IN_METHODS = ("title", "variant")
_FREE_IN_ATTACKS = ("title", "reference", "eps")
#: What the parts of a combined run keep of their own manifest.
_KEPT = ("created", "command", "overrides", "versions", "hardware", "git")
#: What says which model is meant that was not trained here, whatever images it was looked at with.
_IDENTITY = ("class", "weights_sha256")
_MISSING = "not there"


class _Pair:
    """Two runs that are to stand in one report; every check refuses them where their records belong apart."""

    def __init__(self, first: Run, second: Run) -> None:
        self._runs = first, second
        self._studies = [run.manifest["study"] for run in self._runs]

    def _refusal(self, why: str) -> RunDirectoryError:
        return RunDirectoryError(f"{self._runs[0].path} and {self._runs[1].path} cannot stand in one report: {why}")

    def _differ(self, what: str, a: object, b: object, advice: str) -> RunDirectoryError:
        return self._refusal(f"{what} is {_shown(a)} in the first and {_shown(b)} in the second; {advice}")

    def _same(self, key: str, values: Iterable[object], advice: str) -> None:
        a, b = values
        if found := _first_difference(a, b, key):
            raise self._differ(*found, advice)

    def _both(self, test: Callable[[Run], bool]) -> bool:
        return all(map(test, self._runs))

    def check(self) -> None:
        """Refuse two runs whose records do not belong into one table."""
        other_study = "make a report of each"
        if self._runs[0].path.resolve() == self._runs[1].path.resolve():
            raise RunDirectoryError(
                f"{self._runs[0].path} and {self._runs[1].path} are one run directory; name it once"
            )
        hashes = ((run.manifest.get("dataset") or {}).get("sha256") for run in self._runs)
        self._same("dataset.sha256", hashes, f"their figures are of different data: {other_study}")
        if self._both(_known):
            scales = (run.manifest["eps_scale"] for run in self._runs)
            self._same("eps_scale", scales, f"a normalised epsilon means another budget: {other_study}")
        if self._both(_attacks):
            # What is given in pixels alone has one unit.
            for key in (*(("eps_unit",) if self._both(_known) else ()), "protocol", "attack_precision"):
                values = (study.get(key) for study in self._studies)
                self._same(f"study.{key}", values, f"run both with the same {key}, or {other_study}")
            self._check_engines(f"put the same engine first in both studies, or {other_study}")
            self._check_images()
        if self._both(_trained_here):
            for key in ("recipe", "model", "normalization"):
                values = (study.get(key) for study in self._studies)
                self._same(f"study.{key}", values, f"train both alike, or {other_study}")
        self._check_methods()
        for name, both in self._shared("attacks", "name", _FREE_IN_ATTACKS).items():
            self._same(f'the attack "{name}"', both, f"run both with the same parameters, or {other_study}")
        self._check_units()
        self._check_models()
        self._check_analyses()

    def _shared(self, part: str, key: str, free: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The entries of both studies that have one name, without what they may differ in."""
        first, second = (
            {entry[key]: {k: v for k, v in entry.items() if k not in free} for entry in study[part]}
            for study in self._studies
        )
        return {name: [first[name], second[name]] for name in first if name in second}

    def _check_images(self) -> None:
        a, b = map(_images, self._runs)
        if a is None or b is None:
            numbers = (study.get("test_images") for study in self._studies)
            self._same("study.test_images", numbers, "run both on the same test images")
        elif a != b:
            theirs = f"{len(b):,} images of which {len({*a} & {*b}):,} are among those of the first"
            advice = "run both with the same test_images and data set"
            raise self._differ("the set of test images", f"{len(a):,} images", theirs, advice)

    def _check_methods(self) -> None:
        """One label is one method, and one model if that was not trained here."""
        advice = "give one of the two another label"
        for label, both in self._shared("methods", "label", _FREE_IN_METHODS).items():
            self._same(f'the method "{label}"', both, advice)
            if not self._both(_trained_here):
                self._same(f'the model of "{label}"', self._identities(), advice)

    def _identities(self) -> list[dict[str, Any]]:
        """What says which model is meant: a checksum over what it makes of some images, only for the same ones."""
        models = [study.get("model") or {} for study in self._studies]
        if all(key in model for model in models for key in _IDENTITY):
            first, second = (study.get("test_images") for study in self._studies)
            keys = (*_IDENTITY, "sha256") if first == second else _IDENTITY
            models = [{key: model.get(key) for key in keys} for model in models]
        return models

    def _check_engines(self, advice: str) -> None:
        """The figures of an attack in the tables must come through one engine."""
        a, b = (read_study(run.manifest, run.path / "manifest.json") for run in self._runs)
        planned = [dict.fromkeys((unit.attack, unit.norm) for unit in study.units) for study in (a, b)]
        for attack, norm in (key for key in planned[0] if key in planned[1]):
            what = f"the primary engine of {a.attack_title(attack)} in {norm_title(norm)}"
            self._same(what, (a.engine_of(attack, norm), b.engine_of(attack, norm)), advice)

    def _check_units(self) -> None:
        keys = ("method", "seed", "attack", "norm", "engine")
        first, second = (
            {tuple(unit[key] for key in keys): unit["unit"] for unit in run.manifest["units"]} for run in self._runs
        )
        for unit in (unit for unit in first if unit in second):
            what = ", ".join(f"{key} {value}" for key, value in zip(keys, unit, strict=True))
            raise self._refusal(
                f"both plan one and the same unit ({what}): {first[unit]} in the first, {second[unit]} in the second; "
                "leave one of the two out"
            )

    def _check_models(self) -> None:
        """One method and seed is one network; the runs may share it, but not have trained two."""
        first, second = (
            {(m.get("method"), m.get("seed")): m.get("weights_sha256") for m in run.models} for run in self._runs
        )
        for key in (key for key in first if key in second):
            what = f'weights_sha256 of method "{key[0]}", seed {key[1]},'
            self._same(what, (first[key], second[key]), "give one of the two another label or seed")

    def _check_analyses(self) -> None:
        first, second = (run.analyses for run in self._runs)
        for name in (name for name in first if name in second):
            frames = first[name], second[name]
            columns = (list(frame.columns) for frame in frames)
            what = f"the list of columns of the analysis {name}"
            self._same(what, columns, "repeat both with the same version")
            held = (set(frame[["method", "seed"]].itertuples(index=False, name=None)) for frame in frames)
            for method, seed in sorted(set.intersection(*held)):
                raise self._refusal(
                    f'both hold the analysis {name} of method "{method}", seed {seed}; remove '
                    f"analysis/{name}--{method}--seed{seed}.parquet from one of the two"
                )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _first_difference(a: object, b: object, key: str) -> tuple[str, object, object] | None:
    """Where two settings differ first: the dotted key and the two values; None where they do not."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        names = dict.fromkeys([*a, *b])
        parts = (_first_difference(a.get(name, _MISSING), b.get(name, _MISSING), f"{key}.{name}") for name in names)
        return next((part for part in parts if part), None)
    return None if a == b else (key, a, b)


def _trained_here(run: Run) -> bool:
    return run.manifest["study"].get("recipe") is not None


def _attacks(run: Run) -> bool:
    """Whether there are attacks in a run; an audit by itself has none, so that how they are run is none of its."""
    return bool(run.manifest["study"]["attacks"])


def _known(run: Run) -> bool:
    return normalization_of(run.manifest["study"]) is not None


def _images(run: Run) -> tuple[int, ...] | None:
    """The test images attacked, which are the same in all records of a run; None without records."""
    return tuple(np.asarray(run.cells["image_index"].iloc[0]).tolist()) if len(run.cells) else None


def _union_by(key: str, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries in order of appearance, the first of those that share a name."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        found.setdefault(entry[key], entry)
    return list(found.values())


def _union_attacks(manifests: Sequence[Mapping[str, Any]], *, pixel: bool) -> list[dict[str, Any]]:
    """The attacks of all runs, each with all of its radii.

    Args:
        manifests: of the runs.
        pixel: whether the radii are given in pixels, whatever the studies' unit is.
    """
    attacks = [(attack, manifest) for manifest in manifests for attack in manifest["study"]["attacks"]]
    grids: dict[str, dict[str, dict[str, float]]] = {}
    for attack, manifest in attacks:
        for norm, grid in attack["eps"].items():
            radii = grids.setdefault(attack["name"], {}).setdefault(norm, {})
            unit, scale = manifest["study"]["eps_unit"], manifest["eps_scale"]
            for eps in pixel_radii(grid, unit, scale) if pixel else grid:
                radii.setdefault(f"{eps:.9g}", eps)  # a rounding in the conversion between units is no new radius
    return [
        {**attack, "eps": {norm: sorted(radii.values()) for norm, radii in grids[attack["name"]].items()}}
        for attack in _union_by("name", (attack for attack, _ in attacks))
    ]


def _methods(run: Run, *, apart: bool) -> list[dict[str, Any]]:
    """The methods of a run; each that is a model trained elsewhere says which, where the runs are of several."""
    study = run.manifest["study"]
    model = {"model": study.get("model")} if apart and not _trained_here(run) else {}
    return [{**method, **model} for method in study["methods"]]


def _united(values: Iterable[object]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def part_names(runs: Sequence[Run]) -> list[str]:
    """What the parts are called: the names of their folders, or their paths where two have one name."""
    names = [printable(run.path.resolve().name) for run in runs]
    return names if len(set(names)) == len(names) else [printable(str(run.path)) for run in runs]


def _part(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    study = manifest["study"]
    return {
        "name": name,
        **{key: manifest.get(key) for key in _KEPT},
        "study": study["name"],
        "seeds": study.get("seeds") or [],
        "normalization": normalization_of(study),
        "model": study.get("model"),
    }


def _combine_studies(runs: Sequence[Run], main: Mapping[str, Any]) -> dict[str, Any]:
    studies = [run.manifest["study"] for run in runs]
    apart = any(study.get("model") != studies[0].get("model") for study in studies)
    # A radius in normalised units can be given where every model normalises in the same known way.
    known = all(map(_known, runs))
    study = {
        **main,
        "name": _united(study["name"] for study in studies),
        "title": _united(study.get("title") or study["name"] for study in studies),
        "description": _united(study.get("description") for study in studies),
        "engines": list(dict.fromkeys(engine for study in studies for engine in study["engines"])),
        "seeds": sorted({seed for study in studies for seed in study.get("seeds") or ()}),
        "methods": _union_by("label", (method for run in runs for method in _methods(run, apart=apart))),
        "attacks": _union_attacks([run.manifest for run in runs], pixel=not known),
        "open_choices": {k: v for study in reversed(studies) for k, v in (study.get("open_choices") or {}).items()},
        "normalization": main.get("normalization") if known else None,
    }
    if not known:
        study["eps_unit"] = "pixel"
    if apart and not any(map(_trained_here, runs)):
        del study["model"]
    return study


def _combine_manifests(runs: Sequence[Run]) -> dict[str, Any]:
    # A model that was not trained here has no recipe; what is trained here is trained alike.
    ranked = [*filter(_trained_here, runs), *filter(_attacks, runs), *runs]
    manifests, main, names = [run.manifest for run in runs], ranked[0].manifest, part_names(runs)
    named = list(zip(names, manifests, strict=True))
    combined = {
        **main,
        "study": _combine_studies(runs, main["study"]),
        "units": [unit for manifest in manifests for unit in manifest["units"]],
        "overrides": [f"{name}: {each}" for name, manifest in named for each in manifest.get("overrides") or []],
        "parts": [_part(name, manifest) for name, manifest in named],
    }
    # What is not the same for all parts is not true of the whole; each part has its own.
    for key in ("created", "command", "versions", "hardware", "git"):
        if any(manifest.get(key) != manifests[0].get(key) for manifest in manifests):
            combined.pop(key, None)
    return combined


def _combine_analyses(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    names = dict.fromkeys(name for run in runs for name in run.analyses)
    return {
        name: pd.concat([run.analyses[name] for run in runs if name in run.analyses], ignore_index=True)
        for name in names
    }


def combine(runs: Sequence[Run]) -> Run:
    """Runs that belong together as one run: of one data set, under one protocol, trained alike.

    Methods, attacks, engines and seeds are those of all runs, in order of appearance; where the radii of an attack
    differ, its grid is the union, and what a run has not measured is a gap. The manifest's ``parts`` keep the
    provenance of each: ``name``, ``created``, ``command``, ``overrides``, ``versions``, ``hardware``, ``git``, and the
    study's name, seeds and model. Models that were not trained here may stand beside trained ones.

    Args:
        runs: at least one; a single one is given back as it is.

    Returns:
        The combined run; its ``path`` is that of the first.

    Raises:
        ConfigurationError: ``runs`` is empty.
        RunDirectoryError: a manifest or a record is damaged, or two runs do not belong together; the message names
            the two, what differs with both values, and what to do.
    """
    if not runs:
        raise ConfigurationError("a report needs at least one run directory")
    sorted_runs: list[Results] = [sort_results(run) for run in runs]  # raises for a damaged one, by its own name
    if len(runs) == 1:
        return sorted_runs[0].run
    for first, second in combinations(runs, 2):
        _Pair(first, second).check()
    cells = [run.cells for run in runs if len(run.cells)]
    models: dict[tuple[object, object], dict[str, Any]] = {}
    for run in runs:
        for model in run.models:
            models.setdefault((model.get("method"), model.get("seed")), model)
    return Run(
        path=runs[0].path,
        manifest=_combine_manifests(runs),
        models=list(models.values()),
        cells=pd.concat(cells, ignore_index=True) if cells else runs[0].cells,
        failures=[failure for run in runs for failure in run.failures],
        analyses=_combine_analyses(runs),
    )
