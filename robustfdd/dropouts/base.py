"""What all dropout layers share, and the registry that makes a new layer one new file.

A layer is a subclass of :class:`Dropout` that says with which probability each unit is dropped; a module of this
package that calls :func:`register` makes it known by name to :func:`build_dropout`, to study files and to models.

Source: Hinton et al. 2012 (arXiv:1207.0580), dropout as one Bernoulli draw a unit and a sample. The paper multiplies
by 1 - p at evaluation (``rescale="test"``); ``torch.nn.Dropout`` divides by 1 - p in training (``"inverted"``).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from robustfdd.errors import ConfigurationError
from robustfdd.registry import Registry

Rescale = Literal["none", "inverted", "test"]
Active = Literal["train", "always", "never", "test"]
Site = Literal["features", "maps"]
Placement = Literal["last", "stages"]

RESCALES: tuple[Rescale, ...] = get_args(Rescale)
ACTIVES: tuple[Active, ...] = get_args(Active)
SITES: tuple[Site, ...] = get_args(Site)
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


def check_choice(option: str, value: object, allowed: Iterable[str]) -> None:
    """Check an option that takes one of a few words.

    Raises:
        ConfigurationError: ``value`` is none of them; the message names the option and the allowed values.
    """
    allowed = tuple(allowed)
    if value not in allowed:
        raise ConfigurationError(f"{option} must be one of {', '.join(allowed)}, not {value!r}{_hint(value, allowed)}")


def check_probability(option: str, value: float) -> None:
    """Check an option that is a probability.

    Raises:
        ConfigurationError: ``value`` is not a number in [0, 1].
    """
    check_number(option, value)
    if not 0 <= value <= 1:
        raise ConfigurationError(f"{option} must be a probability in [0, 1], not {value!r}")


def check_number(option: str, value: float) -> None:
    """Check an option that is a number; options may come from a study file and be anything.

    Raises:
        ConfigurationError: ``value`` is not an integer or a float.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{option} must be a number, not {value!r}")


