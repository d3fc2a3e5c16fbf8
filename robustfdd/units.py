"""The units of work of a study or of one model: what they are, what their results depend on, how one is run."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from robustfdd import provenance, records
from robustfdd.batching import FIXED, BatchSize
from robustfdd.code_version import code_version
from robustfdd.datasets import Dataset
from robustfdd.datasets.base import test_indices, to_pixels
from robustfdd.engines import get_engine
from robustfdd.errors import ConfigurationError, OutOfSpaceError
from robustfdd.measure import (
    FORWARD_COST,
    CleanOutcome,
    clean_outcome,
    measure_sweep,
    n_starts,
)
from robustfdd.preparation import prepare
from robustfdd.progress import Display
from robustfdd.records import Cell, Failure
from robustfdd.specs import AttackSpec, EngineName, EpsUnit, Precision, Protocol, eps_in, threat_of
from robustfdd.threat import Norm


@dataclass(frozen=True)
class Subject:
    """The model under attack, as records name it.

    Attributes:
        study: name of the study.
        method: label of the regulariser, or of somebody's model.
        seed: of the training run; -1 for a model that was not trained here.
        eps_scale: pixel epsilon = normalised epsilon times this.
        identity: a hash of what it is, see :func:`robustfdd.identity.function_digest`, or of its checkpoint; results
            belong to it.
        eot_samples: passes that an attack averages for one gradient; 0 for a deterministic forward.
        code: the version of the code of its parts, see :func:`robustfdd.models.parts_of`; results depend on it.
    """

    study: str
    method: str
    seed: int
    eps_scale: float
    identity: str
    eot_samples: int = 0
    code: str = ""


@dataclass(frozen=True)
class Source:
    """A model that perturbed images are crafted on to be tried on others.

    Attributes:
        label: of its method.
        seed: of its training run; -1 for a model that was not trained here.
        identity: as that of a :class:`Subject`; results depend on it.
        code: the same.
        load: gives the model, on the device of those it is tried on.
    """

    label: str
    seed: int
    identity: str
    code: str
    load: Callable[[], nn.Module]


@dataclass(frozen=True)
class AttackUnit:
    """One model under one attack, norm and engine, over all its epsilons.

    Attributes:
        method: label of the method.
        seed: of the training run.
        attack: what to run.
        norm: of the threat.
        engine: the library.
        eps: ascending, in ``eps_unit``, without 0.
        eps_unit: of ``eps``.
        eot_samples: passes averaged for one gradient; 0 for a model with a deterministic forward.
        protocol: see :func:`robustfdd.measure.measure`.
        source: label of the method on whose model the perturbed images are crafted; None for the unit's own.
        precision: of the passes that the attack makes; see :func:`robustfdd.preparation.prepare`.
        source_seed: of the training run of the source; -1 for a model that was not trained here.
    """

    method: str
    seed: int
    attack: AttackSpec
    norm: Norm
    engine: EngineName
    eps: tuple[float, ...]
    eps_unit: EpsUnit
    eot_samples: int = 0
    protocol: Protocol = "paper"
    source: str | None = None
    precision: Precision = "fp32"
    source_seed: int = -1

    @property
    def name(self) -> str:
        """Also the name of its results file."""
        seed = f"--seed{self.seed}" if self.seed >= 0 else ""
        return f"{self.method}{seed}--{self.attack.name}--{self.norm}--{self.engine}"

    @property
    def title(self) -> str:
        """What progress shows."""
        seed = f" seed {self.seed}" if self.seed >= 0 else ""
        return f"attack {self.method}{seed}: {self.attack.title} {self.norm} through {self.engine}"

    def cost(self, n_images: int) -> float:
        """In input gradients of one image."""
        eot_samples = 0 if self.source else self.eot_samples
        one = self.attack.n_gradients * max(eot_samples, 1) + FORWARD_COST * (1 + self.attack.n_forwards)
        n_runs = 1 if self.attack.kind == "minimum-norm" else len(self.eps)
        return n_images * n_runs * n_starts(self.attack, self.protocol) * one

    def entry(self) -> dict[str, Any]:
        """The unit in the manifest's plan."""
        return {
            "unit": self.name,
            "method": self.method,
            "seed": self.seed,
            "attack": self.attack.name,
            "norm": self.norm,
            "engine": self.engine,
            **({"source": self.source} if self.source else {}),
            **({"source_seed": self.source_seed} if self.source and self.source_seed >= 0 else {}),
        }


