"""The figures that the paper prints, and what it states about how they were made, to hold a run against.

Source: Ke, Wen, Xie, Wang, Shen 2020 (AAAI), Tables 2 and 3, Figure 7 and two sentences of its text. The data lie in
``evaluations/published``: ``paper.toml`` says of each figure where it comes from, and of each setting whether it is
stated; one CSV file a table or figure holds the figures. They are found in a checkout and, inside the installed
package, in ``robustfdd/_evaluations/published``.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from robustfdd import files
from robustfdd.errors import ConfigurationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PACKAGE = Path(__file__).resolve().parent.parent
_FACTS = "paper.toml"

Scalar: TypeAlias = bool | int | float | str
Norm = Literal["linf", "l2"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Where the figures were published."""

    authors: str
    title: str
    venue: str
    doi: str
    short: str

    @property
    def citation(self) -> str:
        """The publication in one line."""
        return f"{self.authors}: {self.title}. {self.venue}, doi:{self.doi}"


class Place(_Part):
    """One table or figure of the paper.

    Attributes:
        name: the stem of its CSV file.
        title: as the paper numbers it.
        shows: what it shows.
        reading_error_points: how far a figure read off a plot may be from the drawn one, in percentage points; 0 for a
            printed figure.
        notes: what a reader must know about its figures.
    """

    name: str
    title: str
    shows: str
    reading_error_points: Annotated[float, Field(ge=0)]
    notes: tuple[str, ...]


class Value(_Part):
    """One figure of the running text."""

    name: str
    value: float
    place: str
    note: str


class MethodFacts(_Part):
    """One method as the paper has it.

    Attributes:
        title: its name in the paper.
        placement: where a run's layer must sit to be compared; anywhere if None.
        stated: options that the paper states.
        open: options that it does not, with the default that a run must have to be compared.
    """

    title: str
    placement: str | None = None
    stated: Mapping[str, Scalar] = {}
    open: Mapping[str, Scalar] = {}


class Setting(_Part):
    """One setting of the training or the attack.

    Attributes:
        key: its dotted path in a run's manifest; ``records.n_images`` is the images of its records.
        title: for people.
        value: as stated, for all data sets or by data set; None where the paper does not state it.
        text: how the paper puts it; the value itself where left out.
    """

    key: str
    title: str
    value: Scalar | Mapping[str, Scalar] | None = None
    text: str | None = None

    def stated(self, dataset: str) -> Scalar | None:
        """The value stated for a data set; None if it is not stated."""
        return self.value.get(dataset) if isinstance(self.value, Mapping) else self.value


class Facts(_Part):
    """Everything that ``paper.toml`` says.

    Attributes:
        source: where the figures were published.
        places: the tables and figures, in the paper's order.
        values: the figures of the running text.
        attacks: the stated parameters of every attack, by name.
        methods: every method by name, in the order of tables.
        settings: the set-up.
    """

    source: Source
    places: Annotated[tuple[Place, ...], Field(min_length=1)]
    values: tuple[Value, ...]
    attacks: Mapping[str, Mapping[str, Scalar]]
    methods: Mapping[str, MethodFacts]
    settings: tuple[Setting, ...]


class PublishedCell(_Part):
    """One figure of a table or plot.

    Attributes:
        place: name of the :class:`Place`.
        dataset: name of the data set in this project.
        method: name of the dropout in this project.
        attack: name of the attack; None for clean accuracy.
        norm: of the attack; None for clean accuracy.
        eps_normalized: radius in units of the model's normalisation; 0 for clean accuracy.
        accuracy_percent: over all test images.
        std_percent: standard deviation over training runs; None where the paper gives none.
    """

    place: str
    dataset: str
    method: str
    attack: str | None = None
    norm: Norm | None = None
    eps_normalized: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    accuracy_percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    std_percent: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @property
    def row(self) -> tuple[str, str | None, str | None, str]:
        """What the figures of one line have in common: table or figure, attack, norm, and radius up to rounding."""
        return self.place, self.attack, self.norm, eps_key(self.eps_normalized)

    @property
    def key(self) -> tuple[str | None, str | None, str, str]:
        """What was measured: attack, norm, radius up to rounding and method; the clean accuracy has no attack."""
        clean = self.eps_normalized == 0
        return (None if clean else self.attack, None if clean else self.norm, eps_key(self.eps_normalized), self.method)