def check_count(option: str, value: int) -> None:
    """Check an option that counts something.

    Raises:
        ConfigurationError: ``value`` is not an integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{option} must be an integer from 1, not {value!r}")


class Dropout(nn.Module):
    """Base of the layers that multiply units by an independent random keep-or-drop decision.

    A subclass gives :meth:`drop_probability`. One whose randomness is of another kind replaces :meth:`multiplier`
    as well. No gradient passes through the probability or the mask.

    In training mode a unit is dropped, that is multiplied by 0, with its probability p; in evaluation mode the layer
    returns its very input. Two options alter that:

    ==========  ========================================  ==================================
    rescale     where the layer drops                     evaluation with ``active="train"``
    ==========  ========================================  ==================================
    "none"      kept units stay as they are               x
    "inverted"  kept units are divided by 1 - p           x
    "test"      kept units stay as they are               x * (1 - p)
    ==========  ========================================  ==================================

    ``active="always"`` drops in evaluation exactly as in training, so that ``rescale="test"`` then multiplies by
    nothing: the mask itself has the mean 1 - p. ``active="never"`` is the identity in both modes, whatever ``rescale``
    is, as if the layer were not there. ``active="test"`` is the reverse of ``"train"``: the identity in training mode,
    and in evaluation mode what the layer would do in training, as a defence does that is put into a trained network.

    Args:
        rescale: how the change of the mean output is made up for; see the table.
        active: when the layer drops: ``"train"``, as ``self.training`` says; ``"always"``, in evaluation too;
            ``"never"``; or ``"test"``, in evaluation only. It may be set on an existing layer.
        generator: source of the random numbers; the global one of the input's device if None. It may live on another
            device than the input: the numbers are drawn on its device and moved, so that one seed gives one mask on
            all devices. A copied or unpickled layer has a generator of its own, in the same state. ``torch.compile``
            breaks the graph at it.

    Attributes:
        progress: how much of the training is done, in [0, 1]. :func:`robustfdd.training.fit` sets it before every step;
            layers whose rate changes in the course of training read it.

    Raises:
        ConfigurationError: ``rescale`` or ``active`` is not one of the allowed words, or ``generator`` is not a
            generator.
    """

    progress: float = 0.0

    def __init__(
        self, *, rescale: Rescale = "none", active: Active = "train", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.rescale = rescale
        self.active = active
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ConfigurationError(f"generator must be a torch.Generator, not {generator!r}")
        self.generator = generator

    @property
    def rescale(self) -> Rescale:
        """``"none"``, ``"inverted"`` or ``"test"``; setting another value raises ConfigurationError."""
        return self._rescale

    @rescale.setter
    def rescale(self, value: Rescale) -> None:
        check_choice("rescale", value, RESCALES)
        self._rescale = value

    @property
    def active(self) -> Active:
        """``"train"``, ``"always"``, ``"never"`` or ``"test"``; setting another value raises ConfigurationError."""
        return self._active

    @active.setter
    def active(self, value: Active) -> None:
        check_choice("active", value, ACTIVES)
        self._active = value

    @property
    def dropping(self) -> bool:
        """Whether a forward pass now would drop units."""
        return self.active in ("always", "train" if self.training else "test")

    @property
    def random_in_evaluation(self) -> bool:
        """Whether the output is random in evaluation mode, so that attacking the model calls for EOT."""
        return self.active in ("always", "test")

    def drop_probability(self, x: Tensor) -> Tensor:
        """Probability with which each unit is dropped.

        Args:
            x: input of the layer, shape (N, C) or (N, C, ...).

        Returns:
            Values in [0, 1], in float32 or float64, one entry for each independent decision. Its shape, with ones
            appended up to the number of dimensions of x, broadcasts to that of x: (N, C) decides over whole maps,
            (N, 1, H, W) over positions of all maps together.
        """
        raise NotImplementedError

    def draw_uniform(self, shape: Iterable[int], device: torch.device) -> Tensor:
        """Uniform random numbers in [0, 1) from the layer's generator, in float32, shape ``shape``, on ``device``."""
        # Drawn in float32 whatever the input: uniform float16 numbers are too coarse to compare with a probability.
        source = device if self.generator is None else self.generator.device
        # Not torch.rand, which torch.compile cannot trace over shapes that vary.
        uniform = torch.empty(tuple(shape), device=source, dtype=torch.float32).uniform_(generator=self.generator)
        return uniform.to(device)

    def multiplier(self, x: Tensor) -> Tensor:
        """Draw what the layer multiplies its input by: 0 for dropped units, 1 or 1 / (1 - p) for kept ones.

        Returns:
            Shape that of :meth:`drop_probability`.
        """
        p = self.drop_probability(x)
        # Uniform numbers are below 1, so p = 1 drops always and p = 0 never.
        keep = self.draw_uniform(p.shape, p.device) >= p
        if self.rescale == "inverted":
            # Chosen, not multiplied: at p = 1 nothing is kept, and 0 * inf would be NaN.
            return torch.where(keep, 1 / (1 - p), torch.zeros_like(p))
        return keep

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: shape (N, C) or (N, C, ...).

        Returns:
            Shape and dtype of x; x itself where the layer does nothing.
        """
        with torch.no_grad():
            if self.dropping:
                factor = self.multiplier(x)
            elif self.rescale == "test" and self.active == "train":
                factor = 1 - self.drop_probability(x)
            else:
                return x
            factor = factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim)).to(x.dtype)
        return x * factor

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"rescale={self.rescale!r}, active={self.active!r}"

    # Not every supported version of torch can copy or pickle a generator, nor pickle a tensor without a warning;
    # the bytes of its state can always be.
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self.generator is not None:
            state["generator"] = (str(self.generator.device), self.generator.get_state().numpy().tobytes())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["generator"] is not None:
            device, generator_state = state["generator"]
            generator = torch.Generator(device)
            generator.set_state(torch.frombuffer(bytearray(generator_state), dtype=torch.uint8))
            state = {**state, "generator": generator}
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch does not annotate it


class ConstantDropout(Dropout):
    """Base of the layers whose drop probability is one number; a subclass says what it drops with it.

    The rescaling is by default that of torch's own dropout modules.

    Args:
        p: probability to drop a unit, in [0, 1].
        rescale: see :class:`Dropout`.
        active: see :class:`Dropout`.
        generator: see :class:`Dropout`.

    Raises:
        ConfigurationError: p is outside [0, 1], or an option is not one of the allowed words.
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        rescale: Rescale = "inverted",
        active: Active = "train",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(rescale=rescale, active=active, generator=generator)
        check_probability("p", p)
        self.p = p

    def constant(self, shape: torch.Size, device: torch.device) -> Tensor:
        """The number p in a shape that :meth:`drop_probability` may return; no memory is taken for it."""
        return torch.full((), self.p, device=device, dtype=torch.float32).expand(shape)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"p={self.p}, {super().extra_repr()}"


