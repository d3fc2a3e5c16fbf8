"""The specifications: what an attack file and a study file may say, validated and frozen."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from robustfdd.errors import ConfigurationError
from robustfdd.text import shortened, shown
from robustfdd.threat import MAX_EPS, Norm, Threat

EngineName = Literal["foolbox", "art", "native"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
#: The engines that are libraries of others, which attack unless something else is asked for.
LIBRARIES: tuple[EngineName, ...] = ("foolbox", "art")
AttackKind = Literal["budget", "minimum-norm"]
Access = Literal["gradient", "score", "decision", "noise", "transfer"]
Protocol = Literal["paper", "strong"]
Precision = Literal["fp32", "bf16"]
EpsUnit = Literal["pixel", "normalized"]
Normalization = Literal["z-score", "zero-one"]
Placement = Literal["last", "stages"]
LossName = Literal["ce", "margin", "dlr"]
#: The most entries of each list of a study, and of what it or an attack file maps names to.
MAX_METHODS, MAX_SEEDS, MAX_ATTACKS, MAX_RADII, MAX_ENTRIES = 200, 1000, 100, 1000, 200
Scalar: TypeAlias = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str
Parameters: TypeAlias = Annotated[Mapping[str, Scalar], Field(max_length=MAX_ENTRIES)]
Engines: TypeAlias = Annotated[tuple[EngineName, ...], Field(min_length=1, max_length=len(ENGINES))]
#: How many of something there are: at least one, and not more than any count can be that ends.
Count: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
#: Losses that are not defined for fewer classes: the difference of logits ratio of two is -1 or 1, whatever the image.
_LEAST_CLASSES: Mapping[str, int] = {"dlr": 3}
#: The widest network: ten times as much memory as most machines have.
MAX_WIDTH = 1024
#: The most epochs of a training, whose history has an entry of each.
MAX_EPOCHS = 100_000
#: What an attack costs, in passes of an image, must be less than this.
_MAX_COST = 2**53

#: Of an audit, where nothing else is said: test images, enough that a point is two of them and few enough for minutes;
#: and steps of the PGD whose figure is looked into.
AUDITED_IMAGES, AUDITED_STEPS = 200, 40

MAX_NAME = 48
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Spec(BaseModel):
    """A part of a file: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def is_name(name: str) -> bool:
    """Whether a text can be the name of a study, a method or an attack, and so a part of the name of a file."""
    return len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None


def _checked_name(name: str) -> str:
    if len(name) > MAX_NAME:  # names become parts of file names
        raise ValueError(f"at most {MAX_NAME} characters")
    if not _NAME.fullmatch(name):
        raise ValueError("use lower-case letters, digits, '.', '_' and '-' only, starting with a letter or digit")
    return name


class Spelling(Spec):
    """How one engine spells one attack in one norm: its class, and every argument of the class's constructor.

    Attributes:
        class_: the class.
        arguments: literals, or references to parameters as ``"$name"``.
        components: the attacks that an ensemble runs, in their order; the argument ``"$components"`` stands for them.
        loss: of the classifier that the engine gives to an attack of ART, which some attacks climb; one of
            :data:`robustfdd.ascent.LOSSES`.
    """

    class_: Annotated[str, Field(alias="class", pattern=r"^[A-Za-z]\w*$")]
    arguments: Parameters
    components: Annotated[tuple[Spelling, ...], Field(max_length=MAX_ENTRIES)] = ()
    loss: LossName = "ce"

    def climbing_what_is_defined(self, n_classes: int) -> Spelling:
        """The same with the margin for every loss that models of so few classes do not have."""
        undefined = {name for name, least in _LEAST_CLASSES.items() if n_classes < least}
        arguments = dict(self.arguments)
        if arguments.get("loss") in undefined:
            arguments["loss"] = "margin"
        return self.model_copy(
            update={
                "arguments": arguments,
                "components": tuple(part.climbing_what_is_defined(n_classes) for part in self.components),
                "loss": "margin" if self.loss in undefined else self.loss,
            }
        )


