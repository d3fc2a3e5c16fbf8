"""The audit of one model: every indicator, the verdict, and the evidence as tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from rich.console import Console
from torch import nn

from robustfdd.audit.base import INDICATORS, Finding, Indicator, Line, verdict_of
from robustfdd.audit.evidence import VERIFYING_PASSES, AuditedAttack, Evidence
from robustfdd.audit.pictures import lines
from robustfdd.classifier import ExpectedPrediction, check_classifier, device_of, frozen, is_random, predict
from robustfdd.code_version import Part, code_version
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.datasets.base import to_pixels
from robustfdd.errors import ConfigurationError
from robustfdd.measure import CleanOutcome
from robustfdd.progress import Display
from robustfdd.randomness import GlobalRandomness
from robustfdd.records import Status, Verdict
from robustfdd.specs import AUDITED_IMAGES, eps_in
from robustfdd.threat import Threat
from robustfdd.units import TestSet

#: Of the form of the tables that an audit writes.
VERSION = 1


@dataclass(frozen=True)
class IndicatorResult:
    """One indicator and what it found.

    Attributes:
        indicator: the test.
        status: ``"passed"``, ``"warning"``, ``"alarm"`` or ``"not applicable"``.
        value: the figure that was held against the threshold; None where there is none.
        finding: one or two sentences.
        images: positions in the test split of the images concerned, ascending.
    """

    indicator: Indicator
    status: Status
    value: float | None
    finding: str
    images: tuple[int, ...]

    @property
    def name(self) -> str:
        """The indicator's name."""
        return self.indicator.name

    @property
    def failed(self) -> bool:
        """Whether it speaks against the number."""
        return self.status in ("warning", "alarm")


@dataclass(frozen=True)
class Audit:
    """Whether the robust accuracy of a model at one radius can be believed, and why.

    Attributes:
        verdict: ``"believable"``, ``"suspicious"``, ``"not believable"``, or ``"no verdict"`` for too few images.
        threat: norm and radius, in pixel units.
        attack: the attack whose figure is audited, in words.
        n_images: test images looked at.
        clean_accuracy: of the model on them, in [0, 1].
        audited_accuracy: robust accuracy under the audited attack, in [0, 1].
        worst_accuracy: robust accuracy in the worst case over everything that was tried, image by image, in [0, 1].
        indicators: all of them, by their numbers.
        pictures: lines to draw.
        gradient_passes: images times input gradients.
        forward_passes: images times further forward passes.
        seconds: wall time.
        eot_samples: passes that the audited attack averages for one gradient; 0 for a deterministic model.
    """

    verdict: Verdict
    threat: Threat
    attack: str
    n_images: int
    clean_accuracy: float
    audited_accuracy: float
    worst_accuracy: float
    indicators: tuple[IndicatorResult, ...]
    pictures: tuple[Line, ...]
    gradient_passes: int
    forward_passes: int
    seconds: float
    eot_samples: int

    @property
    def failed(self) -> list[IndicatorResult]:
        """The indicators that speak against the number, the gravest first."""
        return sorted((i for i in self.indicators if i.failed), key=lambda i: i.status != "alarm")

    def frames(self, eps_scale: float = 1.0) -> dict[str, pd.DataFrame]:
        """The audit as the tables of a run directory.

        Args:
            eps_scale: pixel epsilon = normalised epsilon times this.
        """
        verdict = {
            "verdict": self.verdict,
            "norm": self.threat.norm,
            "eps_pixel": self.threat.eps,
            "eps_normalized": eps_in(self.threat, "normalized", eps_scale),
            "attack": self.attack,
            "n_images": self.n_images,
            "clean_accuracy": self.clean_accuracy,
            "audited_accuracy": self.audited_accuracy,
            "worst_accuracy": self.worst_accuracy,
            # An array, since an empty list has no type that a file of records could keep.
            "failed": np.asarray([i.name for i in self.failed], dtype=str),
            "gradient_passes": self.gradient_passes,
            "forward_passes": self.forward_passes,
            "seconds": self.seconds,
            "eot_samples": self.eot_samples,
            "version": VERSION,
        }
        indicators = [
            {
                "number": i.indicator.number,
                "name": i.name,
                "title": i.indicator.title,
                "status": i.status,
                "value": float("nan") if i.value is None else float(i.value),
                "unit": i.indicator.unit,
                "threshold": i.indicator.threshold,
                "source": i.indicator.source,
                "advice": i.indicator.advice,
                "finding": i.finding,
                "images": np.asarray(i.images, dtype=np.int32),
            }
            for i in self.indicators
        ]
        found: dict[str, list[dict[str, Any]]] = {"audit_verdict": [verdict], "audit_indicators": indicators}
        pictures = [_row(line) for line in self.pictures]
        if pictures:
            found["audit_pictures"] = pictures
        return {name: pd.DataFrame(rows) for name, rows in found.items()}