@dataclass(frozen=True)
class DropoutSpec:
    """A named way of regularising a classifier: which layer, where it goes and where it comes from.

    Attributes:
        name: how studies and the command line call it; lower case.
        title: how tables and figures call it.
        build: makes one layer; its keyword parameters are the options that may be given, and all have defaults.
        site: ``"features"`` for a layer that works on (N, C) pooled features, before the last linear layer;
            ``"maps"`` for one that works on (N, C, H, W) feature maps.
        placements: where a model can put it: ``"last"``, one layer at ``site``; ``"stages"``, one layer on the
            feature maps after each stage.
        source: authors, year, title and where published.
        summary: what it does, in one sentence.
        order: position in lists and tables; equal ones are sorted by name.
        strategy: what decides which units are dropped, in a few words; with the four below, the columns in which
            Table 1 of Ke et al. 2020 compares the variants. Empty for what drops nothing.
        adaptive: whether the drop probability differs from unit to unit or from input to input.
        dynamic: whether it drops in training; one that does not is put into a network trained without.
        hyperparameters: what has to be chosen, in a few words.
        cost: what it computes beyond drawing a mask, in a few words.
    """

    name: str
    title: str
    build: Callable[..., nn.Module]
    site: Site
    placements: tuple[Placement, ...]
    source: str
    summary: str
    order: int
    strategy: str = ""
    adaptive: bool = False
    dynamic: bool = True
    hyperparameters: str = ""
    cost: str = ""

    def __post_init__(self) -> None:
        check_choice(f"dropout {self.name!r}: site", self.site, SITES)
        if not self.placements:
            raise ConfigurationError(f"dropout {self.name!r}: placements must not be empty")
        for placement in self.placements:
            check_choice(f"dropout {self.name!r}: placements", placement, PLACEMENTS)

    @property
    def options(self) -> dict[str, Any]:
        """The options of the layer and their defaults."""
        parameters = inspect.signature(self.build).parameters
        return {name: parameter.default for name, parameter in parameters.items() if name != "n_units"}

    @property
    def needs_units(self) -> bool:
        """Whether the layer learns something for every unit, so that it must be told how many there are."""
        return "n_units" in inspect.signature(self.build).parameters

    def settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of the layer, as given or by default, but for the generator, which no file can hold."""
        return {name: value for name, value in {**self.options, **options}.items() if name != "generator"}


#: All known dropouts by name, in the order in which they are to be listed. It follows later registrations.
DROPOUTS: Registry[DropoutSpec] = Registry("dropout", order=lambda spec: (spec.order, spec.name))
register = DROPOUTS.register


def build_dropout(name: str, *, n_units: int | None = None, **options: Any) -> nn.Module:
    """Make one dropout layer; every place in a model gets a layer of its own.

    Args:
        name: a name in :data:`DROPOUTS`.
        n_units: number C of features or maps that the layer will see; only layers that learn something for each of
            them need it.
        **options: options of that dropout; its default stands for each one left out.

    Returns:
        The layer, in training mode.

    Raises:
        ConfigurationError: there is no such dropout, it has no such option, a value is not allowed, or ``n_units`` is
            needed and missing.
    """
    spec = _checked(name, options, DROPOUTS[name].options if name in DROPOUTS else ())
    if spec.needs_units:
        if n_units is None:
            raise ConfigurationError(f"dropout {name!r} must be told the number of its features or maps: n_units=...")
        options = {**options, "n_units": n_units}
    try:
        return spec.build(**options)
    except ConfigurationError as error:
        raise ConfigurationError(f"dropout {name!r}: {error}") from error


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Make sure that a file or a command line names a dropout and options of it; their values are left to the layer.

    Args:
        name: of the dropout.
        options: by name; not the generator, which no file can hold.

    Raises:
        ConfigurationError: there is no such dropout, or it has no such option.
    """
    _checked(name, options, DROPOUTS[name].settings({}) if name in DROPOUTS else ())


def _checked(name: str, options: Iterable[str], allowed: Collection[str]) -> DropoutSpec:
    if name not in DROPOUTS:
        raise ConfigurationError(f"unknown dropout {name!r}; allowed: {', '.join(DROPOUTS)}{_hint(name, DROPOUTS)}")
    for option in options:
        if option not in allowed:
            raise ConfigurationError(
                f"dropout {name!r} has no option {option!r}; allowed: {', '.join(allowed) or 'none'}"
                f"{_hint(option, allowed)}"
            )
    return DROPOUTS[name]


def _hint(value: object, allowed: Iterable[str]) -> str:
    """A suggestion to append to a message, or nothing when no allowed value is close."""
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