@dataclass(frozen=True)
class Spelled:
    """A spelling whose references are resolved.

    Attributes:
        class_name: the class of the library.
        arguments: of its constructor; ``"$components"`` has become a list of what is spelled alike.
        loss: see :class:`Spelling`.
    """

    class_name: str
    arguments: dict[str, Any]
    loss: LossName


#: Under protocol ``strong``, the length of a step in units of the radius is this divided by the number of steps, so
#: that an ascent can cross the ball and come back (Madry et al. 2018 and their successors use it) ...
STRONG_REACH = 2.5
#: ... and an attack that begins at random does so this often.
STRONG_RESTARTS = 3


class AttackSpec(Spec):
    """One attack: neutral parameters, and how each engine spells them.

    Attributes:
        name: the name studies and records use.
        title: the name reports print.
        summary: one line for ``robustfdd list``.
        reference: where the attack was published.
        deterministic: whether the same model and image always give the same perturbation.
        gradient_evaluations: input gradients per image, a number, or a sum of products of numbers and parameters, such
            as ``"2 * $steps * $restarts"``; the most there can be where the attack stops early.
        parameters: neutral parameters; steps are relative to eps.
        engines: for each engine and norm, the spelling.
        kind: ``"budget"``: looks for an adversarial example inside a given radius; ``"minimum-norm"``: for the nearest
            one, so that a single run gives the outcome at every radius.
        access: what it needs of the model: ``"gradient"``, ``"score"`` (logits), ``"decision"`` (the predicted class),
            ``"noise"`` (the same, of random perturbations), or ``"transfer"``: gradients of another model.
        forward_evaluations: passes without a gradient per image, like ``gradient_evaluations``; only progress bars
            depend on it.
        images_per_call: for an attack whose result for an image depends on which others share its batch, how many
            always do, whatever batch size is asked for: a number or a reference to a parameter.
        note: what whoever reads a figure of it must know; records and reports repeat it.
    """

    name: str
    title: str
    summary: str
    reference: str
    deterministic: bool
    gradient_evaluations: int | str
    parameters: Parameters
    engines: Mapping[EngineName, Mapping[Norm, Spelling]]
    kind: AttackKind = "budget"
    access: Access = "gradient"
    forward_evaluations: int | str = 0
    images_per_call: Count | str | None = None
    note: str = ""

    _name = field_validator("name")(_checked_name)

    @model_validator(mode="after")
    def _references_exist(self) -> AttackSpec:
        known = {*self._derived(1.0, 1), *self.parameters}
        values: list[tuple[str, Scalar]] = []
        for engine, norms in self.engines.items():
            for norm, whole in norms.items():
                for spelling in (whole, *whole.components):
                    key = f"engines.{engine}.{norm}.arguments"
                    names = known | {"components"} if whole.components and spelling is whole else known
                    values += [(f"{key}.{name}", v) for name, v in spelling.arguments.items() if v not in _refer(names)]
        allowed = ", ".join(f"${name}" for name in sorted(known))
        for key, value in values:
            if isinstance(value, str) and value.startswith("$"):
                raise ValueError(f"{key} refers to {value}; allowed: {allowed}")
        for key in ("gradient_evaluations", "forward_evaluations", "images_per_call"):
            for factor in itertools.chain(*_terms(getattr(self, key) or 0)):
                number = self.parameters.get(factor[1:]) if isinstance(factor, str) else factor
                if isinstance(number, bool) or not isinstance(number, int) or number < 0:
                    raise ValueError(
                        f"{key} has the factor {factor!r}; allowed: whole numbers, and parameters that are such"
                    )
            if self._count(getattr(self, key) or 0) >= _MAX_COST:
                raise ValueError(f"{key} comes to {_MAX_COST} or more")
        return self

    @model_validator(mode="after")
    def _steps_are_positive(self) -> AttackSpec:
        for key in ("steps", "relative_step", "restarts"):
            value = self.parameters.get(key, 1)
            if isinstance(value, (bool, str)) or not 0 < value < 2**31:
                raise ValueError(f"parameters.{key} must be a number above 0 and below 2**31, not {shown(value)}")
        value = self.parameters.get("candidates", 2)
        if isinstance(value, (bool, str)) or value < 2:  # the first candidate is the predicted class itself
            raise ValueError(f"parameters.candidates must be a number from 2, not {shown(value)}")
        return self

    def _derived(self, eps: float, batch_size: int) -> dict[str, Scalar | None]:
        step = self.parameters.get("relative_step", 1.0)
        return {
            "eps": eps,
            "double_eps": 2 * eps,
            "step": float(step) * eps,
            "batch_size": batch_size,
            "none": None,
        }

    def _resolve(self, value: Scalar, eps: float, batch_size: int) -> Scalar | None:
        if isinstance(value, str) and value.startswith("$"):
            known = {**self._derived(eps, batch_size), **self.parameters}
            return known[value[1:]]
        return value

    def _count(self, expression: int | str) -> int:
        return sum(math.prod(int(self._resolve(factor, 1.0, 1) or 0) for factor in term) for term in _terms(expression))

    @property
    def n_gradients(self) -> int:
        """Input gradients computed per image and epsilon, or per image where one run serves all epsilons."""
        return self._count(self.gradient_evaluations)

    @property
    def n_forwards(self) -> int:
        """Passes without a gradient, per image as :attr:`n_gradients`."""
        return self._count(self.forward_evaluations)

    @property
    def call_size(self) -> int | None:
        """How many images share a call, whatever the batch size; None where it does not matter."""
        return None if self.images_per_call is None else self._count(self.images_per_call)

    def norms(self, engine: EngineName) -> tuple[Norm, ...]:
        """The norms in which the engine can run this attack."""
        return tuple(self.engines.get(engine, {}))

    @property
    def offer(self) -> str:
        """Its engines and their norms, in words."""
        return "; ".join(f"{engine}: {', '.join(norms)}" for engine, norms in self.engines.items())

    def offered(self, norm: Norm, engines: Sequence[EngineName]) -> tuple[EngineName, ...]:
        """Those of the engines that offer this attack in the norm.

        Raises:
            ConfigurationError: none does.
        """
        found = tuple(engine for engine in engines if norm in self.norms(engine))
        if not found:
            raise ConfigurationError(
                f"attack {self.name!r} is offered by none of the engines {', '.join(engines)} in norm {norm!r}; "
                f"offered: {self.offer}"
            )
        return found

    def for_classes(self, n_classes: int) -> AttackSpec:
        """The attack as models of so many classes are attacked with it.

        Where it climbs a loss that is not defined for so few, it climbs the margin; its title and its note say so.
        """
        engines = {
            engine: {norm: spelling.climbing_what_is_defined(n_classes) for norm, spelling in norms.items()}
            for engine, norms in self.engines.items()
        }
        if engines == self.engines:
            return self
        note = (
            f"The difference of logits ratio (DLR) is not defined for {n_classes} classes: this attack climbs the "
            "margin in its place."
        )
        title = f"{self.title} (margin for DLR)"
        return self.model_copy(update={"engines": engines, "title": title, "note": f"{self.note} {note}".strip()})

    def spelled(self, engine: EngineName, threat: Threat, batch_size: int) -> Spelled:
        """The class of the library and the arguments of its constructor.

        Raises:
            ConfigurationError: the engine does not offer this attack in this norm.
        """
        try:
            spelling = self.engines[engine][threat.norm]
        except KeyError:
            raise ConfigurationError(
                f"attack {self.name!r} is not offered by engine {engine!r} in norm {threat.norm!r}; "
                f"offered: {self.offer}"
            ) from None

        def resolved(part: Spelling) -> Spelled:
            components = [resolved(component) for component in part.components]
            arguments = {
                key: components if value == "$components" else self._resolve(value, threat.eps, batch_size)
                for key, value in part.arguments.items()
            }
            return Spelled(part.class_, arguments, part.loss)

        return resolved(spelling)

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

    def strengthened(self, given: Collection[str] = ()) -> AttackSpec:
        """The same attack as protocol ``strong`` runs it; see :data:`STRONG_REACH` and :data:`STRONG_RESTARTS`.

        Args:
            given: names of parameters that somebody chose, which stay.
        """
        changes: dict[str, Scalar] = {}
        if {"steps", "relative_step"} <= set(self.parameters):
            changes["relative_step"] = STRONG_REACH / float(self.parameters["steps"])
        if "restarts" in self.parameters:
            changes["restarts"] = max(int(self.parameters["restarts"]), STRONG_RESTARTS)
        return self.with_parameters({key: value for key, value in changes.items() if key not in given})