def _row(line: Line) -> dict[str, Any]:
    row: dict[str, Any] = asdict(line)
    for key in ("x", "y", "z"):
        row[key] = np.asarray(row[key], dtype=np.float64)
    return {key: row[key] for key in ("picture", "series", "x", "y", "z", "x_title", "y_title", "title")}


def audit(
    model: nn.Module,
    dataset: Dataset | str,
    threat: Threat,
    *,
    attack: AuditedAttack | None = None,
    sibling: nn.Module | None = None,
    test_images: int | None = AUDITED_IMAGES,
    eot_samples: int = 0,
    seed: int = 0,
    batch_size: int = 128,
    console: Console | None = None,
) -> Audit:
    """Say whether the robust accuracy of any torch classifier at one radius can be believed.

    Sixteen indicators look for an attack that was too weak and for gradients that mislead it; the documentation
    explains each. An alarm of any makes the number *not believable*, a warning *suspicious*.

    Args:
        model: pixels in [0, 1] in, logits out, normalisation inside; its state and mode are left as they were.
        dataset: a data set or the name of one; it is moved to the device of the model.
        threat: norm and radius, above 0, in pixel units.
        attack: whose figure is audited; PGD on the cross-entropy with 40 steps and its best iterate when None.
        sibling: a model for the same data without the defence, from which adversarial examples are transferred.
        test_images: how many test images are looked at, chosen evenly over the classes; all when None.
        eot_samples: passes that the audited attack averages for one gradient of a model that is random in evaluation;
            0 for one that is not. A random model is audited with 0, too: as one whose attack took no notice.
        seed: of every random draw.
        batch_size: images attacked at once.
        console: where to show progress; nowhere when None.

    Raises:
        ConfigurationError: the radius is 0, or ``eot_samples`` is given for a deterministic model.
        DatasetError: the data set cannot be loaded.
        ModelContractError: the model does not keep the contract: there is no number to be audited then.
    """
    check_radius(threat)
    data = load_dataset(dataset) if isinstance(dataset, str) else dataset
    n_test = len(data.test.labels)
    chosen = min(test_images, n_test) if test_images is not None else None
    test = TestSet.choose(data.to(device_of(model)), chosen)
    with Display(audit_cost(len(test.index)), console) as display:
        display.start(f"audit in {threat.norm} at {threat.eps:g}", audit_cost(len(test.index)))
        found = audit_images(
            model,
            test,
            threat,
            attack=attack or AuditedAttack(),
            sibling=sibling,
            eot_samples=eot_samples,
            seed=seed,
            batch_size=batch_size,
            advance=display.advance,
        )
        display.finish(found.verdict)
    return found


def check_radius(threat: Threat) -> None:
    """Make sure that there is something to audit.

    Raises:
        ConfigurationError: the radius is 0.
    """
    if threat.eps == 0:
        raise ConfigurationError("an audit needs a radius above 0")


