"""The specifications: what an attack file and a study file may say, validated and frozen."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from robustfdd.errors import ConfigurationError
from robustfdd.threat import Norm, Threat

EngineName = Literal["foolbox", "art"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
EpsUnit = Literal["pixel", "normalized"]
Normalization = Literal["z-score", "zero-one"]
Placement = Literal["last", "stages"]
Scalar: TypeAlias = bool | int | float | str

MAX_NAME = 48
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Spec(BaseModel):
    """A part of a file: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _checked_name(name: str) -> str:
    if len(name) > MAX_NAME:  # names become parts of file names
        raise ValueError(f"at most {MAX_NAME} characters")
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

    @model_validator(mode="after")
    def _steps_are_positive(self) -> AttackSpec:
        for key in ("steps", "relative_step"):
            value = self.parameters.get(key, 1)
            if isinstance(value, (bool, str)) or not 0 < value < math.inf:
                raise ValueError(f"parameters.{key} must be a number above 0, not {value!r}")
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
                    f"attack {self.name!r} has no parameter {key!r}; "
                    f"allowed: {', '.join(self.parameters) or 'none at all'}"
                )
            present = self.parameters[key]
            if isinstance(value, bool) != isinstance(present, bool) or (
                not isinstance(value, type(present)) and not (isinstance(present, float) and isinstance(value, int))
            ):
                raise ConfigurationError(
                    f"attack {self.name!r}: parameter {key!r} must be of the kind of {present!r}, not {value!r}"
                )
        content = self.model_dump(by_alias=True)
        content["parameters"] |= overrides
        try:
            return AttackSpec.model_validate(content)
        except ValidationError as error:
            raise ConfigurationError(f"attack {self.name!r}: {error.errors()[0]['msg']}") from None


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
        precision: ``"fp32"``, or ``"bf16"`` for convolutions and products in bfloat16 (autocast) while training, about
            twice as fast where the hardware has it. Weights stay in single precision, densities and masks are computed
            in it from maps that were rounded, and everything that is measured afterwards is in it altogether.
    """

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    augmentation: Literal["none", "flip", "crop", "crop-flip"] = "none"
    precision: Literal["fp32", "bf16"] = "fp32"

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
        eot_samples: passes that an attack averages for one gradient (expectation over transformation), for a method
            whose forward is random in evaluation and only for such a one, which must state it; 1 averages nothing.
    """

    dropout: str
    label: str = ""
    placement: Placement = "last"
    options: Mapping[str, Scalar] = {}
    eot_samples: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        if isinstance(value, str):
            return {"dropout": value, "label": value}
        if isinstance(value, Mapping) and "label" not in value and "dropout" in value:
            return {**value, "label": value["dropout"]}
        return value

    _label = field_validator("label")(_checked_name)


Eps = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class AttackUse(Spec):
    """One attack of a study, with the epsilons it is run at in each norm, in the study's unit."""

    name: str
    eps: Annotated[Mapping[Norm, tuple[Eps, ...]], Field(min_length=1)]
    parameters: Mapping[str, Scalar] = {}

    @field_validator("eps")
    @classmethod
    def _ascending(cls, value: Mapping[Norm, tuple[float, ...]]) -> Mapping[Norm, tuple[float, ...]]:
        for norm, grid in value.items():
            if not any(eps > 0 for eps in grid):
                raise ValueError(f"{norm}: the list of epsilons must have one above 0; 0 itself is always measured")
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
        }
        for key, values in lists.items():
            twice = sorted({str(v) for v in values if list(values).count(v) > 1})
            if twice:
                raise ValueError(f"{key}: {', '.join(twice)} is given more than once")
        return self


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