def _refer(names: Collection[str]) -> set[Scalar]:
    return {f"${name}" for name in names}


def _terms(expression: int | str) -> list[list[int | str]]:
    """The factors of the terms of such as ``"3 * $steps + 1"``; what is no number stays text."""
    return [
        [int(factor) if factor.isdecimal() else factor for factor in map(str.strip, term.split("*"))]
        for term in str(expression).split("+")
    ]


#: The one step of fast adversarial training, in units of the radius: Wong, Rice & Kolter 2020.
FAST_STEP = 1.25


class AdversarialTraining(Spec):
    """Training on perturbed images in the place of the clean ones; see :mod:`robustfdd.adversarial_training`.

    Attributes:
        attack: ``"pgd"``: projected gradient ascent from a random start (Madry et al. 2018); ``"fast"``: one step of
            :data:`FAST_STEP` radii from a random start (Wong, Rice & Kolter 2020), in L-infinity only.
        norm: of the ball.
        eps: its radius in PIXEL units, whatever the study's ``eps_unit`` is; above 0.
        steps: of PGD; 1 for ``"fast"``, where it is not to be given.
        relative_step: their length in units of the radius; :data:`FAST_STEP` for ``"fast"``, where it is not to be
            given.
    """

    attack: Literal["pgd", "fast"]
    norm: Norm = "linf"
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    steps: Count = 7
    relative_step: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.25

    @model_validator(mode="before")
    @classmethod
    def _fast_is_one_step(cls, value: object) -> object:
        if isinstance(value, Mapping) and value.get("attack") == "fast":
            return {"steps": 1, "relative_step": FAST_STEP, **value}
        return value

    @field_validator("eps")
    @classmethod
    def _reasonable(cls, eps: float, info: ValidationInfo) -> float:
        norm = info.data.get("norm")
        if norm is not None and eps > MAX_EPS[norm]:
            raise ValueError(f"in pixel units, for pixels in [0, 1], it must be at most {MAX_EPS[norm]:g} in {norm}")
        return eps

    @model_validator(mode="after")
    def _fast_is_what_was_published(self) -> AdversarialTraining:
        if self.attack == "fast":
            if self.norm != "linf":
                raise ValueError("attack 'fast' is for norm 'linf'; use 'pgd' for 'l2'")
            if (self.steps, self.relative_step) != (1, FAST_STEP):
                raise ValueError(f"attack 'fast' takes 1 step of {FAST_STEP:g} eps; leave steps and relative_step out")
        return self


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
        adversarial: how the images are perturbed while training; not at all when left out.
    """

    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)]
    batch_size: Annotated[int, Field(ge=2, lt=2**31)] = 64
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    augmentation: Literal["none", "flip", "crop", "crop-flip"] = "none"
    precision: Precision = "fp32"
    adversarial: AdversarialTraining | None = None

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Recipe:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @model_serializer(mode="wrap")
    def _nothing_about_what_is_not_done(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So that a training without it is written as it was before there was any.
        content: dict[str, Any] = handler(self)
        return {key: value for key, value in content.items() if (key, value) != ("adversarial", None)}

    @property
    def n_gradients(self) -> int:
        """Input gradients computed per image and epoch, for adversarial training."""
        return self.adversarial.steps if self.adversarial else 0

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """The same recipe with some of its values changed.

        Raises:
            ValidationError: of pydantic; the result is no recipe.
        """
        return Recipe.model_validate({**self.model_dump(), **changes})


class RecipeChanges(Recipe):
    """Some values of a recipe: those that a method of a study is trained with in the place of the study's."""

    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 1  # like all of them, only a change where it is given

    @property
    def given(self) -> dict[str, Any]:
        """The changes, by the name of the value."""
        return {key: value for key, value in self.model_dump().items() if key in self.model_fields_set}


