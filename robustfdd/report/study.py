"""What a manifest says, in the form the tables and figures need: names in order, both units of epsilon, the plan."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from robustfdd.errors import RunDirectoryError
from robustfdd.rounding import Figure, fixed, significant

EpsUnit = Literal["normalized", "pixel"]

#: How each norm is written for a reader.
NORM_TITLES = {"linf": "L∞", "l2": "L2"}

#: What each protocol means for a figure in a table.
PROTOCOL_MEANINGS = {
    "paper": "each ε by itself, last iterate",
    "strong": "best iterate of all steps and restarts; what a smaller ε broke counts as broken at every larger one",
}

#: What it means that attacks made their passes in half precision.
HALF_PRECISION = "attacks crafted in bfloat16, outcomes judged in single precision"

#: What an audit can say of a figure, the gravest last, and the mark beside the figure.
VERDICT_MARKS = {"believable": "✓", "no verdict": "○", "suspicious": "?", "not believable": "✗"}

#: An attack of this kind finds the smallest perturbation of an image by itself; the radii are read off its distances.
MINIMUM_NORM = "minimum-norm"


def norm_title(norm: str) -> str:
    """The norm as a reader knows it; an unknown one as it stands."""
    return NORM_TITLES.get(norm, norm)


def number(value: Figure, digits: int = 4) -> str:
    """A number with at most ``digits`` significant digits, never in exponent form unless it is tiny or huge."""
    return significant(value, digits)


def signed(points: Figure, decimals: int = 2) -> str:
    """A difference in percentage points with its sign, a true minus, and no sign on zero."""
    return fixed(points, decimals, sign=True).replace("-", "−")


def seed_text(seed: int) -> str:
    """The training seed of one model in words; -1 in the records is a model that was not trained here."""
    return f"seed {seed}" if seed >= 0 else "trained elsewhere"


def seed_number(seed: int) -> str:
    """The training seed of one model in a column of them."""
    return str(seed) if seed >= 0 else seed_text(seed)


def count_text(counts: tuple[int, int]) -> str:
    """A number of images, or the range of it."""
    low, high = counts
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def seeds_text(seeds: Sequence[int]) -> str:
    """The training seeds in words; -1 is that of models that were not trained here."""
    trained = [seed for seed in seeds if seed >= 0]
    texts = [("seed " if len(trained) == 1 else "seeds ") + ", ".join(map(str, trained))] if trained else []
    if len(trained) < len(seeds):
        texts.append("a model trained elsewhere" if trained else "trained elsewhere")
    return "; ".join(texts)


def one_image(n_images: int) -> str:
    """What one of n images is worth, in percentage points, in words."""
    points = number(Fraction(100, n_images), 2)
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
    """One radius in both units; ``normalized`` is None where the normalisation of the model is not known."""

    normalized: float | None
    pixel: float

    def texts(self, first: EpsUnit, digits: int = 4) -> tuple[str, ...]:
        """The radius in both units, the unit ``first`` before the other; in pixels alone where that is all we know."""
        pixel = number(self.pixel, digits)
        if self.normalized is None:
            return (pixel,)
        normalized = number(self.normalized, digits)
        return (normalized, pixel) if first == "normalized" else (pixel, normalized)

    @property
    def key(self) -> str:
        """The radius as text; two that differ by a rounding of the conversion between the units have the same."""
        return f"{self.pixel:.9g}"


ZERO = Epsilon(0.0, 0.0)


def unit_titles(first: EpsUnit) -> tuple[str, str]:
    """The names of the two units, in the order of :meth:`Epsilon.texts`."""
    return ("normalised", "pixel") if first == "normalized" else ("pixel", "normalised")


@dataclass(frozen=True)
class Method:
    """One column: a regulariser with its options, under the name it has in the study.

    Attributes:
        label: what records and rules know it by.
        title: its name for people.
        settings: as the manifest has them.
    """

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

    @property
    def minimum_norm(self) -> bool:
        """Whether it looks for the smallest perturbation instead of one of a given size."""
        return self.settings.get("kind") == MINIMUM_NORM


@dataclass(frozen=True)
class Unit:
    """One planned unit: one model under one attack, norm and engine.

    ``source`` is the label of the method whose model the examples are made on, and ``source_seed`` the seed of that
    model; None where it is the attacked one. Without a seed, which earlier runs did not note, it is that of the unit.
    """

    unit: str
    method: str
    seed: int
    attack: str
    norm: str
    engine: str
    source: str | None = None
    source_seed: int | None = None


@dataclass(frozen=True)
class Study:
    """A study as the manifest has it.

    Attributes:
        name: what files are named after.
        title: for people.
        dataset: the data set's title.
        eps_unit: the unit the study states its epsilons in; it comes first in tables and figures.
        eps_scale: the standard deviation that turns a normalised epsilon into pixels; None where the normalisation of
            a model is not known, so that no normalised epsilon can be given.
        protocol: how the attacks are run, in one word.
        attack_precision: of the passes that attacks made, ``"fp32"`` or ``"bf16"``.
        engines: those of the plan, in the study's order, then those that single attacks name; those of the study
            where nothing is planned.
        methods: the columns, in the study's order.
        attacks: in the study's order; none for an audit by itself.
        norms: all norms of all attacks, in order of appearance.
        units: the whole plan.
        seeds: training seeds of the plan, ascending; (-1,) for a model that was not trained here.
    """

    name: str
    title: str
    dataset: str
    eps_unit: EpsUnit
    eps_scale: float | None
    protocol: str
    engines: tuple[str, ...]
    methods: tuple[Method, ...]
    attacks: tuple[Attack, ...]
    norms: tuple[str, ...]
    units: tuple[Unit, ...]
    seeds: tuple[int, ...]
    attack_precision: str = "fp32"

    @property
    def units_shown(self) -> tuple[str, ...]:
        """The names of the units in which every radius is given, in the order of :meth:`Epsilon.texts`."""
        return ("pixel",) if self.eps_scale is None else unit_titles(self.eps_unit)

    def radius(self, eps: Epsilon) -> str:
        """A radius in words, in every unit that there is."""
        main, *other = eps.texts(self.eps_unit)
        first, *second = self.units_shown
        if other and other[0] == main:
            return f"{main} ({first} = {second[0]})"
        if not other:
            return f"{main} {first}"
        return f"{main} {first} ({other[0]} {second[0]})"

    @property
    def trained_seeds(self) -> tuple[int, ...]:
        """The training seeds without the -1 of models that were not trained here."""
        return tuple(seed for seed in self.seeds if seed >= 0)

    @cached_property
    def _engines_of(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        found: dict[tuple[str, str], set[str]] = {}
        for unit in self.units:
            found.setdefault((unit.attack, unit.norm), set()).add(unit.engine)
        return {key: tuple(sorted(names, key=self.engines.index)) for key, names in found.items()}

    def engine_of(self, attack: str, norm: str) -> str:
        """The engine whose figures the tables and curves show of an attack in a norm: the first it is planned with.

        Without a plan for it, the study's first engine; empty where the study has none.
        """
        planned = self._engines_of.get((attack, norm)) or self.engines
        return planned[0] if planned else ""

    def engines_text(self, *, norm: str | None = None, attacks: Collection[str] | None = None) -> str:
        """Which engines the shown figures come from, in words.

        Args:
            norm: of the attacks; None for all norms.
            attacks: by name; None for all.

        Returns:
            E.g. "engine foolbox", or "engine foolbox; APGD-CE, Square through art".
        """
        shown = [
            (attack, other)
            for attack, other in self.planes
            if (attacks is None or attack.name in attacks) and norm in (None, other)
        ]
        found: dict[str, dict[str, list[str]]] = {}
        for attack, other in shown:
            found.setdefault(self.engine_of(attack.name, other), {}).setdefault(attack.title, []).append(other)
        if not found:
            return ""
        main, *others = sorted(found, key=self.engines.index)
        norms = {title: [o for a, o in shown if a.title == title] for title in (attack.title for attack, _ in shown)}

        def name(title: str, where: list[str]) -> str:
            return title if where == norms[title] else f"{title} in {' and '.join(map(norm_title, where))}"

        parts = [", ".join(name(*item) for item in found[engine].items()) + f" through {engine}" for engine in others]
        return "; ".join([f"engine {main}", *parts])

    @property
    def planes(self) -> list[tuple[Attack, str]]:
        """Every attack with every norm that it is run in."""
        return [(attack, norm) for attack in self.attacks for norm in attack.eps]

    def grid(self, attack: str, norm: str) -> tuple[Epsilon, ...]:
        """The radii above 0 at which an attack is run in a norm; empty if it is not."""
        return next((item.eps.get(norm, ()) for item in self.attacks if item.name == attack), ())

    def attack_title(self, attack: str) -> str:
        """The attack as a reader knows it."""
        return next((item.title for item in self.attacks if item.name == attack), attack)

    def method_title(self, method: str) -> str:
        """The method as a reader knows it."""
        return next((item.title for item in self.methods if item.label == method), method)


def normalization_of(study: Mapping[str, Any]) -> str | None:
    """How the models of a study normalise their images; None where that is not known.

    That of a model of another class is in its own code. Earlier versions wrote down that of the data set for it.
    """
    model = study.get("model") or {}
    if study.get("recipe") is None and "class" in model and not str(model["class"]).startswith("robustfdd."):
        return None
    known: str | None = study.get("normalization")
    return known


def pixel_radii(values: Sequence[float], unit: str, scale: float) -> list[float]:
    """The radii of a grid in pixel units, ascending, each once and without 0."""
    return sorted({value * scale if unit == "normalized" else float(value) for value in values if value > 0})


def _grid(values: Sequence[float], unit: str, scale: float, *, known: bool) -> tuple[Epsilon, ...]:
    if not known:
        return tuple(Epsilon(None, pixel) for pixel in pixel_radii(values, unit, scale))
    positive = sorted({float(value) for value in values if value > 0})
    if unit == "pixel":
        return tuple(Epsilon(normalized=value / scale, pixel=value) for value in positive)
    return tuple(Epsilon(normalized=value, pixel=value * scale) for value in positive)


def read_study(manifest: Mapping[str, Any], path: Path) -> Study:
    """Take the study out of a manifest, which :func:`robustfdd.records.read_manifest` read.

    Args:
        manifest: the content of ``manifest.json``.
        path: the file, for messages.

    Raises:
        RunDirectoryError: the study has attacks, but no engines.
    """
    study = manifest["study"]
    known = normalization_of(study) is not None
    unit, scale = study["eps_unit"], float(manifest["eps_scale"])
    methods = tuple(Method(item["label"], item.get("title") or item["label"], item) for item in study["methods"])
    attacks = tuple(
        Attack(
            item["name"],
            item.get("title") or item["name"],
            {norm: _grid(values, unit, scale, known=known) for norm, values in item["eps"].items()},
            item,
        )
        for item in study["attacks"]
    )
    keys = ("unit", "method", "seed", "attack", "norm", "engine")
    units = tuple(
        Unit(**{key: item[key] for key in keys}, source=item.get("source") or None, source_seed=item.get("source_seed"))
        for item in manifest["units"]
    )
    # Single attacks may name engines that the study does not.
    named, used = tuple(study["engines"]), dict.fromkeys(item.engine for item in units)
    engines = (*(name for name in named if name in used), *(name for name in used if name not in named)) or named
    if attacks and not engines:
        raise RunDirectoryError(f"{path}: the study has attacks, but no engines")
    dataset = manifest.get("dataset") or {}
    return Study(
        name=study["name"],
        title=study.get("title") or study["name"],
        dataset=dataset.get("title") or dataset.get("name") or study["dataset"],
        eps_unit=unit if known else "pixel",
        eps_scale=scale if known else None,
        protocol=study["protocol"],
        engines=engines,
        methods=methods,
        attacks=attacks,
        norms=tuple(dict.fromkeys(norm for attack in attacks for norm in attack.eps)),
        units=units,
        seeds=tuple(sorted({item.seed for item in units} or set(study.get("seeds") or ()))),
        attack_precision=study.get("attack_precision", "fp32"),
    )