def audit_cost(n_images: int) -> float:
    """What an audit costs, in input gradients of one image; only progress bars depend on it."""
    return n_images * sum(indicator.cost for indicator in INDICATORS.values())


def audit_code(*parts: Part) -> str:
    """The version of the code that an audit depends on, that of all registered indicators included.

    Args:
        *parts: what the networks are made of, see :func:`robustfdd.models.parts_of`.
    """
    return code_version("audit.run", parts=[*(indicator.compute for indicator in INDICATORS.values()), *parts])


def audit_images(
    model: nn.Module,
    test: TestSet,
    threat: Threat,
    *,
    attack: AuditedAttack,
    sibling: nn.Module | None,
    eot_samples: int,
    seed: int,
    batch_size: int,
    advance: Callable[[float], None] | None = None,
) -> Audit:
    """The audit on a choice of test images; see :func:`audit`.

    Args:
        model: as for :func:`audit`, on the device of the images.
        test: the images.
        threat: norm and radius.
        attack: whose figure is audited.
        sibling: as for :func:`audit`.
        eot_samples: as for :func:`audit`.
        seed: of every random draw.
        batch_size: images attacked at once.
        advance: called with the cost of what was done, for a progress bar; see :func:`audit_cost`.
    """
    check_radius(threat)
    started = time.perf_counter()
    clean = clean_of(model, test, eot_samples, batch_size)
    if sibling is not None:
        check_classifier(sibling, to_pixels(clean.images[:32]), test.dataset.n_classes)
    results = []
    with frozen(model), frozen(sibling if sibling is not None else nn.Identity()):
        evidence = Evidence(model, clean, threat, attack=attack, sibling=sibling, seed=seed, batch_size=batch_size)
        for indicator in sorted(INDICATORS.values(), key=lambda known: known.number):
            results.append(_result(indicator, evidence, test.index))
            if advance is not None:
                advance(indicator.cost * len(test.index))
        pictures = lines(evidence)
    n = evidence.n_images
    return Audit(
        verdict=verdict_of([result.status for result in results], len(evidence.y)),
        threat=threat,
        attack=str(attack),
        n_images=n,
        clean_accuracy=len(evidence.y) / n,
        audited_accuracy=int(evidence.survivors.sum()) / n,
        worst_accuracy=int(evidence.worst.sum()) / n,
        indicators=tuple(results),
        pictures=tuple(pictures),
        gradient_passes=evidence.gradient_passes,
        forward_passes=evidence.forward_passes,
        seconds=time.perf_counter() - started,
        eot_samples=eot_samples,
    )


def clean_of(model: nn.Module, test: TestSet, eot_samples: int, batch_size: int) -> CleanOutcome:
    """What a model says of the images before any attack; the mean of several passes for a random one.

    Raises:
        ModelContractError: the model does not keep the contract.
    """
    every = test.dataset.test.images
    images = to_pixels(every[torch.from_numpy(test.index[:32]).to(every.device)])
    passes = eot_samples or int(is_random(model, images))
    clean = test.clean(model, batch_size, passes)
    if not passes:
        return clean
    judge = ExpectedPrediction(model, VERIFYING_PASSES)
    with GlobalRandomness(0):
        prediction = predict(judge, clean.images, batch_size=max(batch_size // VERIFYING_PASSES, 1))
    return replace(clean, prediction=prediction, correct=prediction == clean.labels)


def _result(indicator: Indicator, evidence: Evidence, index: npt.NDArray[np.int64]) -> IndicatorResult:
    """What an indicator finds, its images by their positions in the test split."""
    if not len(evidence.y):
        finding = Finding("not applicable", None, "The model classifies no image correctly, so nothing was attacked.")
    else:
        finding = indicator.compute(evidence)
    attacked = index[evidence.clean.correct.cpu().numpy()]
    images = tuple(int(position) for position in attacked[list(finding.images)])
    return IndicatorResult(indicator, finding.status, finding.value, finding.text, images)