class ModelOptions(Spec):
    """The network of a study: ResNet-18, whose last stage has ``8 * width`` channels."""

    width: Annotated[int, Field(ge=1, le=MAX_WIDTH)] = 64


class Method(Spec):
    """One regulariser of a study.

    Attributes:
        label: the name in records and tables; the dropout's own by default.
        dropout: a name of ``robustfdd list``.
        placement: ``"last"`` or ``"stages"``.
        options: keyword arguments of the dropout module, e.g. ``rescale``.
        eot_samples: passes that an attack averages for one gradient (expectation over transformation), for a method
            whose forward is random in evaluation and only for such a one, which must state it; 1 averages nothing.
        recipe: what is changed in the study's recipe for this method, e.g. ``adversarial``.
    """

    dropout: str
    label: str = ""
    placement: Placement = "last"
    options: Parameters = {}
    eot_samples: Count | None = None
    recipe: RecipeChanges = RecipeChanges()

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
Grid: TypeAlias = Annotated[tuple[Eps, ...], Field(max_length=MAX_RADII)]


class AttackUse(Spec):
    """One attack of a study, with the epsilons it is run at in each norm, in the study's unit.

    Attributes:
        name: of an attack, or the path of an attack file.
        eps: for each norm, ascending.
        parameters: changes to those of the attack.
        engines: what runs it, in the place of the study's engines.
    """

    name: str
    eps: Annotated[Mapping[Norm, Grid], Field(min_length=1)]
    parameters: Parameters = {}
    engines: Engines | None = None

    @field_validator("eps")
    @classmethod
    def _ascending(cls, value: Mapping[Norm, tuple[float, ...]]) -> Mapping[Norm, tuple[float, ...]]:
        for norm, grid in value.items():
            if not any(eps > 0 for eps in grid):
                raise ValueError(f"{norm}: the list of epsilons must have one above 0; 0 itself is always measured")
            if any(a >= b for a, b in itertools.pairwise(grid)):
                raise ValueError(f"{norm}: epsilons must be strictly ascending, not {shown(list(grid))}")
        return value


