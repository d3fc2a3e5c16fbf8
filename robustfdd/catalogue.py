"""Attacks and studies as data: TOML files, read into validated, frozen specifications.

An attack file (``attacks/*.toml``) parameterises a library's algorithm; a study file (``evaluations/*.toml``) says
what to train, what to attack it with and over which epsilons. Both folders are found in a checkout and, inside the
installed package, as ``robustfdd/_attacks`` and ``robustfdd/_evaluations``. A key that is not known is an error.
"""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeGuard, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from robustfdd.errors import ConfigurationError
from robustfdd.threat import Norm, Threat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EngineName = Literal["foolbox", "art"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
EpsUnit = Literal["pixel", "normalized"]
Normalization = Literal["z-score", "zero-one"]
Placement = Literal["last", "stages"]
Scalar: TypeAlias = bool | int | float | str

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PACKAGE = Path(__file__).resolve().parent


class Spec(BaseModel):
    """A part of a file: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("use lower-case letters, digits, '.', '_' and '-' only, starting with a letter or digit")
    return name


class Spelling(Spec):
    """How one engine spells one attack in one norm: its class, and every argument of the class's constructor."""

    class_: Annotated[str, Field(alias="class", pattern=r"^[A-Za-z]\w*$")]
    arguments: Mapping[str, Scalar]


class AttackSpec(Spec):
    """One attack: neutral parameters, and how each engine spells them.

    Attributes:
        name: the name studies and records use.
        title: the name reports print.
        summary: one line for ``robustfdd list``.
        reference: where the attack was published.
        deterministic: whether the same model and image always give the same perturbation.
        gradient_evaluations: input gradients per image, a number or a reference to a parameter.
        parameters: neutral parameters; steps are relative to eps.
        engines: for each engine and norm, the spelling.
    """

    name: str
    title: str
    summary: str
    reference: str
    deterministic: bool
    gradient_evaluations: int | str
    parameters: Mapping[str, Scalar]
    engines: Mapping[EngineName, Mapping[Norm, Spelling]]

    _name = field_validator("name")(_checked_name)

    @model_validator(mode="after")
    def _references_exist(self) -> AttackSpec:
        known = {**self._derived(1.0, 1), **self.parameters}
        values: dict[str, Scalar] = {"gradient_evaluations": self.gradient_evaluations}
        for engine, norms in self.engines.items():
            for norm, spelling in norms.items():
                values |= {f"engines.{engine}.{norm}.arguments.{key}": v for key, v in spelling.arguments.items()}
        for key, value in values.items():
            if isinstance(value, str) and value.startswith("$") and value[1:] not in known:
                raise ValueError(f"{key} refers to {value}; allowed: {', '.join('$' + name for name in sorted(known))}")
        return self

    def _derived(self, eps: float, batch_size: int) -> dict[str, Scalar | None]:
        step = self.parameters.get("relative_step", 1.0)
        return {"eps": eps, "step": float(step) * eps, "batch_size": batch_size, "none": None}

    def _resolve(self, value: Scalar, eps: float, batch_size: int) -> Scalar | None:
        if isinstance(value, str) and value.startswith("$"):
            known = {**self._derived(eps, batch_size), **self.parameters}
            return known[value[1:]]
        return value

    @property
    def n_gradients(self) -> int:
        """Input gradients computed per image and epsilon."""
        return int(self._resolve(self.gradient_evaluations, 1.0, 1) or 0)

    def norms(self, engine: EngineName) -> tuple[Norm, ...]:
        """The norms in which the engine can run this attack."""
        return tuple(self.engines.get(engine, {}))

    def spelled(self, engine: EngineName, threat: Threat, batch_size: int) -> tuple[str, dict[str, Any]]:
        """The class of the library and the arguments of its constructor.

        Raises:
            ConfigurationError: the engine does not offer this attack in this norm.
        """
        try:
            spelling = self.engines[engine][threat.norm]
        except KeyError:
            offered = "; ".join(f"{e}: {', '.join(norms)}" for e, norms in self.engines.items())
            raise ConfigurationError(
                f"attack {self.name!r} is not offered by engine {engine!r} in norm {threat.norm!r}; offered: {offered}"
            ) from None
        arguments = {k: self._resolve(v, threat.eps, batch_size) for k, v in spelling.arguments.items()}
        return spelling.class_, arguments

    def with_parameters(self, overrides: Mapping[str, Scalar]) -> AttackSpec:
        """The same attack with some of its parameters changed.

        Raises:
            ConfigurationError: a parameter is not one of the attack's, or has another type.
        """
        for key, value in overrides.items():
            if key not in self.parameters:
                raise ConfigurationError(
                    f"attack {self.name!r} has no parameter {key!r}; allowed: {', '.join(self.parameters) or 'none'}"
                )
            present = self.parameters[key]
            if isinstance(value, bool) != isinstance(present, bool) or (
                not isinstance(value, type(present)) and not (isinstance(present, float) and isinstance(value, int))
            ):
                raise ConfigurationError(
                    f"attack {self.name!r}: parameter {key!r} must be of the kind of {present!r}, not {value!r}"
                )
        return self.model_copy(update={"parameters": {**self.parameters, **overrides}})


class Recipe(Spec):
    """How a model is trained: SGD on the cross-entropy.

    Attributes:
        epochs: passes over the training split.
        batch_size: images a step; a last, smaller batch of one image is left out (batch norm needs two).
        learning_rate: at the start; ``schedule`` says how it goes on.
        schedule: ``"cosine"`` anneals to 0 after the last step, stepping every batch; ``"constant"`` does not change.
        momentum: of SGD.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: L2 penalty on all parameters, as ``torch.optim.SGD`` applies it.
        augmentation: ``"none"``, ``"flip"``, ``"crop"`` or ``"crop-flip"``, done on the device.
    """

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    augmentation: Literal["none", "flip", "crop", "crop-flip"] = "none"

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Recipe:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class ModelOptions(Spec):
    """The network of a study: ResNet-18, whose last stage has ``8 * width`` channels."""

    width: Annotated[int, Field(ge=1)] = 64


class Method(Spec):
    """One regulariser of a study.

    Attributes:
        label: the name in records and tables; the dropout's own by default.
        dropout: a name of ``robustfdd list``.
        placement: ``"last"`` or ``"stages"``.
        options: keyword arguments of the dropout module, e.g. ``rescale``.
    """

    dropout: str
    label: str = ""
    placement: Placement = "last"
    options: Mapping[str, Scalar] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        if isinstance(value, str):
            return {"dropout": value, "label": value}
        if isinstance(value, Mapping) and "label" not in value and "dropout" in value:
            return {**value, "label": value["dropout"]}
        return value

    _label = field_validator("label")(_checked_name)


Eps = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AttackUse(Spec):
    """One attack of a study, with the epsilons it is run at in each norm, in the study's unit."""

    name: str
    eps: Annotated[Mapping[Norm, tuple[Eps, ...]], Field(min_length=1)]
    parameters: Mapping[str, Scalar] = {}

    @field_validator("eps")
    @classmethod
    def _ascending(cls, value: Mapping[Norm, tuple[float, ...]]) -> Mapping[Norm, tuple[float, ...]]:
        for norm, grid in value.items():
            if not grid:
                raise ValueError(f"{norm}: the list of epsilons is empty")
            if any(a >= b for a, b in itertools.pairwise(grid)):
                raise ValueError(f"{norm}: epsilons must be strictly ascending, not {list(grid)}")
        return value


class StudySpec(Spec):
    """One study: what is trained, what attacks it, and over which epsilons.

    Attributes:
        name: the study's name, and of its run directory by default.
        title: the heading of its report.
        description: what the study is for.
        dataset: a name of ``robustfdd list`` or ``folder:PATH``.
        methods: the regularisers compared, in the order of the tables' columns.
        seeds: of the training runs.
        engines: the libraries that attack; tables show the first.
        protocol: ``"paper"``: each epsilon by itself, last iterate.
        eps_unit: of all epsilons of the file. ``"normalized"`` epsilons are in units of the model's normalisation.
        normalization: of the model's input. ``"z-score"``: the data set's one mean and one standard deviation;
            ``"zero-one"``: none, pixels are in [0, 1] already.
        test_images: how many test images are attacked, chosen evenly over the classes; all when left out.
        model: the network.
        recipe: the training.
        attacks: with their epsilons.
        open_choices: for every quantity that the source leaves open, the key and the reason for its value.
    """

    name: str
    title: str
    description: str
    dataset: str
    methods: Annotated[tuple[Method, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    engines: Annotated[tuple[EngineName, ...], Field(min_length=1)] = ENGINES
    protocol: Literal["paper"] = "paper"
    eps_unit: EpsUnit
    normalization: Normalization = "z-score"
    test_images: Annotated[int, Field(ge=1)] | None = None
    model: ModelOptions = ModelOptions()
    recipe: Recipe
    attacks: Annotated[tuple[AttackUse, ...], Field(min_length=1)]
    open_choices: Mapping[str, str] = {}

    _name = field_validator("name")(_checked_name)

    @model_validator(mode="after")
    def _nothing_twice(self) -> StudySpec:
        lists: dict[str, Sequence[object]] = {
            "methods (label)": [m.label for m in self.methods],
            "seeds": self.seeds,
            "engines": self.engines,
            "attacks (name)": [a.name for a in self.attacks],
        }
        for key, values in lists.items():
            twice = sorted({str(v) for v in values if list(values).count(v) > 1})
            if twice:
                raise ValueError(f"{key}: {', '.join(twice)} is given more than once")
        return self


SpecT = TypeVar("SpecT", bound=Spec)


def _folder(name: str) -> Path:
    """The folder of attack or study files: in a checkout at its top, else inside the package."""
    checkout = _PACKAGE.parent / name
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / f"_{name}"


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in _folder(folder).glob("*.toml"))


def attack_names() -> list[str]:
    """The names of the attacks that come with the package."""
    return _names("attacks")


def study_names() -> list[str]:
    """The names of the studies that come with the package."""
    return _names("evaluations")


def hint(name: str, allowed: Sequence[str]) -> str:
    """``"; allowed: …"``, led by the closest match if there is one, for messages about an unknown name."""
    close = difflib.get_close_matches(name, allowed, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f"; allowed: {', '.join(allowed)}"


def _find(kind: str, folder: str, name_or_path: str | Path) -> Path:
    """The file of that name in the folder, or at that path."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigurationError(f"{path}: no such {kind} file")
        return path
    if text not in _names(folder):
        raise ConfigurationError(
            f"unknown {kind} {text!r}{hint(text, _names(folder))}; or give the path of a .toml file"
        )
    return _folder(folder) / f"{text}.toml"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from error


def _is_spec(annotation: object) -> TypeGuard[type[Spec]]:
    # Before Python 3.11 an alias such as list[int] counts as a type, but not for issubclass.
    return isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, Spec)


def _spec_at(spec: type[Spec], location: Sequence[str | int]) -> type[Spec] | None:
    """The specification whose keys are allowed at the place where an unknown key was found."""
    annotation: object = spec
    for step in location:
        if _is_spec(annotation):
            fields = {f.alias or name: f.annotation for name, f in annotation.model_fields.items()}
            annotation = fields.get(str(step))
        else:  # inside a list or a mapping, whose values all have one type
            annotation = _spec_within(annotation)
    return _spec_within(annotation)


def _spec_within(annotation: object) -> type[Spec] | None:
    if _is_spec(annotation):
        return annotation
    return next((found for part in get_args(annotation) if (found := _spec_within(part))), None)


def _explain(source: str, spec: type[Spec], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        location = problem["loc"]
        key = ".".join(str(part) for part in location) or "(file)"
        if problem["type"] == "extra_forbidden":
            model = _spec_at(spec, location[:-1])
            allowed = [f.alias or name for name, f in model.model_fields.items()] if model else []
            lines.append(f"unknown key {key!r}{hint(str(location[-1]), allowed)}")
        elif problem["type"] == "missing":
            lines.append(f"key {key!r} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = problem["input"]
            shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool | list | tuple) else ""
            lines.append(f"{key}: {message}{shown}")
    return f"{source}: " + f"\n{source}: ".join(lines)


def parse(spec: type[SpecT], content: Mapping[str, Any], source: str) -> SpecT:
    """Validate a mapping against a specification.

    Args:
        spec: the class of the specification.
        content: the mapping, as TOML gives it.
        source: what messages call it, for example the path of the file.

    Raises:
        ConfigurationError: one line for each mistake, naming source, key and what is allowed.
    """
    try:
        return spec.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(_explain(source, spec, error)) from None


def load_attack(name_or_path: str | Path) -> AttackSpec:
    """The specification of an attack, by its name or the path of its file.

    Raises:
        ConfigurationError: the name is unknown or the file is wrong; the message names file, key and what is allowed.
    """
    path = _find("attack", "attacks", name_or_path)
    return parse(AttackSpec, _read(path), str(path))


def apply_override(content: dict[str, Any], assignment: str) -> None:
    """Change one value of a study in place, as ``--set key=value`` does.

    Args:
        content: the study as TOML gives it.
        assignment: ``dotted.key=value``; the value is read as TOML, and as a string where it is none.

    Raises:
        ConfigurationError: the assignment has no ``=`` or its key leads through something that is no table.
    """
    key, separator, text = assignment.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise ConfigurationError(f"--set {assignment}: must have the form key=value, for example recipe.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table: Any = content
    for part in parts[:-1]:
        table = table.setdefault(part, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise ConfigurationError(f"--set {assignment}: {'.'.join(parts[:-1])!r} is not a table of the study")
    table[parts[-1]] = value


def load_study(name_or_path: str | Path, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> StudySpec:
    """The specification of a study, by its name or the path of its file.

    Args:
        name_or_path: as given to ``robustfdd run``.
        overrides: ``key=value`` assignments, see :func:`apply_override`.
        only: labels of methods to keep; all when empty.

    Raises:
        ConfigurationError: the name is unknown or the file is wrong; the message names file, key and what is allowed.
    """
    path = _find("study", "evaluations", name_or_path)
    content = _read(path)
    for assignment in overrides:
        apply_override(content, assignment)
    source = str(path) + (f" with --set {' --set '.join(overrides)}" if overrides else "")
    study = parse(StudySpec, content, source)
    if only:
        labels = [m.label for m in study.methods]
        for label in only:
            if label not in labels:
                raise ConfigurationError(
                    f"--only {label}: the study {study.name!r} has no such method{hint(label, labels)}"
                )
        study = study.model_copy(update={"methods": tuple(m for m in study.methods if m.label in only)})
    for index, use in enumerate(study.attacks):
        try:
            spec = load_attack(use.name).with_parameters(use.parameters)
            for norm in use.eps:
                for engine in study.engines:
                    spec.spelled(engine, Threat(norm, 1.0), 1)
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}: attacks.{index}: {error}") from None
    return study


def pixel_eps(eps: float, unit: EpsUnit, scale: float) -> float:
    """An epsilon in pixel units.

    Args:
        eps: in ``unit``.
        unit: of ``eps``.
        scale: the standard deviation that the model divides its input by: a ball of radius eps in normalised units is
            the ball of radius eps * scale in pixel units, in every Lp norm.
    """
    return eps * scale if unit == "normalized" else eps


def normalized_eps(eps: float, unit: EpsUnit, scale: float) -> float:
    """An epsilon in units of the model's normalisation; the inverse of :func:`pixel_eps`."""
    return eps if unit == "normalized" else eps / scale
