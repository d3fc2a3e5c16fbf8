"""What a manifest says, in the form the tables and figures need: names in order, both units of epsilon, the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robustfdd.errors import RunDirectoryError

EpsUnit = Literal["normalized", "pixel"]

#: How each norm is written for a reader.
NORM_TITLES = {"linf": "L∞", "l2": "L2"}

#: What each protocol means for a figure in a table.
PROTOCOL_MEANINGS = {
    "paper": "each ε by itself, last iterate, no worst case",
}


def norm_title(norm: str) -> str:
    """The norm as a reader knows it; an unknown one as it stands."""
    return NORM_TITLES.get(norm, norm)


def number(value: float, digits: int = 4) -> str:
    """A number with at most ``digits`` significant digits, never in exponent form unless it is tiny or huge."""
    if value != 0 and not 1e-6 <= abs(value) < 1e9:
        return f"{value:.{digits}g}"
    return np.format_float_positional(value, precision=digits, fractional=False, trim="-")


def signed(points: float) -> str:
    """A difference in percentage points with its sign, a true minus, and no sign on zero."""
    text = f"{points:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")


def one_image(n_images: int) -> str:
    """What one of n images is worth, in percentage points, in words."""
    points = number(100 / n_images, 2)
    return f"one image is {points} point{'' if points == '1' else 's'}"


def file_stem(name: str) -> str:
    """A name as the stem of a file and of a LaTeX label, safe on every system: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


def unique_stems(names: Sequence[str]) -> list[str]:
    """:func:`file_stem` of every name, numbered where two would be the same."""
    stems: list[str] = []
    for name in names:
        stem, n = file_stem(name), 1
        while (candidate := stem if n == 1 else f"{stem}-{n}") in stems:
            n += 1
        stems.append(candidate)
    return stems


@dataclass(frozen=True)
class Epsilon:
    """One radius, in both units."""

    normalized: float
    pixel: float

    def texts(self, first: EpsUnit, digits: int = 4) -> tuple[str, str]:
        """The radius in both units, the unit ``first`` before the other."""
        both = number(self.normalized, digits), number(self.pixel, digits)
        return both if first == "normalized" else both[::-1]


ZERO = Epsilon(0.0, 0.0)


def unit_titles(first: EpsUnit) -> tuple[str, str]:
    """The names of the two units, in the order of :meth:`Epsilon.texts`."""
    return ("normalised", "pixel") if first == "normalized" else ("pixel", "normalised")