class AuditSettings(Spec):
    """What of each model of a study is audited.

    Attributes:
        norm: of the number under audit; chosen by the audit when left out.
        eps: its radius, in the study's unit; chosen by the audit when left out.
        images: how many of the test images are looked at.
    """

    norm: Norm | None = None
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    images: Count = AUDITED_IMAGES


class StudySpec(Spec):
    """One study: what is trained, what attacks it, and over which epsilons.

    Attributes:
        name: the study's name, and of its run directory by default.
        title: the heading of its report.
        description: what the study is for.
        dataset: a name of ``robustfdd list`` or ``folder:PATH``.
        methods: the regularisers compared, in the order of the tables' columns.
        seeds: of the training runs.
        engines: what attacks: each attack runs through those of them that offer it; tables show the first.
        protocol: ``"paper"``: each epsilon by itself, last iterate. ``"strong"``: steps of :data:`STRONG_REACH` radii
            together, :data:`STRONG_RESTARTS` starts, best iterate, and an image broken at one epsilon is broken at
            every larger one.
        eps_unit: of all epsilons of the file. ``"normalized"`` epsilons are in units of the model's normalisation.
        normalization: of the model's input. ``"z-score"``: the data set's one mean and one standard deviation;
            ``"zero-one"``: none, pixels are in [0, 1] already.
        test_images: how many test images are attacked, chosen evenly over the classes; all when left out.
        attack_precision: of the passes that attacks make. ``"bf16"``: convolutions and products in bfloat16, faster
            where the hardware has it and weaker, as small gradients are rounded; what became of an image is asked in
            single precision all the same, and every record says so.
        model: the network.
        recipe: the training.
        attacks: with their epsilons.
        audit: what is audited of each model; the audit's own choice when left out.
        open_choices: for every quantity that the source leaves open, the key and the reason for its value.
    """

    name: str
    title: str
    description: str
    dataset: str
    methods: Annotated[tuple[Method, ...], Field(min_length=1, max_length=MAX_METHODS)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=MAX_SEEDS)] = (
        0,
    )
    engines: Engines = LIBRARIES
    protocol: Protocol = "paper"
    eps_unit: EpsUnit
    normalization: Normalization = "z-score"
    test_images: Count | None = None
    attack_precision: Precision = "fp32"
    model: ModelOptions = ModelOptions()
    recipe: Recipe
    attacks: Annotated[tuple[AttackUse, ...], Field(min_length=1, max_length=MAX_ATTACKS)]
    audit: AuditSettings | None = None
    open_choices: Annotated[Mapping[str, str], Field(max_length=MAX_ENTRIES)] = {}

    _name = field_validator("name")(_checked_name)

    @model_validator(mode="after")
    def _methods_have_recipes(self) -> StudySpec:
        for index, method in enumerate(self.methods):
            try:
                self.recipe_of(method)
            except ValidationError as error:  # values that are right each by itself, but not together
                problem = error.errors()[0]
                raise ValueError(f"methods.{index}.recipe: {problem['msg'].removeprefix('Value error, ')}") from None
        return self

    def recipe_of(self, method: Method) -> Recipe:
        """What a method of this study is trained with: the study's recipe and the method's changes to it."""
        return self.recipe.changed(method.recipe.given)

    @model_validator(mode="after")
    def _nothing_twice(self) -> StudySpec:
        lists: dict[str, Sequence[object]] = {
            "methods (label)": [m.label for m in self.methods],
            "seeds": self.seeds,
            "engines": self.engines,
            **{f"attacks.{index}.engines": use.engines or () for index, use in enumerate(self.attacks)},
        }
        for key, values in lists.items():
            twice = sorted(str(value) for value, count in Counter(values).items() if count > 1)
            if twice:
                raise ValueError(f"{key}: {shortened(', '.join(twice))} is given more than once")
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
    """An epsilon in units of the model's normalisation; see :func:`pixel_eps`.

    The two are not the inverse of each other to the last bit. What is asked for in one unit is turned into the other
    once, and never back.
    """
    return eps if unit == "normalized" else eps / scale


