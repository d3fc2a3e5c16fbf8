"""Several runs as one: the seeds, methods or attacks of one study that were run apart, put together for one report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
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


def _refusal(first: Run, second: Run, what: str, values: tuple[object, object], advice: str) -> RunDirectoryError:
    return RunDirectoryError(
        f"{first.path} and {second.path} cannot stand in one report: {what} is {_shown(values[0])} in the first and "
        f"{_shown(values[1])} in the second; {advice}"
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _first_difference(a: object, b: object, key: str) -> tuple[str, object, object] | None:
    """Where two settings differ first: the dotted key and the two values; None where they do not."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in dict.fromkeys([*a, *b]):
            found = _first_difference(a.get(name, _MISSING), b.get(name, _MISSING), f"{key}.{name}")
            if found:
                return found
        return None
    return None if a == b else (key, a, b)


def _check_same(first: Run, second: Run, key: str, values: tuple[object, object], advice: str) -> None:
    found = _first_difference(*values, key)
    if found:
        raise _refusal(first, second, found[0], found[1:], advice)


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


def _check_images(first: Run, second: Run) -> None:
    a, b = _images(first), _images(second)
    if a is None or b is None:
        a_n, b_n = (run.manifest["study"].get("test_images") for run in (first, second))
        _check_same(first, second, "study.test_images", (a_n, b_n), "run both on the same test images")
    elif a != b:
        shared = len({*a} & {*b})
        texts = (f"{len(a):,} images", f"{len(b):,} images of which {shared:,} are among those of the first")
        raise _refusal(
            first, second, "the set of test images", texts, "run both with the same test_images and data set"
        )


