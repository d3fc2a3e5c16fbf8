"""What the JSON files of a run directory hold, key by key: whatever reads one is given this and nothing else.

A file that has its checksum was written by somebody's program as it is, which need not be this one. Keys that are not
listed here are kept and shown, and nothing depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from robustfdd.text import shown

#: How deep settings may lie in one another; deeper, nobody could read them.
DEPTH = 20
_LARGEST = 2**63 - 1

Text: TypeAlias = Annotated[str, Field()]
Name: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Whole: TypeAlias = Annotated[int, Field(ge=0, le=_LARGEST)]
Count: TypeAlias = Annotated[int, Field(ge=1, le=_LARGEST)]
#: -1 is a model that was not trained here.
Seed: TypeAlias = Annotated[int, Field(ge=-1, le=_LARGEST)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scalar: TypeAlias = bool | int | float | str | None
Table: TypeAlias = dict[str, Any]


class Part(BaseModel):
    """A mapping of known keys."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class Variant(Part):
    """What a dropout is, in the words of Table 1 of the paper; no strategy for what drops nothing."""

    title: Text | None = None
    site: Text | None = None
    strategy: Text | None = None
    adaptive: bool | None = None
    dynamic: bool | None = None
    hyperparameters: Text | None = None
    cost: Text | None = None
    source: Text | None = None
    summary: Text | None = None


class Method(Part):
    """One method of a study; no dropout for a model that was not trained here."""

    label: Name
    title: Text | None = None
    dropout: Text | None = None
    placement: Text | None = None
    options: dict[str, Scalar | list[Scalar]] | None = None
    eot_samples: Whole | None = None
    recipe: Table | None = None
    variant: Variant | None = None


class Attack(Part):
    """One attack of a study with its radii by norm, in the study's unit."""

    name: Name
    title: Text | None = None
    reference: Text | None = None
    deterministic: bool
    eps: dict[str, list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]]
    parameters: dict[str, Scalar]
    kind: Text = "budget"
    access: Text = "gradient"
    source: Text | None = None


class AuditSettings(Part):
    """What the study says of its audit; what it leaves open is None."""

    norm: Text | None = None
    eps: Number | None = None
    images: Count | None = None


def _unlike(key: str) -> AfterValidator:
    def check(entries: list[Any]) -> list[Any]:
        names = [getattr(entry, key) for entry in entries]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if twice is not None:
            raise ValueError(f"{twice!r} is there twice, and must be there once")
        return entries

    return AfterValidator(check)


class Study(Part):
    """What was asked for."""

    name: Name
    title: Text | None = None
    description: Text | None = None
    dataset: Text
    eps_unit: Literal["pixel", "normalized"]
    normalization: Text | None = None
    protocol: Text
    engines: list[Name]
    seeds: list[Seed] | None = None
    test_images: Count | None = None
    methods: Annotated[list[Method], Field(min_length=1), _unlike("label")]
    model: Table | None = None
    recipe: Table | None = None
    attacks: Annotated[list[Attack], _unlike("name")]
    open_choices: Table | None = None
    attack_precision: Text = "fp32"
    audit: AuditSettings | None = None


class Data(Part):
    """The data set."""

    name: Text | None = None
    title: Text | None = None
    sha256: Text | None = None
    n_train: Whole | None = None
    n_test: Whole | None = None
    mean: Number | None = None
    std: Number | None = None


class Unit(Part):
    """One planned unit."""

    unit: Name
    method: Name
    seed: Seed
    attack: Name
    norm: Name
    engine: Name
    source: Text | None = None
    source_seed: int | None = None


class Git(Part):
    """The state of the code."""

    commit: Text | None = None
    dirty: bool | None = None


class Hardware(Part):
    """The machine."""

    device: Text | None = None


class Manifest(Part):
    """``manifest.json``: what was asked for, with what, on what."""

    format: int
    study: Study
    overrides: list[Text] | None = None
    eps_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    dataset: Data | None = None
    units: Annotated[list[Unit], _unlike("unit")]
    command: Text | None = None
    created: Text | None = None
    versions: Table | None = None
    hardware: Hardware | None = None
    git: Git | None = None


class Epoch(Part):
    """One pass over the training split."""

    loss: Number | None = None
    train_accuracy: Share | None = None


class Model(Part):
    """``models/NAME.json``: how a model was trained."""

    method: Name
    seed: Seed
    checkpoint: Text | None = None
    sha256: Text | None = None
    weights_sha256: Text | None = None
    clean_accuracy: Share | None = None
    n_test: Count | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    parameters: Whole | None = None
    epochs: list[Epoch] | None = None


class Failure(Part):
    """``failures/UNIT.json``: a unit that has no result, and why."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    unit: Name
    stage: Text
    method: Text
    seed: Seed
    error: Text
    message: Text
    traceback: Text
    attack: Text | None = None
    norm: Text | None = None
    engine: Text | None = None


def _depth(value: object) -> int:
    """How deep settings lie in one another, counted no further than needed."""
    level, depth = [value], 0
    while level and depth <= DEPTH:
        inside: list[object] = []
        for item in level:
            inside += item.values() if isinstance(item, Mapping) else item if isinstance(item, list) else ()
        level, depth = inside, depth + 1
    return depth


def mistake(kind: type[Part], content: Mapping[str, Any]) -> str | None:
    """What is wrong with the content of a file, in words that name the key and what belongs there; None if nothing is.

    Args:
        kind: what the file is.
        content: what was read.
    """
    if _depth(content) > DEPTH:
        return f"its values lie more than {DEPTH} levels deep in one another"
    try:
        kind.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        first = found[0]
        key = ".".join(str(step) for step in first["loc"] if step not in _BRANCHES) or "the file"
        words = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        given = "" if first["type"] in ("missing", "value_error") else f", not {shown(first['input'])}"
        if first["type"] == "missing":
            words = "is missing"
        more = len({error["loc"][:2] for error in found}) - 1
        return f"{key} {words}{given}" + (f" (and {more} more)" if more else "")
    return None


#: What pydantic adds to the key of a value that may be of several types.
_BRANCHES = frozenset({"bool", "int", "float", "str", "list[union[bool,int,float,str,none]]"})