def threat_of(norm: Norm, eps: float, unit: EpsUnit, scale: float) -> Threat:
    """The threat of a radius that is asked for in a unit; it remembers which.

    Args:
        norm: of the ball.
        eps: its radius, in ``unit``.
        unit: of ``eps``.
        scale: see :func:`pixel_eps`.

    Raises:
        ConfigurationError: the radius is negative, not finite or too large.
    """
    return Threat(norm, pixel_eps(eps, unit, scale), normalized=eps if unit == "normalized" else None)


def unit_asked_for(threat: Threat, scale: float) -> EpsUnit:
    """The unit in which the radius of a threat was asked for; pixels where it was asked for at another scale.

    Args:
        threat: the ball.
        scale: see :func:`pixel_eps`.
    """
    given = threat.normalized
    return "normalized" if given is not None and pixel_eps(given, "normalized", scale) == threat.eps else "pixel"


def eps_in(threat: Threat, unit: EpsUnit, scale: float) -> float:
    """The radius of a threat in a unit: exactly what was asked for, if it was asked for in that one.

    Args:
        threat: the ball.
        unit: of the result.
        scale: see :func:`pixel_eps`.
    """
    if unit == "normalized" and threat.normalized is not None and unit_asked_for(threat, scale) == unit:
        return threat.normalized
    return threat.eps if unit == "pixel" else normalized_eps(threat.eps, "pixel", scale)