@dataclass(frozen=True)
class Method:
    """One column: a regulariser with its options, under the name it has in the study."""

    label: str
    title: str
    settings: Mapping[str, Any]

    @property
    def dropout(self) -> str | None:
        """The name of its dropout; None for a model that is not this package's."""
        return self.settings.get("dropout")

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its dropout."""
        return self.settings.get("options") or {}

    @property
    def eot_samples(self) -> int:
        """How many passes the plan averages for one gradient; above 0 only for a random forward pass."""
        return int(self.settings.get("eot_samples") or 0)


@dataclass(frozen=True)
class Attack:
    """One attack and the radii it is run at; ``eps`` maps each norm to its grid, ascending and without 0."""

    name: str
    title: str
    eps: Mapping[str, tuple[Epsilon, ...]]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Unit:
    """One planned unit: one model under one attack, norm and engine."""

    unit: str
    method: str
    seed: int
    attack: str
    norm: str
    engine: str


@dataclass(frozen=True)
class Study:
    """A study as the manifest has it.

    Attributes:
        name: what files are named after.
        title: for people.
        dataset: the data set's title.
        eps_unit: the unit the study states its epsilons in; it comes first in tables and figures.
        eps_scale: the standard deviation that turns a normalised epsilon into pixels.
        protocol: how the attacks are run, in one word.
        engines: in the study's order; the first is the primary one.
        methods: the columns, in the study's order.
        attacks: in the study's order.
        norms: all norms of all attacks, in order of appearance.
        units: the whole plan.
        seeds: training seeds of the plan, ascending; (-1,) for a model that was not trained here.
    """

    name: str
    title: str
    dataset: str
    eps_unit: EpsUnit
    eps_scale: float
    protocol: str
    engines: tuple[str, ...]
    methods: tuple[Method, ...]
    attacks: tuple[Attack, ...]
    norms: tuple[str, ...]
    units: tuple[Unit, ...]
    seeds: tuple[int, ...]

    @property
    def trained_seeds(self) -> tuple[int, ...]:
        """The training seeds without the -1 of models that were not trained here."""
        return tuple(seed for seed in self.seeds if seed >= 0)

    @property
    def engine(self) -> str:
        """The primary engine: the one whose figures the tables and curves show."""
        return self.engines[0]

    def grid(self, attack: str, norm: str) -> tuple[Epsilon, ...]:
        """The radii above 0 at which an attack is run in a norm; empty if it is not."""
        return next((item.eps.get(norm, ()) for item in self.attacks if item.name == attack), ())

    def attack_title(self, attack: str) -> str:
        """The attack as a reader knows it."""
        return next((item.title for item in self.attacks if item.name == attack), attack)

    def method_title(self, method: str) -> str:
        """The method as a reader knows it."""
        return next((item.title for item in self.methods if item.label == method), method)


def _grid(values: list[float], unit: str, scale: float) -> tuple[Epsilon, ...]:
    positive = sorted({float(value) for value in values if value > 0})
    if unit == "pixel":
        return tuple(Epsilon(normalized=value / scale, pixel=value) for value in positive)
    return tuple(Epsilon(normalized=value, pixel=value * scale) for value in positive)


def read_study(manifest: Mapping[str, Any], path: Path) -> Study:
    """Take the study out of a manifest.

    Args:
        manifest: the content of ``manifest.json``.
        path: the file, for messages.

    Raises:
        RunDirectoryError: a key is missing or of another form than the manifest's format says.
    """
    try:
        study = manifest["study"]
        eps_unit, scale = study["eps_unit"], float(manifest["eps_scale"])
        if eps_unit not in ("pixel", "normalized"):
            raise RunDirectoryError(f'{path}: eps_unit {eps_unit!r}; allowed: "pixel", "normalized"')
        if not scale > 0:
            raise RunDirectoryError(f"{path}: eps_scale must be above 0, not {scale!r}")
        methods = tuple(Method(item["label"], item.get("title") or item["label"], item) for item in study["methods"])
        attacks = tuple(
            Attack(
                item["name"],
                item.get("title") or item["name"],
                {norm: _grid(values, eps_unit, scale) for norm, values in item["eps"].items()},
                item,
            )
            for item in study["attacks"]
        )
        units = tuple(
            Unit(
                item["unit"],
                item["method"],
                int(item["seed"]),
                item["attack"],
                item["norm"],
                item["engine"],
            )
            for item in manifest["units"]
        )
        dataset = manifest.get("dataset") or {}
        result = Study(
            name=study["name"],
            title=study.get("title") or study["name"],
            dataset=dataset.get("title") or dataset.get("name") or study["dataset"],
            eps_unit=eps_unit,
            eps_scale=scale,
            protocol=study["protocol"],
            engines=tuple(study["engines"]),
            methods=methods,
            attacks=attacks,
            norms=tuple(dict.fromkeys(norm for attack in attacks for norm in attack.eps)),
            units=units,
            seeds=tuple(sorted({unit.seed for unit in units})),
        )
    except KeyError as error:
        raise RunDirectoryError(f"{path}: the key {error} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise RunDirectoryError(f"{path}: a key has another form than it should ({error})") from error
    if not (result.methods and result.attacks and result.engines):
        raise RunDirectoryError(f"{path}: the study has no methods, no attacks or no engines")
    return result