class Published(Facts):
    """Everything that is published: the facts, and with them the figures.

    Attributes:
        cells: all figures, place by place in the order of their files.
    """

    cells: tuple[PublishedCell, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that have figures."""
        return tuple(dict.fromkeys(cell.dataset for cell in self.cells))

    def cells_of(self, dataset: str, place: str | None = None) -> tuple[PublishedCell, ...]:
        """The figures for a data set, of one table or figure or of all."""
        return tuple(cell for cell in self.cells if cell.dataset == dataset and place in (None, cell.place))

    def stated(self, key: str, dataset: str) -> Scalar | None:
        """The value of the setting with that key; None if the paper does not state it for this data set."""
        return next((setting.stated(dataset) for setting in self.settings if setting.key == key), None)

    def value(self, name: str) -> float:
        """A figure of the running text by its name.

        Raises:
            ConfigurationError: there is none of that name.
        """
        found = {item.name: item.value for item in self.values}
        if name not in found:
            raise ConfigurationError(f"no published value {name!r}; allowed: {', '.join(found)}")
        return found[name]


def eps_key(eps: float) -> str:
    """Radii that differ by a rounding of the conversion between units are one."""
    return f"{eps:.9g}"


def folder() -> Path:
    """Where the data lie: in a checkout at its top, else inside the package."""
    checkout = _PACKAGE.parent / "evaluations" / "published"
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / "_evaluations" / "published"


_PartT = TypeVar("_PartT", bound=_Part)


def _validated(part: type[_PartT], content: Mapping[str, Any], where: str) -> _PartT:
    try:
        return part.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(step) for step in first["loc"])
        known = f"; allowed: {', '.join(part.model_fields)}" if first["type"] == "extra_forbidden" else ""
        given = f" (given: {first['input']!r})" if isinstance(first["input"], str | int | float | bool) else ""
        raise ConfigurationError(f"{where}: {key}: {first['msg']}{given}{known}") from None


def _text(path: Path) -> str:
    try:
        return files.read_text(path, files.PUBLISHED)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error})") from error


def _read_facts(path: Path) -> Facts:
    text = _text(path)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error
    return _validated(Facts, content, str(path))


def _read_cells(path: Path, place: Place, facts: Facts) -> list[PublishedCell]:
    rows = csv.DictReader(_text(path).splitlines(), restkey="(more columns than the header)")
    cells: dict[tuple[object, ...], PublishedCell] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        filled = {column: value for column, value in row.items() if value not in (None, "")}
        cell = _validated(PublishedCell, {**filled, "place": place.name}, where)
        _check_known(cell.method, "method", facts.methods, where)
        if (cell.attack is None) != (cell.norm is None) or (cell.attack is None and cell.eps_normalized != 0):
            raise ConfigurationError(f"{where}: attack, norm and eps_normalized go together")
        if cell.attack is not None:
            _check_known(cell.attack, "attack", facts.attacks, where)
        identity = (cell.dataset, *cell.row, cell.method)
        if identity in cells:
            raise ConfigurationError(f"{where}: the same figure is given twice")
        cells[identity] = cell
    if not cells:
        raise ConfigurationError(f"{path}: holds no figures")
    return list(cells.values())


def _check_known(name: str, column: str, known: Mapping[str, object] | Sequence[str], where: str) -> None:
    if name not in known:
        raise ConfigurationError(f"{where}: {column}: unknown {name!r}; allowed: {', '.join(known)}")


def load(directory: Path | None = None) -> Published:
    """Read and check the published figures.

    Args:
        directory: holds ``paper.toml`` and one CSV file for each of its places; by default that of the package.

    Raises:
        ConfigurationError: a file is missing or damaged; the message names file, line and column or key.
    """
    directory = directory or folder()
    facts = _read_facts(directory / _FACTS)
    cells = [cell for place in facts.places for cell in _read_cells(directory / f"{place.name}.csv", place, facts)]
    return Published(**{name: getattr(facts, name) for name in Facts.model_fields}, cells=tuple(cells))


def agrees(stated: Scalar, found: object) -> bool:
    """Whether a setting of a run is the stated one; numbers up to rounding, and true is no number."""
    if isinstance(stated, bool) or isinstance(found, bool) or not isinstance(stated, int | float):
        return found == stated and isinstance(found, bool) == isinstance(stated, bool)
    return isinstance(found, int | float) and math.isclose(stated, found, rel_tol=1e-9)