def _named(entries: Iterable[Mapping[str, Any]], key: str, free: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {entry[key]: {k: v for k, v in entry.items() if k not in free} for entry in entries}


def _check_pair(first: Run, second: Run) -> None:
    """Refuse two runs whose records do not belong into one table."""
    a, b = first.manifest, second.manifest
    other_study = "make a report of each"
    hashes = tuple((manifest.get("dataset") or {}).get("sha256") for manifest in (a, b))
    _check_same(
        first, second, "dataset.sha256", (hashes[0], hashes[1]), f"their figures are of different data: {other_study}"
    )
    if _known(first) and _known(second):
        _check_same(
            first,
            second,
            "eps_scale",
            (a["eps_scale"], b["eps_scale"]),
            f"a normalised epsilon means another budget: {other_study}",
        )
    studies = a["study"], b["study"]
    if _attacks(first) and _attacks(second):
        for key in ("eps_unit", "protocol", "attack_precision"):
            values = studies[0].get(key), studies[1].get(key)
            # What is given in pixels alone has one unit.
            if key != "eps_unit" or (_known(first) and _known(second)):
                _check_same(first, second, f"study.{key}", values, f"run both with the same {key}, or {other_study}")
        _check_engines(first, second, f"put the same engine first in both studies, or {other_study}")
        _check_images(first, second)
    if _trained_here(first) and _trained_here(second):
        for key in ("recipe", "model", "normalization"):
            values = studies[0].get(key), studies[1].get(key)
            _check_same(first, second, f"study.{key}", values, f"train both alike, or {other_study}")
    methods = [_named(study["methods"], "label", _FREE_IN_METHODS) for study in studies]
    for label in (label for label in methods[0] if label in methods[1]):
        key, values = f'the method "{label}"', (methods[0][label], methods[1][label])
        _check_same(first, second, key, values, "give one of the two another label")
        if not _trained_here(first) or not _trained_here(second):
            _check_model(first, second, label)
    attacks = [_named(study["attacks"], "name", _FREE_IN_ATTACKS) for study in studies]
    for name in (name for name in attacks[0] if name in attacks[1]):
        key, values = f'the attack "{name}"', (attacks[0][name], attacks[1][name])
        _check_same(first, second, key, values, f"run both with the same parameters, or {other_study}")
    _check_units(first, second)
    _check_models(first, second)


def _check_model(first: Run, second: Run, label: str) -> None:
    """One label is one model. Its checksum is over what it makes of some images, and says so only for the same ones."""
    studies = first.manifest["study"], second.manifest["study"]
    models = [study.get("model") or {} for study in studies]
    if all(key in model for model in models for key in _IDENTITY):
        same_images = studies[0].get("test_images") == studies[1].get("test_images")
        keys = (*_IDENTITY, "sha256") if same_images else _IDENTITY
        models = [{key: model.get(key) for key in keys} for model in models]
    _check_same(first, second, f'the model of "{label}"', (models[0], models[1]), "give one of the two another label")


def _check_engines(first: Run, second: Run, advice: str) -> None:
    """The figures of an attack in the tables must come through one engine."""
    a, b = (read_study(run.manifest, run.path / "manifest.json") for run in (first, second))
    planned = [dict.fromkeys((unit.attack, unit.norm) for unit in study.units) for study in (a, b)]
    for attack, norm in (key for key in planned[0] if key in planned[1]):
        what = f"the primary engine of {a.attack_title(attack)} in {norm_title(norm)}"
        _check_same(first, second, what, (a.engine_of(attack, norm), b.engine_of(attack, norm)), advice)


def _check_units(first: Run, second: Run) -> None:
    keys = ("method", "seed", "attack", "norm", "engine")
    units = [
        {tuple(unit[key] for key in keys): unit["unit"] for unit in run.manifest["units"]} for run in (first, second)
    ]
    for unit in units[0]:
        if unit in units[1]:
            what = ", ".join(f"{key} {value}" for key, value in zip(keys, unit, strict=True))
            raise RunDirectoryError(
                f"{first.path} and {second.path} cannot stand in one report: both plan one and the same unit ({what}): "
                f"{units[0][unit]} in the first, {units[1][unit]} in the second; leave one of the two out"
            )


def _check_models(first: Run, second: Run) -> None:
    """One method and seed is one network; the runs may share it, but not have trained two."""
    models = [
        {(m.get("method"), m.get("seed")): m.get("weights_sha256") for m in run.models} for run in (first, second)
    ]
    for key in (key for key in models[0] if key in models[1]):
        what = f'weights_sha256 of method "{key[0]}", seed {key[1]},'
        values = models[0][key], models[1][key]
        _check_same(first, second, what, values, "give one of the two another label or seed")
    for name in (name for name in first.analyses if name in second.analyses):
        columns = list(first.analyses[name].columns), list(second.analyses[name].columns)
        _check_same(
            first, second, f"the list of columns of the analysis {name}", columns, "repeat both with the same version"
        )
        held = [
            set(run.analyses[name][["method", "seed"]].itertuples(index=False, name=None)) for run in (first, second)
        ]
        for method, seed in sorted(held[0] & held[1]):
            raise RunDirectoryError(
                f"{first.path} and {second.path} cannot stand in one report: both hold the analysis {name} of method "
                f'"{method}", seed {seed}; remove analysis/{name}--{method}--seed{seed}.parquet from one of the two'
            )


def _union_by(key: str, lists: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The entries of all lists in order of appearance, the first of those that share a name."""
    found: dict[str, dict[str, Any]] = {}
    for entries in lists:
        for entry in entries:
            found.setdefault(entry[key], entry)
    return list(found.values())


def _union_attacks(manifests: Sequence[Mapping[str, Any]], *, pixel: bool) -> list[dict[str, Any]]:
    """The attacks of all runs, each with all of its radii.

    Args:
        manifests: of the runs.
        pixel: whether the radii are given in pixels, whatever the studies' unit is.
    """
    studies = [manifest["study"] for manifest in manifests]
    attacks = _union_by("name", [study["attacks"] for study in studies])
    grids: dict[str, dict[str, dict[str, float]]] = {}
    for manifest, study in zip(manifests, studies, strict=True):
        for attack in study["attacks"]:
            for norm, grid in attack["eps"].items():
                radii = grids.setdefault(attack["name"], {}).setdefault(norm, {})
                for eps in pixel_radii(grid, study["eps_unit"], manifest["eps_scale"]) if pixel else grid:
                    radii.setdefault(f"{eps:.9g}", eps)  # a rounding in the conversion between units is no new radius
    return [
        {**attack, "eps": {norm: sorted(radii.values()) for norm, radii in grids[attack["name"]].items()}}
        for attack in attacks
    ]


def _methods(runs: Sequence[Run], *, apart: bool) -> list[dict[str, Any]]:
    """The methods of all runs; each that is a model trained elsewhere says which, where the runs are of several."""
    return _union_by(
        "label",
        [
            [
                {
                    **method,
                    **({"model": run.manifest["study"].get("model")} if apart and not _trained_here(run) else {}),
                }
                for method in run.manifest["study"]["methods"]
            ]
            for run in runs
        ],
    )


def _united(values: Iterable[object]) -> str:
    return "; ".join(dict.fromkeys(str(value) for value in values if value))


def part_names(runs: Sequence[Run]) -> list[str]:
    """What the parts are called: the names of their folders, or their paths where two have one name."""
    names = [printable(run.path.resolve().name) for run in runs]
    return names if len(set(names)) == len(names) else [printable(str(run.path)) for run in runs]


def _combine_manifests(runs: Sequence[Run]) -> dict[str, Any]:
    manifests = [run.manifest for run in runs]
    studies = [manifest["study"] for manifest in manifests]
    names = part_names(runs)
    # A model that was not trained here has no recipe; what is trained here is trained alike.
    main = next((run.manifest for run in runs if _trained_here(run)), None) or next(
        (run.manifest for run in runs if _attacks(run)), manifests[0]
    )
    models = [study.get("model") for study in studies]
    apart = any(model != models[0] for model in models)
    # A radius in normalised units can be given where every model normalises in the same known way.
    normalizations = [normalization_of(study) for study in studies]
    known = None not in normalizations
    study = {
        **main["study"],
        "name": _united(study["name"] for study in studies),
        "title": _united(study.get("title") or study["name"] for study in studies),
        "description": _united(study.get("description") for study in studies),
        "engines": list(dict.fromkeys(engine for study in studies for engine in study["engines"])),
        "seeds": sorted({seed for study in studies for seed in study.get("seeds") or ()}),
        "methods": _methods(runs, apart=apart),
        "attacks": _union_attacks(manifests, pixel=not known),
        "open_choices": {k: v for study in reversed(studies) for k, v in (study.get("open_choices") or {}).items()},
        "normalization": main["study"].get("normalization") if known else None,
    }
    if not known:
        study["eps_unit"] = "pixel"
    if apart and not any(map(_trained_here, runs)):
        del study["model"]
    parts = [
        {
            "name": name,
            **{key: manifest.get(key) for key in _KEPT},
            "study": study["name"],
            "seeds": study.get("seeds") or [],
            "normalization": normalization,
            "model": study.get("model"),
        }
        for name, manifest, study, normalization in zip(names, manifests, studies, normalizations, strict=True)
    ]
    combined = {
        **main,
        "study": study,
        "units": [unit for manifest in manifests for unit in manifest["units"]],
        "overrides": [
            f"{name}: {override}"
            for name, manifest in zip(names, manifests, strict=True)
            for override in manifest.get("overrides") or []
        ],
        "parts": parts,
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
        if first.path.resolve() == second.path.resolve():
            raise RunDirectoryError(f"{first.path} and {second.path} are one run directory; name it once")
        _check_pair(first, second)
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