@dataclass(frozen=True)
class TestSet:
    """The test images that are attacked, the same for every model of a run.

    Attributes:
        dataset: the whole data set.
        index: ascending positions in its test split.
    """

    __test__ = False  # not a test for pytest to collect

    dataset: Dataset
    index: npt.NDArray[np.int64]

    @classmethod
    def choose(cls, dataset: Dataset, n: int | None) -> TestSet:
        """A fixed choice of ``n`` test images, evenly over the classes; all when None."""
        if n is not None and n > len(dataset.test.labels):
            raise ConfigurationError(
                f"test_images: {n}, but {dataset.title} has {len(dataset.test.labels)} test images"
            )
        index = test_indices(dataset.test.labels, len(dataset.test.labels) if n is None else n, seed=0)
        return cls(dataset, index.cpu().numpy())

    def clean(self, model: nn.Module, batch_size: int = FIXED, eot_samples: int = 0) -> CleanOutcome:
        """What the model says of them before any attack; see :func:`robustfdd.measure.clean_outcome`."""
        index = torch.from_numpy(self.index).to(self.dataset.test.labels.device)
        return clean_outcome(
            model,
            self.dataset.test.images[index],
            self.dataset.test.labels[index],
            n_classes=self.dataset.n_classes,
            batch_size=batch_size,
            eot_samples=eot_samples,
        )


def content_digest(content: object) -> str:
    """A hash of what JSON can hold, for the keys of results; the order of the keys of a mapping does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unit_key(unit: AttackUnit, subject: Subject, test: TestSet, attack_seed: int, source: Source | None = None) -> str:
    """A hash of everything that the unit's result depends on."""
    # Of this package it is not the version that counts, but the code of the parts that are used.
    versions = {name: v for name, v in provenance.versions().items() if not name.startswith("robustfdd")}
    # What has its default is left out: the keys of results from before there was a choice stay what they were.
    chosen: dict[str, object] = {}
    if unit.protocol != "paper":
        chosen["protocol"] = unit.protocol
    if unit.precision != "fp32":
        chosen["precision"] = unit.precision
    if source is not None:
        chosen["source"] = [source.label, source.seed, source.identity, source.code]
    return content_digest(
        {
            "subject": [subject.study, subject.method, subject.seed, subject.eps_scale, subject.identity, subject.code],
            "eot_samples": subject.eot_samples,
            "attack": unit.attack.model_dump(mode="json", exclude_defaults=True),
            "threats": [unit.norm, list(unit.eps), unit.eps_unit],
            "engine": unit.engine,
            "attack_seed": attack_seed,
            "data": [test.dataset.sha256, content_digest(test.index.tolist())],
            "versions": versions,
            "code": code_version("units", f"engines.{unit.engine}"),
            **chosen,
        }
    )


def attack_cells(
    model: nn.Module,
    clean: CleanOutcome,
    unit: AttackUnit,
    subject: Subject,
    test: TestSet,
    *,
    attack_seed: int,
    batch_size: int | BatchSize | None,
    advance: Callable[[float], None],
    source: nn.Module | None = None,
    prepared: nn.Module | None = None,
) -> list[Cell]:
    """Run one unit: a cell for eps = 0 and one for each of its epsilons.

    ``advance``, ``source`` and ``prepared`` are those of :func:`robustfdd.measure.measure_sweep`.
    """
    grid = (0.0, *unit.eps)
    threats = [threat_of(unit.norm, eps, unit.eps_unit, subject.eps_scale) for eps in grid]
    results = measure_sweep(
        model,
        clean,
        unit.attack,
        threats,
        engine=get_engine(unit.engine),
        seed=attack_seed,
        batch_size=batch_size,
        advance=advance,
        protocol=unit.protocol,
        source=source,
        prepared=prepared,
    )
    return [
        Cell(
            study=subject.study,
            method=subject.method,
            dataset=test.dataset.name,
            seed=subject.seed,
            attack=unit.attack.name,
            norm=unit.norm,
            engine=unit.engine,
            protocol=unit.protocol,
            deterministic=unit.attack.deterministic,
            eps_pixel=threat.eps,
            eps_normalized=eps_in(threat, "normalized", subject.eps_scale),
            attack_seed=attack_seed,
            gradient_passes=result.gradient_passes,
            seconds=result.seconds,
            image_index=test.index.astype(np.int32),
            label=clean.labels.cpu().numpy().astype(np.int32),
            clean_prediction=clean.prediction.cpu().numpy().astype(np.int32),
            prediction=result.prediction,
            outcome=result.outcome,
            distance=result.distance,
            eot_samples=clean.eot_samples,
            repeated_accuracy=result.repeated_accuracy,
            precision=unit.precision,
        )
        for threat, result in zip(threats, results, strict=True)
    ]


