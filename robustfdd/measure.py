"""The one place that decides whether an attack succeeded.

No library's word is taken for it: the perturbed images are held against budget and box, the model is asked again, and
the outcome of every image is kept. Only images that were classified correctly before are attacked.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from robustfdd.ascent import Differentiated, Loss, input_gradient
from robustfdd.batching import BatchSize
from robustfdd.catalogue import load_attack
from robustfdd.classifier import (
    ExpectedPrediction,
    batches,
    check_classifier,
    check_images,
    check_labels,
    device_of,
    frozen,
    predict,
)
from robustfdd.datasets.base import to_pixels
from robustfdd.engines import Engine, get_engine
from robustfdd.errors import (
    ConfigurationError,
    EngineError,
    RobustFDDError,
    UndefinedGradientError,
    UnitError,
    is_out_of_memory,
)
from robustfdd.iterates import BestIterate
from robustfdd.preparation import prepare
from robustfdd.randomness import GlobalRandomness
from robustfdd.records import Outcome
from robustfdd.specs import STRONG_RESTARTS, AttackSpec, Protocol
from robustfdd.threat import Norm, Threat, in_box
from robustfdd.watched_gradient import WatchedGradient

T = TypeVar("T")

#: Cost of a pass without a gradient, in input gradients; only progress bars depend on it.
FORWARD_COST = 0.4

#: How often a model with a random forward pass is asked for its predictions, so that their spread can be seen.
REPEATED_PREDICTIONS = 10
#: Seed of the predictions of clean images, and what is added to the seed of an attack for those of perturbed ones: the
#: masks of a prediction must not be those of the last gradient, nor those of the prediction before the attack.
_CLEAN_SEED = 2_000_003
_PREDICTION_SEED = 1_000_003
#: Share of the images by which a robust accuracy may be wrong because gradients were undefined; one image always may.
#: An image with such a gradient counts as not robust as long as they are no more, and there is no number beyond.
UNDEFINED_SHARE = 0.01
#: What is added to the seed for each further start of an attack, and for the last look at its result.
_RESTART_SEED = 3_000_017
_ITERATE_SEED = 4_000_037


@dataclass(frozen=True)
class CleanOutcome:
    """What the model says of the test images before any attack.

    Attributes:
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        prediction: int64, shape (N,).
        correct: boolean, shape (N,).
        n_classes: number of logits.
        eot_samples: passes that an attack averages for one gradient; 0 for a deterministic forward.
        repeated_accuracy: accuracy of each repeated prediction, the recorded one first; empty for a deterministic
            forward.
    """

    images: Tensor
    labels: Tensor
    prediction: Tensor
    correct: Tensor
    n_classes: int
    eot_samples: int = 0
    repeated_accuracy: tuple[float, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """The outcome of one cell, image by image, in the order of the test images.

    Attributes:
        prediction: class after the attack; the clean one where not attacked; int32, shape (N,).
        outcome: :class:`robustfdd.records.Outcome`; int8, shape (N,).
        distance: of the perturbation, in pixel units, 0 where not attacked; float32, shape (N,).
        gradient_passes: images times input gradients, each pass of an average counted; the most there can have been
            where the attack stops early. Of a minimum-norm attack, whose one run serves all radii, all are counted at
            the smallest.
        seconds: wall time of the attack and its check, counted likewise.
        repeated_accuracy: robust accuracy of each repeated prediction of the perturbed images, the recorded one first;
            what the recorded prediction had wrong before the attack counts as wrong, since it was not attacked. So an
            image must be right in two draws, and the figure lies below the clean accuracy even at the smallest
            epsilon. Empty for a deterministic forward.
    """

    prediction: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int8]
    distance: npt.NDArray[np.float32]
    gradient_passes: int
    seconds: float
    repeated_accuracy: tuple[float, ...] = ()

    @property
    def robust_accuracy(self) -> float:
        """Share of all images that are classified correctly after the attack."""
        return float((self.outcome == Outcome.SURVIVED).mean())


def clean_outcome(
    model: nn.Module, images: Tensor, labels: Tensor, *, n_classes: int, batch_size: int, eot_samples: int = 0
) -> CleanOutcome:
    """Check the model against its contract and predict the clean images.

    Args:
        model: a classifier on the device of the images.
        images: uint8, shape (N, C, H, W).
        labels: int64, shape (N,).
        n_classes: number of logits the model must return.
        batch_size: images a forward pass.
        eot_samples: for a model whose forward is random in evaluation, and only for such a one: passes that an attack
            averages for one gradient, from 1.

    Raises:
        ModelContractError: the model or the labels do not keep the contract.
    """
    check_classifier(model, to_pixels(images[:32]), n_classes, random=eot_samples > 0)
    check_labels(labels, len(images), n_classes)
    predictions = []
    randomness = GlobalRandomness(_CLEAN_SEED)
    for _ in range(REPEATED_PREDICTIONS if eot_samples else 1):
        with randomness:
            predictions.append(predict(model, images, batch_size=batch_size))
    prediction = predictions[0]
    repeated = tuple(float((p == labels).double().mean()) for p in predictions) if eot_samples else ()
    return CleanOutcome(images, labels, prediction, prediction == labels, n_classes, eot_samples, repeated)


def _checked(x: Tensor, x_adv: Tensor, threat: Threat, attack: AttackSpec, engine: Engine) -> Tensor:
    """The perturbed images, put exactly into the box, after a check of budget and box.

    Raises:
        EngineError: an image is outside by more than rounding, or not finite.
    """
    if x_adv.shape != x.shape:
        raise EngineError(
            f"{attack.name} through {engine.name} returned shape {tuple(x_adv.shape)} for {tuple(x.shape)}"
        )
    inside_box, inside_budget = in_box(x_adv), threat.within(x, x_adv)
    if not bool(inside_box.all()):
        worst = float(torch.maximum(-x_adv, x_adv - 1).max())
        raise EngineError(
            f"{attack.name} through {engine.name} left the box [0, 1] on {int((~inside_box).sum())} of {len(x)} images "
            f"(by up to {worst:.3g})"
        )
    if not bool(inside_budget.all()):
        worst = float(threat.distance(x, x_adv).max())
        raise EngineError(
            f"{attack.name} through {engine.name} left its {threat.norm} budget of {threat.eps:.6g} on "
            f"{int((~inside_budget).sum())} of {len(x)} images (distance up to {worst:.6g})"
        )
    # Putting the last rounding back into the box moves a pixel towards the image, never away from it.
    return x_adv.clamp(0, 1)


def _attacker(
    model: nn.Module,
    attack: AttackSpec,
    threat: Threat,
    engine: Engine,
    *,
    n_classes: int,
    image_shape: tuple[int, ...],
    batch_size: int,
    seed: int,
    eot_samples: int,
    best_iterate: bool = False,
    first_gradient: _FirstGradients | None = None,
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The engine's attack, ready to be called: it takes images and labels.

    It gives the perturbed images, which are checked and lie exactly in the box, and which images had a gradient that
    is no number; boolean, shape (N,). It holds against whatever the library writes to and whatever gradients the caller
    has switched off, and what the library raises becomes an error that says which attack it was. The model must be
    frozen while it is used; see :meth:`robustfdd.engines.Engine.prepare` for the arguments and :func:`_checked` for
    what else is raised. ``best_iterate`` is for attacks on a budget; for engines that do not keep it themselves see
    :class:`robustfdd.iterates.BestIterate`.
    """
    gradients = WatchedGradient(ExpectedPrediction(model, eot_samples) if eot_samples > 1 else model)
    watching = BestIterate(gradients, threat) if best_iterate and not engine.keeps_best else None
    randomness = GlobalRandomness(seed + _ITERATE_SEED)
    # Of the model's own draws; a library's go on from its own seed, inside.
    drawing = GlobalRandomness(seed)
    perturb = engine.prepare(
        watching or gradients,
        attack,
        threat,
        n_classes=n_classes,
        image_shape=image_shape,
        batch_size=batch_size,
        seed=seed,
        best_iterate=best_iterate and engine.keeps_best,
        first_gradient=first_gradient,
    )

    def attacked(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: an attack that writes into its input would otherwise be measured against its own result.
            gradients.watch(x.clone())
            if watching is not None:
                watching.watch(x.clone(), y.long().clone())
            try:
                with drawing:
                    x_adv = perturb(x.clone(), y.long().clone())
            except (RobustFDDError, UnitError):
                raise
            except Exception as error:  # each library has its own, and so has the backward pass of somebody's model
                if is_out_of_memory(error):
                    raise
                raise EngineError(_failed(attack, engine, image_shape, error)) from error
        x_adv = _checked(x, x_adv, threat, attack, engine)
        undefined = gradients.undefined
        if first_gradient is not None:
            undefined = undefined | first_gradient.undefined
        if watching is None:
            return x_adv, undefined
        with torch.no_grad(), randomness:
            watching(x_adv)
        return watching.best(), undefined

    return attacked


def check_gradients(undefined: Tensor, of: int, attack: AttackSpec, engine: Engine) -> None:
    """Make sure that so few images had a gradient which is no number that a robust accuracy can be given.

    Args:
        undefined: which images had one and were not broken; boolean, shape (N,).
        of: how many images a robust accuracy is a share of.
        attack: the attack.
        engine: that ran it.

    Raises:
        UndefinedGradientError: they are more than :data:`UNDEFINED_SHARE` of them, and more than one.
    """
    n = int(undefined.sum())
    if n > max(1, UNDEFINED_SHARE * of):
        raise UndefinedGradientError(
            f"{attack.name} through {engine.name}: the gradient of {n} of {of} images is NaN or infinite, so that the "
            "attack could not move them, and no robust accuracy follows. Look for a square root, a norm or a logarithm "
            "at 0 in the model's forward, or attack it without gradients (square, hopskipjump)"
        )


def _failed(attack: AttackSpec, engine: Engine, image_shape: tuple[int, ...], error: Exception) -> str:
    """What happened when a library's attack raised an error, and what to use instead, in words."""
    c, h, w = image_shape
    others = [name for name in attack.engines if name != engine.name]
    instead = f"It is also offered through: {', '.join(others)}" if others else "No other engine offers it"
    return (
        f"attack {attack.name!r} through {engine.name} failed on images of {c} x {h} x {w} (channels, height, width): "
        f"{type(error).__name__}: {error}. {instead}"
    )


def check_source(attack: AttackSpec, source: nn.Module | None) -> None:
    """Make sure that a transfer attack has a model to be crafted on, and that another that has one can use it.

    Raises:
        ConfigurationError: it is not so.
    """
    if attack.access == "transfer" and source is None:
        raise ConfigurationError(
            f"attack {attack.name!r} is crafted on another model than the one under attack; give that as source"
        )
    if source is not None and attack.kind != "budget":
        raise ConfigurationError(
            f"attack {attack.name!r} looks for the boundary of the model it is crafted on, which another model does "
            "not have; source is for attacks of kind 'budget'"
        )


class _Outcomes:
    """What becomes of the images of one cell, or of one run for all radii, as they are attacked.

    Args:
        model: the model under attack.
        clean: what it says of the images before.
        seed: of the attack.
        batch_size: images a forward pass.
    """

    def __init__(self, model: nn.Module, clean: CleanOutcome, seed: int, batch_size: int) -> None:
        self._model, self._clean, self._batch_size = model, clean, batch_size
        self.prediction = clean.prediction.clone()
        self.distance = torch.zeros(len(clean.prediction), dtype=torch.float64, device=clean.prediction.device)
        n_repeated = REPEATED_PREDICTIONS if clean.eot_samples else 0
        #: Images with a gradient that is no number.
        self.undefined = torch.zeros_like(clean.correct)
        #: Of each repeated prediction, which images survive it; what was wrong before counts as wrong.
        self.survives = clean.correct.repeat(n_repeated, 1)
        self._randomness = GlobalRandomness(seed + _PREDICTION_SEED)

    def record(self, index: Tensor, x: Tensor, x_adv: Tensor, norm: Norm, undefined: Tensor) -> None:
        """Ask the model about the perturbed images at these positions; which of them had an undefined gradient."""
        labels = self._clean.labels[index]
        self.undefined[index] |= undefined
        with self._randomness:
            self.prediction[index] = predict(self._model, x_adv, batch_size=self._batch_size)
            for i in range(len(self.survives)):
                repeated = predict(self._model, x_adv, batch_size=self._batch_size) if i else self.prediction[index]
                self.survives[i, index] = repeated == labels
        self.distance[index] = Threat(norm, 0).distance(x, x_adv)

    def inherit(self, smaller: _Outcomes, index: Tensor) -> None:
        """Take over what is broken at a smaller radius among the images at these positions."""
        done = index[smaller.prediction[index] != self._clean.labels[index]]
        self.prediction[done], self.distance[done] = smaller.prediction[done], smaller.distance[done]
        self.survives[:, done] = False
        self.undefined[index] |= smaller.undefined[index]

    @property
    def not_attacked(self) -> Tensor:
        """Images that were right before and are right after, and whose gradient was no number; boolean, shape (N,)."""
        return self.undefined & self._clean.correct & (self.prediction == self._clean.labels)

    def measurement(self, gradient_passes: int, seconds: float) -> Measurement:
        """As it stands now."""
        correct, labels = self._clean.correct, self._clean.labels
        outcome = torch.full_like(self.prediction, Outcome.MISCLASSIFIED)
        outcome[correct] = torch.where(self.prediction[correct] == labels[correct], Outcome.SURVIVED, Outcome.BROKEN)
        outcome[self.not_attacked] = Outcome.UNDEFINED
        return Measurement(
            self.prediction.cpu().numpy().astype(np.int32),
            outcome.cpu().numpy().astype(np.int8),
            self.distance.cpu().numpy().astype(np.float32),
            gradient_passes,
            seconds,
            tuple(((self.survives & ~self.not_attacked).sum(1).double() / len(outcome)).tolist()),
        )


def _untouched(clean: CleanOutcome) -> Measurement:
    """The clean outcome as a measurement, which is that of radius 0."""
    outcome = np.where(clean.correct.cpu().numpy(), Outcome.SURVIVED, Outcome.MISCLASSIFIED).astype(np.int8)
    prediction = clean.prediction.cpu().numpy().astype(np.int32)
    distance = np.zeros(len(prediction), np.float32)
    return Measurement(prediction, outcome, distance, 0, 0.0, clean.repeated_accuracy)


def n_starts(attack: AttackSpec, protocol: Protocol) -> int:
    """How often a cell runs an attack: more than once for a random start under protocol ``strong``.

    An attack that has restarts of its own is run once.
    """
    random = not attack.deterministic and attack.access == "gradient" and attack.kind == "budget"
    own = "restarts" in attack.parameters
    return STRONG_RESTARTS if protocol == "strong" and random and not own else 1


#: Images whose first gradients are kept for all radii of a sweep take together at most this many bytes.
_SHARED_BYTES = 2**28


class _FirstGradients:
    """The gradients at the unperturbed images, each computed when first asked for; a part of the images at a time.

    Args:
        model: what the attacks are crafted on; frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = WatchedGradient(model)
        self._undefined = torch.zeros(0, dtype=torch.bool)

    def begin(self, index: Tensor) -> None:
        """Forget all, and go on with the images at these ascending positions."""
        self._index = index
        self._known, self._undefined = torch.zeros(2, len(index), dtype=torch.bool, device=index.device)
        self._kept: Differentiated | None = None

    def choose(self, index: Tensor) -> None:
        """The images that the next call is about, some of those begun with."""
        self._rows = torch.searchsorted(self._index, index)
        #: How many gradients that call did not have to compute.
        self.saved = 0

    @property
    def undefined(self) -> Tensor:
        """The chosen images whose gradient, where it was asked for, is no number; boolean."""
        return self._undefined[self._rows]

    def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> Differentiated:
        """As :func:`robustfdd.ascent.input_gradient`; ``x`` and ``y`` are the chosen images and their labels."""
        new = ~self._known[self._rows]
        self.saved = len(new) - int(new.sum())
        if bool(new.any()):
            self._model.watch(x[new])
            fresh = input_gradient(self._model, x[new], y[new], loss)
            self._undefined[self._rows[new]] = self._model.undefined
            if self._kept is None:
                logits, values, gradient = (part.new_empty(len(self._index), *part.shape[1:]) for part in fresh)
                self._kept = logits, values, gradient
            for kept, part in zip(self._kept, fresh, strict=True):
                kept[self._rows[new]] = part
            self._known[self._rows[new]] = True
        assert self._kept is not None
        logits, values, gradient = (kept[self._rows] for kept in self._kept)
        return logits, values, gradient


def measure(
    model: nn.Module,
    clean: CleanOutcome,
    attack: AttackSpec,
    threat: Threat,
    *,
    engine: Engine,
    seed: int = 0,
    batch_size: int | BatchSize | None = None,
    advance: Callable[[float], None] | None = None,
    protocol: Protocol = "paper",
    source: nn.Module | None = None,
    prepared: nn.Module | None = None,
) -> Measurement:
    """Attack the correctly classified images at one epsilon and record what became of every image.

    eps = 0 runs no attack: its result is the clean outcome, exactly. See :func:`measure_sweep`.
    """
    return measure_sweep(
        model,
        clean,
        attack,
        [threat],
        engine=engine,
        seed=seed,
        batch_size=batch_size,
        advance=advance,
        protocol=protocol,
        source=source,
        prepared=prepared,
    )[0]


def measure_sweep(
    model: nn.Module,
    clean: CleanOutcome,
    attack: AttackSpec,
    threats: Sequence[Threat],
    *,
    engine: Engine,
    seed: int = 0,
    batch_size: int | BatchSize | None = None,
    advance: Callable[[float], None] | None = None,
    protocol: Protocol = "paper",
    source: nn.Module | None = None,
    prepared: nn.Module | None = None,
) -> list[Measurement]:
    """Attack the correctly classified images at each of several epsilons and record what became of every image.

    The perturbed images are crafted on a copy of the model that is cheaper to ask
    (:func:`robustfdd.preparation.prepare`); what became of an image is asked of the model itself.

    Args:
        model: the classifier that ``clean`` is of.
        clean: see :func:`clean_outcome`.
        attack: what to run. One of kind ``"minimum-norm"`` is run once for all epsilons:
            :func:`measure_minimum_norm`.
        threats: norm and radii, in pixel units; of one norm, strictly ascending. At radius 0 no attack is run: the
            result is the clean outcome, exactly.
        engine: the library that runs it.
        seed: of everything random in the attack.
        batch_size: images attacked at once, halved when memory runs out; chosen to fit it when None
            (:mod:`robustfdd.batching`). The result does not depend on it, unless the model's forward is random.
        advance: called with the cost of what is done, in input gradients, for a progress bar.
        protocol: ``"paper"``: what the attack returns, each radius by itself. ``"strong"``: of all that it asks the
            model about, the image of the largest margin, from several starts (:func:`n_starts`); what is broken at one
            radius is not attacked at a larger one and counts as broken there, with its prediction and distance. The
            attack's parameters are taken as they are; see :meth:`robustfdd.specs.AttackSpec.strengthened`.
        source: another classifier, deterministic in evaluation, on which the perturbed images are crafted; ``model``
            itself when None.
        prepared: what :func:`robustfdd.preparation.prepare` made of ``source`` or ``model``, whichever they are crafted
            on; it is called here when None.

    Returns:
        One measurement for each threat.

    Raises:
        ConfigurationError: the threats are of two norms or not ascending, or the attack needs a ``source``, or cannot
            use the one given.
        EngineError: the attack left its budget or the box, returned what is no image, or failed. There is no result
            then.
        UndefinedGradientError: too many images have a gradient that is no number (:func:`check_gradients`).
        ModelContractError: the model returned NaN for a perturbed image, or ``source`` does not keep the contract.
    """
    check_source(attack, source)
    if len({threat.norm for threat in threats}) > 1 or any(a.eps >= b.eps for a, b in itertools.pairwise(threats)):
        raise ConfigurationError("the threats of a sweep must be of one norm and strictly ascending")
    if attack.kind == "minimum-norm":
        return measure_minimum_norm(
            model,
            clean,
            attack,
            threats,
            engine=engine,
            seed=seed,
            batch_size=batch_size,
            advance=advance,
            prepared=prepared,
        )
    if source is not None:
        check_classifier(source, to_pixels(clean.images[:32]), clean.n_classes)
    crafted_on = prepared if prepared is not None else prepare(source or model, to_pixels(clean.images[:32]))
    radii = [threat for threat in threats if threat.eps > 0]

    def run(size: int) -> list[Measurement]:
        with frozen(model), frozen(crafted_on):
            return _Sweep(
                model,
                clean,
                attack,
                radii,
                engine=engine,
                seed=seed,
                batch_size=size,
                advance=advance or (lambda _: None),
                strong=protocol == "strong",
                crafted_on=crafted_on,
                eot_samples=clean.eot_samples if source is None else 0,
                starts=n_starts(attack, protocol),
            ).run()

    attacked = _fitting(batch_size, crafted_on, to_pixels(clean.images[:1]), attack, clean.eot_samples > 0, run)
    return [*(_untouched(clean) for threat in threats if threat.eps == 0), *attacked]


def _fitting(
    batch_size: int | BatchSize | None,
    model: nn.Module,
    x: Tensor,
    attack: AttackSpec,
    random: bool,
    run: Callable[[int], T],
) -> T:
    """What ``run`` returns for a batch size that fits; ``x`` is an image or more, ``random`` of the model's forward.

    Raises:
        UnitError: memory runs out for the smallest there can be.
    """
    sizes = batch_size if isinstance(batch_size, BatchSize) else BatchSize(batch_size)
    sizes.choose(model, x, random=random)
    fixed = ""
    if attack.call_size is not None:
        fixed = f"{attack.call_size} images at a time, which {attack.name} takes whatever the batch size"
    elif random:
        fixed = "a model that is random in evaluation, whose result depends on it; choose a smaller --batch-size"
    return sizes.fitting(run, fixed=fixed)


@dataclass
class _Cell:
    """One radius of a sweep, as far as it has come."""

    threat: Threat
    outcomes: _Outcomes
    perturbs: list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]  # one for each start
    gradient_passes: int = 0
    seconds: float = 0.0


class _Sweep:
    """An attack on a budget at several radii above 0; see :func:`measure_sweep` for what is not said here.

    Args:
        crafted_on: the model that is attacked.
        strong: whether what is broken at one radius is left alone at larger ones, and the best iterate counts.
        eot_samples: passes averaged for one gradient.
        starts: how often the attack is run, on what the runs before have not broken.
    """

    def __init__(
        self,
        model: nn.Module,
        clean: CleanOutcome,
        attack: AttackSpec,
        threats: Sequence[Threat],
        *,
        engine: Engine,
        seed: int,
        batch_size: int,
        advance: Callable[[float], None],
        strong: bool,
        crafted_on: nn.Module,
        eot_samples: int,
        starts: int,
    ) -> None:
        self._clean, self._advance, self._strong = clean, advance, strong
        self._attack_spec, self._engine = attack, engine
        self._size = attack.call_size or batch_size
        self._passes_per_image = attack.n_gradients * max(eot_samples, 1)
        self._cost_per_image = self._passes_per_image + FORWARD_COST * (attack.n_forwards + 1)
        image_shape = tuple(clean.images.shape[1:])
        # Gradients of a random forward are other ones at every radius, as they are at every step.
        self._first = _FirstGradients(crafted_on) if engine.keeps_best and not eot_samples else None
        self._cells = [
            _Cell(
                threat,
                _Outcomes(model, clean, seed, batch_size),
                [
                    _attacker(
                        crafted_on,
                        attack,
                        threat,
                        engine,
                        n_classes=clean.n_classes,
                        image_shape=image_shape,
                        batch_size=self._size,
                        seed=seed + start * _RESTART_SEED,
                        eot_samples=eot_samples,
                        best_iterate=strong,
                        first_gradient=self._first,
                    )
                    for start in range(starts)
                ],
            )
            for threat in threats
        ]

    def run(self) -> list[Measurement]:
        """All of it."""
        attacked = self._clean.correct.nonzero().squeeze(1)
        # What is shared is kept for a part of the images at a time; a part fills many batches.
        part = len(attacked)
        if self._first is not None:
            part = max(_SHARED_BYTES // (4 * max(self._clean.images[0].numel(), 1)), self._size)
        for slice_ in batches(len(attacked), max(part, 1)):
            self._all_radii(attacked[slice_])
        for cell in self._cells:
            check_gradients(cell.outcomes.not_attacked, len(self._clean.labels), self._attack_spec, self._engine)
        return [cell.outcomes.measurement(cell.gradient_passes, cell.seconds) for cell in self._cells]

    def _all_radii(self, index: Tensor) -> None:
        """Attack the images at these positions at one radius after the other."""
        if self._first is not None:
            self._first.begin(index)
        left = index
        for k, cell in enumerate(self._cells):
            started = time.perf_counter()
            if self._strong and k:
                cell.outcomes.inherit(self._cells[k - 1].outcomes, index)
            broken = self._attack(cell, left)
            if self._strong:
                left = left[~broken]
            cell.seconds += time.perf_counter() - started

    def _attack(self, cell: _Cell, index: Tensor) -> Tensor:
        """Attack the images at these positions at one radius; which of them are broken."""
        left, labels = index, self._clean.labels
        for perturb in cell.perturbs:
            for part in batches(len(left), self._size):
                chosen = left[part]
                if self._first is not None:
                    self._first.choose(chosen)
                x = to_pixels(self._clean.images[chosen])
                x_adv, undefined = perturb(x, labels[chosen])
                cell.outcomes.record(chosen, x, x_adv, cell.threat.norm, undefined)
                saved = self._first.saved if self._first is not None else 0
                cell.gradient_passes += len(chosen) * self._passes_per_image - saved
                self._advance(len(chosen) * self._cost_per_image)
            left = left[cell.outcomes.prediction[left] == labels[left]]
        return cell.outcomes.prediction[index] != labels[index]


def measure_minimum_norm(
    model: nn.Module,
    clean: CleanOutcome,
    attack: AttackSpec,
    threats: Sequence[Threat],
    *,
    engine: Engine,
    seed: int = 0,
    batch_size: int | BatchSize | None = None,
    advance: Callable[[float], None] | None = None,
    prepared: nn.Module | None = None,
) -> list[Measurement]:
    """Look for the nearest adversarial example of every correctly classified image, once, and hold it to each radius.

    At a radius an image is broken if the example found for it is misclassified and lies within the radius. An image
    for which the attack found nothing is broken at none.

    Args:
        model: the classifier that ``clean`` is of.
        clean: see :func:`clean_outcome`.
        attack: of kind ``"minimum-norm"``.
        threats: of one norm, ascending, 0 or not.
        engine: as for :func:`measure_sweep`.
        seed: as there.
        batch_size: as there.
        advance: as there.
        prepared: as for :func:`measure_sweep`.

    Returns:
        One measurement for each threat. Distances are those of the examples where they break the image, else 0.

    Raises:
        EngineError: the attack left the box, returned what is no image, or failed. There is no result then.
        UndefinedGradientError: too many images have a gradient that is no number (:func:`check_gradients`).
        ModelContractError: the model returned NaN for a perturbed image.
    """
    crafted_on = prepared if prepared is not None else prepare(model, to_pixels(clean.images[:32]))

    def run(size: int) -> list[Measurement]:
        return _nearest(model, crafted_on, clean, attack, threats, engine, seed, size, advance)

    return _fitting(batch_size, crafted_on, to_pixels(clean.images[:1]), attack, clean.eot_samples > 0, run)


def _nearest(
    model: nn.Module,
    crafted_on: nn.Module,
    clean: CleanOutcome,
    attack: AttackSpec,
    threats: Sequence[Threat],
    engine: Engine,
    seed: int,
    batch_size: int,
    advance: Callable[[float], None] | None,
) -> list[Measurement]:
    """The one run of :func:`measure_minimum_norm`, with a batch size that is known."""
    started = time.perf_counter()
    outcomes = _Outcomes(model, clean, seed, batch_size)
    attacked = clean.correct.nonzero().squeeze(1)
    within = torch.zeros(len(threats), len(clean.correct), dtype=torch.bool, device=clean.correct.device)
    n_passes, passes_per_image = 0, attack.n_gradients * max(clean.eot_samples, 1)
    size = attack.call_size or batch_size
    first = next((k for k, threat in enumerate(threats) if threat.eps > 0), None)
    if first is not None:
        norm = threats[first].norm
        with frozen(model), frozen(crafted_on):
            perturb = _attacker(
                crafted_on,
                attack,
                whole_box(norm, tuple(clean.images.shape[1:])),
                engine,
                n_classes=clean.n_classes,
                image_shape=tuple(clean.images.shape[1:]),
                batch_size=size,
                seed=seed,
                eot_samples=clean.eot_samples,
            )
            for part in batches(len(attacked), size):
                index = attacked[part]
                x = to_pixels(clean.images[index])
                x_adv, undefined = perturb(x, clean.labels[index])
                outcomes.record(index, x, x_adv, norm, undefined)
                for k, threat in enumerate(threats):
                    within[k, index] = threat.within(x, x_adv)
                n_passes += len(index) * passes_per_image
                if advance is not None:
                    advance(len(index) * (passes_per_image + FORWARD_COST * attack.n_forwards))
    seconds = time.perf_counter() - started
    found = outcomes.prediction != clean.labels
    measurements = []
    for k, threat in enumerate(threats):
        if threat.eps == 0:
            measurements.append(_untouched(clean))
            continue
        at = _Outcomes(model, clean, seed, batch_size)
        at.undefined |= outcomes.undefined
        broken = clean.correct & found & within[k]
        at.prediction[broken], at.distance[broken] = outcomes.prediction[broken], outcomes.distance[broken]
        at.survives &= outcomes.survives | ~within[k]
        check_gradients(at.not_attacked, len(clean.labels), attack, engine)
        measurements.append(at.measurement(n_passes if k == first else 0, seconds if k == first else 0.0))
    return measurements


def whole_box(norm: Norm, image_shape: tuple[int, ...]) -> Threat:
    """The threat that reaches every image with pixels in [0, 1] from every other.

    Args:
        norm: of the threat.
        image_shape: (C, H, W).
    """
    return Threat(norm, 1.0 if norm == "linf" else math.sqrt(math.prod(image_shape)))


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    name_or_spec: str | AttackSpec,
    threat: Threat,
    *,
    engine: str = "foolbox",
    seed: int = 0,
    batch_size: int | None = None,
    eot_samples: int = 0,
    source: nn.Module | None = None,
) -> Tensor:
    """Attack every image of a batch, correctly classified or not.

    A minimum-norm attack knows no radius: of what it finds, the examples within ``threat`` are returned, and the images
    themselves for which there is none, or which are misclassified as they are.

    Args:
        model: any classifier: pixels in [0, 1] in, logits out, normalisation inside.
        x: images, float, shape (N, C, H, W), pixels in [0, 1].
        y: true labels, integer, shape (N,).
        name_or_spec: the name of an attack (``robustfdd list``), the path of an attack file, or a specification.
        threat: norm and radius, in pixel units.
        engine: ``"foolbox"``, ``"art"`` or ``"native"``.
        seed: of everything random in the attack.
        batch_size: images attacked at once; chosen to fit memory when None (:mod:`robustfdd.batching`). The result
            does not depend on it, unless the model's forward is random.
        eot_samples: for a model whose forward is random in evaluation, and only for such a one: passes that are
            averaged for one gradient, from 1.
        source: another classifier, deterministic in evaluation, on which the perturbed images are crafted, on the
            device of ``model``; ``model`` itself when None.

    Returns:
        The perturbed images, within budget and box, shape (N, C, H, W), on the device of ``x``.

    Raises:
        ConfigurationError: the attack or engine is unknown, the engine does not offer the attack in this norm, or the
            attack needs a ``source`` or cannot use the one given.
        ModelContractError: model, source, images or labels do not keep the contract.
        EngineError: the attack left its budget or the box, or the library failed.
        UndefinedGradientError: too many images have a gradient that is no number (:func:`check_gradients`).
    """
    spec = name_or_spec if isinstance(name_or_spec, AttackSpec) else load_attack(name_or_spec)
    runner = get_engine(engine)
    check_source(spec, source)
    check_images(x)
    if len(x) == 0:
        return x.clone()
    n_classes = check_classifier(model, x[:32].to(device_of(model)), random=eot_samples > 0)
    check_labels(y, len(x), n_classes)
    if source is not None:
        check_classifier(source, x[:32].to(device_of(model)), n_classes)
    if threat.eps == 0:
        return x.clone()
    nearest = spec.kind == "minimum-norm"
    image_shape = tuple(x.shape[1:])
    runner.check(
        spec,
        whole_box(threat.norm, image_shape) if nearest else threat,
        n_classes=n_classes,
        image_shape=image_shape,
    )
    crafted_on = prepare(source or model, x[:32].to(device_of(model)))
    device = device_of(model)

    def perturbed(batch_size: int) -> Tensor:
        size, randomness = spec.call_size or batch_size, GlobalRandomness(seed + _PREDICTION_SEED)
        out, failed = torch.empty_like(x), torch.zeros(len(x), dtype=torch.bool)
        with frozen(model), frozen(crafted_on):
            perturb = _attacker(
                crafted_on,
                spec,
                whole_box(threat.norm, image_shape) if nearest else threat,
                runner,
                n_classes=n_classes,
                image_shape=image_shape,
                batch_size=size,
                seed=seed,
                eot_samples=eot_samples if source is None else 0,
            )
            for part in batches(len(x), size):
                images, labels = x[part].to(device), y[part].to(device).long()
                x_adv, undefined = perturb(images, labels)
                judged = predict(model, x_adv, batch_size=size) if bool(undefined.any()) else labels
                failed[part] = (undefined & (judged == labels)).to(failed.device)
                if nearest:
                    with randomness:
                        right, wrong = predict(model, images) == labels, predict(model, x_adv) != labels
                    found = right & wrong & threat.within(images, x_adv)
                    x_adv = torch.where(found[:, None, None, None], x_adv, images)
                out[part] = x_adv.to(x)
        check_gradients(failed, len(x), spec, runner)
        if bool(failed.any()):
            at = failed.nonzero().flatten().tolist()
            warnings.warn(f"{spec.name}: the gradient of image {at} is NaN or infinite; it did not move", stacklevel=4)
        return out

    return _fitting(batch_size, crafted_on, x[:1].to(device), spec, eot_samples > 0, perturbed)
