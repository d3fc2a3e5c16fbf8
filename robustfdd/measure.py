"""The one place that decides whether an attack succeeded.

No library's word is taken for it: the perturbed images are held against budget and box, the model is asked again, and
the outcome of every image is kept. Only images that were classified correctly before are attacked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

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
from robustfdd.engines import Engine, Perturb, get_engine
from robustfdd.errors import EngineError
from robustfdd.randomness import GlobalRandomness
from robustfdd.records import Outcome
from robustfdd.specs import AttackSpec
from robustfdd.threat import Threat, in_box

#: How often a model with a random forward pass is asked for its predictions, so that their spread can be seen.
REPEATED_PREDICTIONS = 10
#: Seed of the predictions of clean images, and what is added to the seed of an attack for those of perturbed ones: the
#: masks of a prediction must not be those of the last gradient, nor those of the prediction before the attack.
_CLEAN_SEED = 2_000_003
_PREDICTION_SEED = 1_000_003


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
        gradient_passes: images times input gradients, each pass of an average counted.
        seconds: wall time of the attack and its check.
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
) -> Perturb:
    """The engine's attack, ready to be called, whose results are checked and lie exactly in the box.

    It holds against whatever the library writes to and whatever gradients the caller has switched off. The model must
    be frozen while it is used; see :meth:`robustfdd.engines.Engine.prepare` for the arguments and :func:`_checked` for
    what is raised.
    """
    perturb = engine.prepare(
        ExpectedPrediction(model, eot_samples) if eot_samples > 1 else model,
        attack,
        threat,
        n_classes=n_classes,
        image_shape=image_shape,
        batch_size=batch_size,
        seed=seed,
    )

    def attacked(x: Tensor, y: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: an attack that writes into its input would otherwise be measured against its own result.
            x_adv = perturb(x.clone(), y.long().clone())
        return _checked(x, x_adv, threat, attack, engine)

    return attacked


def measure(
    model: nn.Module,
    clean: CleanOutcome,
    attack: AttackSpec,
    threat: Threat,
    *,
    engine: Engine,
    seed: int = 0,
    batch_size: int = 128,
    advance: Callable[[int], None] | None = None,
) -> Measurement:
    """Attack the correctly classified images at one epsilon and record what became of every image.

    eps = 0 runs no attack: its result is the clean outcome, exactly.

    Args:
        model: the classifier that ``clean`` is of.
        clean: see :func:`clean_outcome`.
        attack: what to run.
        threat: norm and radius, in pixel units.
        engine: the library that runs it.
        seed: of everything random in the attack.
        batch_size: images attacked at once; the result does not depend on it, unless the model's forward is random.
        advance: called with the number of input gradients computed, for a progress bar.

    Raises:
        EngineError: the attack left its budget or the box, or returned what is no image. There is no result then.
        ModelContractError: the model returned NaN for a perturbed image.
    """
    started = time.perf_counter()
    prediction = clean.prediction.clone()
    distance = torch.zeros(len(prediction), dtype=torch.float64, device=prediction.device)
    attacked = clean.correct.nonzero().squeeze(1)
    n_passes = 0
    passes_per_image = attack.n_gradients * max(clean.eot_samples, 1)
    survivors = torch.zeros(REPEATED_PREDICTIONS if clean.eot_samples else 0, dtype=torch.int64)
    randomness = GlobalRandomness(seed + _PREDICTION_SEED)
    if threat.eps > 0:
        with frozen(model):
            perturb = _attacker(
                model,
                attack,
                threat,
                engine,
                n_classes=clean.n_classes,
                image_shape=tuple(clean.images.shape[1:]),
                batch_size=batch_size,
                seed=seed,
                eot_samples=clean.eot_samples,
            )
            for part in batches(len(attacked), batch_size):
                index = attacked[part]
                x = to_pixels(clean.images[index])
                x_adv = perturb(x, clean.labels[index])
                with randomness:
                    prediction[index] = predict(model, x_adv, batch_size=batch_size)
                    for i in range(len(survivors)):
                        repeated = predict(model, x_adv, batch_size=batch_size) if i else prediction[index]
                        survivors[i] += int((repeated == clean.labels[index]).sum())
                distance[index] = threat.distance(x, x_adv)
                n_passes += len(index) * passes_per_image
                if advance is not None:
                    advance(len(index) * passes_per_image)
    outcome = torch.full_like(prediction, Outcome.MISCLASSIFIED)
    outcome[clean.correct] = torch.where(
        prediction[clean.correct] == clean.labels[clean.correct], Outcome.SURVIVED, Outcome.BROKEN
    )
    return Measurement(
        prediction.cpu().numpy().astype(np.int32),
        outcome.cpu().numpy().astype(np.int8),
        distance.cpu().numpy().astype(np.float32),
        n_passes,
        time.perf_counter() - started,
        tuple((survivors.double() / len(prediction)).tolist()) if threat.eps > 0 else clean.repeated_accuracy,
    )


def attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    name_or_spec: str | AttackSpec,
    threat: Threat,
    *,
    engine: str = "foolbox",
    seed: int = 0,
    batch_size: int = 128,
    eot_samples: int = 0,
) -> Tensor:
    """Attack every image of a batch, correctly classified or not.

    Args:
        model: any classifier: pixels in [0, 1] in, logits out, normalisation inside.
        x: images, float, shape (N, C, H, W), pixels in [0, 1].
        y: true labels, integer, shape (N,).
        name_or_spec: the name of an attack (``robustfdd list``), the path of an attack file, or a specification.
        threat: norm and radius, in pixel units.
        engine: ``"foolbox"`` or ``"art"``.
        seed: of everything random in the attack.
        batch_size: images attacked at once; the result does not depend on it, unless the model's forward is random.
        eot_samples: for a model whose forward is random in evaluation, and only for such a one: passes that are
            averaged for one gradient, from 1.

    Returns:
        The perturbed images, within budget and box, shape (N, C, H, W), on the device of ``x``.

    Raises:
        ConfigurationError: the attack or engine is unknown, or the engine does not offer the attack in this norm.
        ModelContractError: model, images or labels do not keep the contract.
        EngineError: the attack left its budget or the box.
    """
    spec = name_or_spec if isinstance(name_or_spec, AttackSpec) else load_attack(name_or_spec)
    runner = get_engine(engine)
    check_images(x)
    if len(x) == 0:
        return x.clone()
    n_classes = check_classifier(model, x[:32].to(device_of(model)), random=eot_samples > 0)
    check_labels(y, len(x), n_classes)
    if threat.eps == 0:
        return x.clone()
    out = torch.empty_like(x)
    with frozen(model):
        perturb = _attacker(
            model,
            spec,
            threat,
            runner,
            n_classes=n_classes,
            image_shape=tuple(x.shape[1:]),
            batch_size=batch_size,
            seed=seed,
            eot_samples=eot_samples,
        )
        for part in batches(len(x), batch_size):
            out[part] = perturb(x[part].to(device_of(model)), y[part].to(device_of(model))).to(x)
    return out
