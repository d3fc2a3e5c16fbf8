"""The catalogue: TOML files of attacks and studies, found, read and validated.

An attack file (``attacks/*.toml``) parameterises a library's algorithm; a study file (``evaluations/*.toml``) says
what to train, what to attack it with and over which epsilons. Both folders are found in a checkout and, inside the
installed package, as ``robustfdd/_attacks`` and ``robustfdd/_evaluations``. A key that is not known is an error.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from robustfdd import files, plugins
from robustfdd.errors import ConfigurationError
from robustfdd.specs import LIBRARIES, AttackSpec, AttackUse, EngineName, Method, Spec, StudySpec
from robustfdd.text import is_clean, shortened, shown
from robustfdd.threat import Norm

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PACKAGE = Path(__file__).resolve().parent

#: How many mistakes of a file are told at once.
_MOST_MISTAKES = 12
#: The most keys and values of a file altogether, and the most tables in one another that a key leads through. The time
#: that a key takes to be read grows with the square of them.
_MOST_VALUES, _MOST_PARTS = 20_000, 64
_PART = r"""(?:(?<![\w-])[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?:{_PART}[ \t]*\.[ \t]*){{{_MOST_PARTS}}}{_PART}", re.ASCII)
#: The most units of a study: each has a file or two, and an entry in the manifest.
MAX_UNITS = 20_000

#: What pydantic adds to the place of a value that may be of several kinds (:data:`robustfdd.specs.Scalar`).
_KINDS = [("bool",), ("int",), ("float",), ("str",)]

SpecT = TypeVar("SpecT", bound=Spec)


def _folder(name: str) -> Path:
    """The folder of attack or study files: in a checkout at its top, else inside the package."""
    checkout = _PACKAGE.parent / name
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / f"_{name}"


#: Folders of plug-ins, each with files in ``attacks`` and ``evaluations``.
_added: list[Path] = []


def add_folder(folder: Path) -> None:
    """Have the attack files in ``folder/attacks`` and the study files in ``folder/evaluations`` known by their names.

    Raises:
        ConfigurationError: it has neither, or a name is taken.
    """
    found = {kind: _in(folder / kind) for kind in ("attacks", "evaluations")}
    if not any(found.values()):
        raise ConfigurationError(f"{folder}: has no attacks/*.toml and no evaluations/*.toml")
    for kind, files_ in found.items():
        if taken := sorted(set(files_) & set(_known(kind))):
            raise ConfigurationError(f"{folder / kind}: {', '.join(taken)}: there is one of that name already")
    _added.append(folder)


def _in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _known(kind: str) -> dict[str, Path]:
    """The files of one kind by name."""
    found = _in(_folder(kind))
    for folder in _added:
        found |= _in(folder / kind)
    return dict(sorted(found.items()))


def attack_names() -> list[str]:
    """The names of the attacks that come with the package and its plug-ins."""
    plugins.load()
    return list(_known("attacks"))


def study_names() -> list[str]:
    """The names of the studies that come with the package and its plug-ins."""
    plugins.load()
    return list(_known("evaluations"))


def hint(name: str, allowed: Sequence[str]) -> str:
    """``"; allowed: …"``, led by the closest match if there is one, for messages about an unknown name."""
    close = difflib.get_close_matches(name[:100], allowed, n=1)
    return (f"; did you mean {close[0]!r}?" if close else "") + f"; allowed: {', '.join(allowed)}"


def _find(kind: str, folder: str, name_or_path: str | Path) -> Path:
    """The file of that name in the folder, or at that path."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text:
        path = Path(name_or_path)
        try:
            if not path.is_file():
                raise ConfigurationError(
                    f"{shortened(str(path))}: {'not a file' if path.exists() else f'no such {kind} file'}"
                )
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise ConfigurationError(f"{shortened(str(path))}: cannot be read ({error.strerror})") from error
        return path
    plugins.load()
    known = _known(folder)
    if text not in known:
        raise ConfigurationError(
            f"unknown {kind} {shown(text)}{hint(text, list(known))}; or give the path of a .toml file"
        )
    return known[text]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = files.read_text(path, files.SPECIFICATION, encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error})") from error
    try:
        if found := _LONG_KEY.search(text):
            raise ConfigurationError(f"{path}: {shown(found[0])}: a key has at most {_MOST_PARTS} parts")
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigurationError(f"{path}: tables or arrays are nested too deeply") from None
    except ValueError as error:  # of TOML, and of Python for a number of too many digits
        raise ConfigurationError(f"{path}: not valid TOML: {shortened(str(error))}") from error


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
    lines: list[str] = []
    problems = error.errors(include_url=False)
    found = {problem["loc"] for problem in problems}

    def of_any_kind(location: tuple[str | int, ...]) -> bool:  # told once for each kind that a value may be
        return location[-1:] in _KINDS and (*location[:-1], *_KINDS[0]) in found

    def said_by_another(problem: ErrorDetails) -> bool:
        location = problem["loc"]
        if problem["type"] == "too_short":  # as a list whose entries are wrong is reported too
            return any(other["loc"][: len(location)] == location for other in problems if other is not problem)
        return of_any_kind(location) and location[-1:] != _KINDS[0]

    mistakes = [problem for problem in problems if not said_by_another(problem)]
    for problem in mistakes[:_MOST_MISTAKES]:
        location, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
        if of_any_kind(location):
            location, message = location[:-1], "Input should be a finite number, a string, true or false"
        if problem["type"] == "too_long":
            limits = problem["ctx"]
            n_entries = limits.get("actual_length")
            message = f"must have at most {limits['max_length']} entries"
            message += f", not {n_entries}" if n_entries is not None else ""
        key = shortened(".".join(str(part) for part in location)) or "(file)"
        if problem["type"] == "extra_forbidden":
            model = _spec_at(spec, location[:-1])
            allowed = [f.alias or name for name, f in model.model_fields.items()] if model else []
            lines.append(f"unknown key {key!r}{hint(str(location[-1]), allowed)}")
        elif problem["type"] == "missing":
            lines.append(f"key {key!r} is missing")
        else:
            given = problem["input"]
            value = f" (given: {shown(given)})" if isinstance(given, str | int | float | bool | list | tuple) else ""
            lines.append(f"{key}: {message}{value}")
    if len(mistakes) > _MOST_MISTAKES:
        lines.append(f"and {len(mistakes) - _MOST_MISTAKES} mistakes more")
    return f"{source}: " + f"\n{source}: ".join(lines)


def _unreasonable(content: object) -> str | None:
    """What no file can mean, whatever its keys: how much there is in it, and numbers that TOML need not have."""
    left = [("", content)]
    n_values = 0
    while left:
        at, value = left.pop()
        if isinstance(value, int) and abs(value) >= 2**63:  # cannot be computed with, written or even shown
            return f"{shortened(at.removeprefix('.'))}: a whole number must be less than 2**63 in magnitude"
        if isinstance(value, (Mapping, list)):
            n_values += len(value)
            if n_values > _MOST_VALUES:
                return f"holds more than {_MOST_VALUES} keys and values"
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(f"{at}.{key}"[-500:], item) for key, item in items]
    return None


def parse(spec: type[SpecT], content: Mapping[str, Any], source: str) -> SpecT:
    """Validate a mapping against a specification.

    Args:
        spec: the class of the specification.
        content: the mapping, as TOML gives it.
        source: what messages call it, for example the path of the file.

    Raises:
        ConfigurationError: one line for each mistake, naming source, key and what is allowed.
    """
    if (why := _unreasonable(content)) is not None:
        raise ConfigurationError(f"{source}: {why}")
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
    if not is_clean(assignment.replace("\n", "").replace("\t", "")):
        raise ConfigurationError(f"--set {shown(assignment)}: has control characters, or bytes that are no UTF-8")
    if not separator or not all(parts):
        raise ConfigurationError(
            f"--set {shortened(assignment)}: must have the form key=value, for example recipe.epochs=5"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except RecursionError:
        raise ConfigurationError(f"--set {shortened(assignment)}: tables or arrays are nested too deeply") from None
    except ValueError:
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
    source = str(path) + (f" with --set {' --set '.join(map(shortened, overrides))}" if overrides else "")
    study = parse(StudySpec, content, source)
    if only:
        labels = [m.label for m in study.methods]
        for label in only:
            if label not in labels:
                raise ConfigurationError(
                    f"--only {label}: the study {study.name!r} has no such method{hint(label, labels)}"
                )
        study = study.model_copy(update={"methods": tuple(m for m in study.methods if m.label in only)})
    try:
        _check_extent(study, resolve_attacks(study))
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from None
    return study


def _check_extent(study: StudySpec, attacks: Sequence[tuple[AttackUse, AttackSpec]]) -> None:
    """Make sure that a study has not more units than a run directory can hold.

    Raises:
        ConfigurationError: it has; the message says how many of what.
    """
    n_models = len(study.methods) * len(study.seeds)
    n_attacks = sum(len(engines_for(use, spec, norm, study)) for use, spec in attacks for norm in use.eps)
    if n_models * (n_attacks + 2) > MAX_UNITS:  # its training and its audit
        raise ConfigurationError(
            f"{n_models} models (methods times seeds) under {n_attacks} attack runs each (attacks, norms and engines) "
            f"come to more than {MAX_UNITS} units; make several studies of it, for instance one for each seed"
        )


#: The attack that is crafted on another model, and run on every study that has one.
TRANSFER = "transfer"


def sibling(study: StudySpec) -> Method | None:
    """The method of a study that is trained without dropout and with the study's own recipe, if it has one.

    What is crafted on its models is tried on the others (attack ``transfer``); for its own models see
    :func:`robustfdd.sources.origin_of`.
    """
    return next((m for m in study.methods if m.dropout == "none" and not m.recipe.given), None)


def engines_for(use: AttackUse, spec: AttackSpec, norm: Norm, study: StudySpec) -> tuple[EngineName, ...]:
    """Those of an attack's own engines, or of the study's, that offer the attack in the norm.

    Args:
        use: the attack's entry in the study.
        spec: the attack.
        norm: of the threat.
        study: the study.

    Raises:
        ConfigurationError: none does; the message says what is offered.
    """
    return spec.offered(norm, use.engines or study.engines)


def resolve_attacks(study: StudySpec, n_classes: int | None = None) -> list[tuple[AttackUse, AttackSpec]]:
    """The attacks of a study, each with its specification and the study's changes to it.

    With the number of classes of the study's data set they are as :meth:`robustfdd.specs.AttackSpec.for_classes` has
    them.

    Where the study has a :func:`sibling` and more than one network, ``transfer`` is among them at the end, at every
    epsilon of the study, unless the study names it itself. Under protocol ``strong`` the attacks are those of
    :meth:`robustfdd.specs.AttackSpec.strengthened`.

    Raises:
        ConfigurationError: an attack is unknown, has no such parameter, is offered by none of its engines in one of the
            norms, is there twice, or has no model to be crafted on; the message names the key.
    """
    resolved: list[tuple[AttackUse, AttackSpec]] = []
    for index, use in enumerate(study.attacks):
        try:
            spec = _spec_of(use, study, n_classes)
            if spec.access == "transfer" and sibling(study) is None:
                raise ConfigurationError(
                    f"attack {spec.name!r} is crafted on the model of a method with dropout 'none' and no recipe of "
                    "its own, and the study has none; add one to methods"
                )
            if spec.access == "transfer" and not _several_networks(study):
                raise ConfigurationError(
                    f"attack {spec.name!r} is crafted on another network than the one under attack, and the study has "
                    "a single one; add a method, or a second seed"
                )
        except ConfigurationError as error:
            raise ConfigurationError(f"attacks.{index}: {error}") from None
        # By the name inside the file: results are filed under it.
        if any(other.name == spec.name for _, other in resolved):
            raise ConfigurationError(f"attacks.{index}: an attack named {spec.name!r} is given more than once")
        resolved.append((use, spec))
    if _several_networks(study) and sibling(study) and not any(spec.access == "transfer" for _, spec in resolved):
        use = _transfer(study)
        resolved.append((use, _spec_of(use, study, n_classes)))
    return resolved


def _several_networks(study: StudySpec) -> bool:
    return len(study.methods) > 1 or len(study.seeds) > 1


def _spec_of(use: AttackUse, study: StudySpec, n_classes: int | None) -> AttackSpec:
    spec = load_attack(use.name).with_parameters(use.parameters)
    if study.protocol == "strong":
        spec = spec.strengthened(given=use.parameters)
    for norm in use.eps:
        engines_for(use, spec, norm, study)
    return spec if n_classes is None else spec.for_classes(n_classes)


def _transfer(study: StudySpec) -> AttackUse:
    """The transfer attack of a study that does not name it, at all epsilons of its other attacks.

    One library crafts the examples: they are the same for every method of a seed, and the other's differ in rounding.
    """
    grids: dict[Norm, set[float]] = {}
    for use in study.attacks:
        for norm, grid in use.eps.items():
            grids.setdefault(norm, set()).update(grid)
    eps = {norm: tuple(sorted(grid)) for norm, grid in grids.items()}
    libraries = [engine for engine in study.engines if engine in LIBRARIES]
    return AttackUse(name=TRANSFER, eps=eps, engines=(libraries or LIBRARIES)[:1])