def failure_of(
    unit: str, stage: str, method: str, seed: int, error: Exception, about: AttackUnit | None = None
) -> Failure:
    """The note about a unit that raised; ``about`` says which attack it was, if it was one."""
    return Failure(
        unit=unit,
        stage=stage,
        method=method,
        seed=seed,
        error=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        attack=about.attack.name if about else None,
        norm=about.norm if about else None,
        engine=about.engine if about else None,
    )


class Attacked:
    """A model under attack, with what its units share: clean predictions, prepared copies and the size of a batch.

    Args:
        model: the model.
        subject: what records call it.
        test: the images.
        attack_seed: of everything random in the attacks.
        batch_size: images attacked at once; chosen to fit memory when None.
        compile: see :func:`robustfdd.preparation.prepare`.
    """

    def __init__(
        self,
        model: nn.Module,
        subject: Subject,
        test: TestSet,
        *,
        attack_seed: int,
        batch_size: int | None,
        compile: bool,
    ) -> None:
        self.subject = subject
        self._model, self._test, self._attack_seed, self._compile = model, test, attack_seed, compile
        self._clean: CleanOutcome | None = None
        self._clean_batch = batch_size or FIXED
        self._sizes = BatchSize(batch_size)  # one for all units, so that what one finds out the next one knows
        self._prepared: dict[tuple[nn.Module, Precision], nn.Module] = {}

    def cells(self, unit: AttackUnit, advance: Callable[[float], None], source: nn.Module | None = None) -> list[Cell]:
        """Run one unit; ``source`` is the model that it is crafted on, None for this one."""
        if self._clean is None:
            self._clean = self._test.clean(self._model, self._clean_batch, self.subject.eot_samples)
        copy_of = (source or self._model, unit.precision)
        if copy_of not in self._prepared:
            sample = to_pixels(self._clean.images[:32])
            self._prepared[copy_of] = prepare(copy_of[0], sample, compile=self._compile, precision=unit.precision)
        return attack_cells(
            self._model,
            self._clean,
            unit,
            self.subject,
            self._test,
            attack_seed=self._attack_seed,
            batch_size=self._sizes,
            advance=advance,
            source=source,
            prepared=self._prepared[copy_of],
        )


def results_path(run: Path, unit: AttackUnit) -> Path:
    """Where the results of a unit lie."""
    return run / "results" / f"{unit.name}.parquet"


def has_result(run: Path, unit: AttackUnit, key: str) -> bool:
    """Whether the unit's result is there, whole and of that key."""
    return records.read_key(results_path(run, unit)) == key


def attack_model(
    run: Path,
    model: nn.Module,
    units: Sequence[AttackUnit],
    subject: Subject,
    test: TestSet,
    *,
    attack_seed: int,
    batch_size: int | None,
    display: Display,
    source: Source | None = None,
    compile: bool = False,
) -> list[Failure]:
    """Run the units of one model that are not done yet; the failures, which are also written down.

    ``source`` is for the units that are crafted on another model. For ``compile`` see
    :func:`robustfdd.preparation.prepare`.
    """
    failures = []
    sibling: nn.Module | None = None
    attacked = Attacked(model, subject, test, attack_seed=attack_seed, batch_size=batch_size, compile=compile)
    for unit in units:
        key = unit_key(unit, subject, test, attack_seed, source if unit.source else None)
        if has_result(run, unit, key):
            display.skip(unit.cost(len(test.index)))
            continue
        display.start(unit.title, unit.cost(len(test.index)))
        note = ""
        try:
            if unit.source and source and sibling is None:
                sibling = source.load()
            cells = attacked.cells(unit, display.advance, sibling if unit.source else None)
        except OutOfSpaceError:  # the others would fare no better
            raise
        except Exception as error:  # one failing unit must not take the others with it
            failure = failure_of(unit.name, "attack", unit.method, unit.seed, error, unit)
            results_path(run, unit).unlink(missing_ok=True)
            records.write_failure(run, failure)
            failures.append(failure)
            note = f"FAILED: {failure.error}: {failure.message}"
        else:
            records.write_cells(results_path(run, unit), cells, key=key)
            (run / "failures" / f"{unit.name}.json").unlink(missing_ok=True)
        display.finish(note)
    return failures
