"""A study as tasks: train a model; attack one model with one attack, norm and engine; audit a model.

A task says what it needs, and can be sent to another process, which performs it in the run directory that all share.
What it leaves there is a file under a key that hashes everything the result depends on: where a file of that key is
found, nothing is computed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from robustfdd import records
from robustfdd.audit.run import audit_cost
from robustfdd.audit.study import (
    AuditPlan,
    audit_name,
    audit_subject,
    is_audited,
    sibling_of,
    subject_of,
)
from robustfdd.audit.tables import discard_audit
from robustfdd.batching import FIXED
from robustfdd.catalogue import engines_for, resolve_attacks, sibling
from robustfdd.code_version import code_version
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import CheckpointError, RunDirectoryError, UnitError
from robustfdd.measure import FORWARD_COST
from robustfdd.models import ResNet18, build_model, file_sha256, load_model, parts_of, read_checkpoint
from robustfdd.progress import duration
from robustfdd.records import Failure
from robustfdd.rounding import fixed, share
from robustfdd.sources import Candidate, Origin, origin_of
from robustfdd.specs import Method, Recipe, StudySpec
from robustfdd.training import adopt_weights, train, training_code
from robustfdd.units import (
    Attacked,
    AttackUnit,
    Source,
    Subject,
    TestSet,
    failure_of,
    has_result,
    results_path,
    unit_key,
)

#: Cost of a training step per image, in input gradients and without those of adversarial training; only progress bars
#: depend on it.
TRAINING_COST = 1.5

Kind = Literal["train", "attack", "audit"]
Report = Callable[[float], None]


@dataclass(frozen=True)
class Task:
    """One unit of work of a study.

    Attributes:
        name: of the unit; failures are called by it.
        kind: what is done.
        title: what progress shows.
        method: label of the method whose model it is about.
        seed: of the model's training run.
        cost: in input gradients of one image.
        needs: names of the tasks that must be done before.
        unit: the attack, of kind ``"attack"``.
        weights_of: of kind ``"train"``: the task whose weights the network takes over instead of being trained.
    """

    name: str
    kind: Kind
    title: str
    method: str
    seed: int
    cost: float
    needs: tuple[str, ...] = ()
    unit: AttackUnit | None = None
    weights_of: str | None = None

    @property
    def model(self) -> str:
        """The name of the model that it is about, which is that of its training."""
        return f"{self.method}--seed{self.seed}"


@dataclass(frozen=True)
class Done:
    """A task that has its result.

    Attributes:
        note: what progress shows of it.
        found: whether the result was there already.
    """

    note: str = ""
    found: bool = False


@dataclass(frozen=True)
class Job:
    """What all tasks of a run share, in a form that can be sent to other processes and machines.

    Attributes:
        run: the run directory, absolute.
        study: what is run.
        manifest: of the run.
        data_root: where data sets lie, see :func:`robustfdd.load_dataset`.
        device: where to compute.
        audit: what is audited; None if nothing is.
        batch_size: images attacked at once; chosen to fit memory when None.
        compile: whether training and attacks go through ``torch.compile``.
    """

    run: Path
    study: StudySpec
    manifest: Mapping[str, Any]
    data_root: Path | None
    device: str
    audit: AuditPlan | None
    batch_size: int | None
    compile: bool


class Context:
    """What one process keeps between tasks: the data set, and the models last used.

    Args:
        job: the run.
        dataset: its data set, if it is loaded already.
    """

    def __init__(self, job: Job, dataset: Dataset | None = None) -> None:
        self.job = job
        self._dataset = dataset
        self._test: TestSet | None = None
        self._audit_test: TestSet | None = None
        self._attacked: Attacked | None = None
        self._source: tuple[str, nn.Module] | None = None

    @property
    def dataset(self) -> Dataset:
        """The data set of the run, on the device.

        Raises:
            UnitError: that of this machine is another one.
            DatasetError: it cannot be loaded.
        """
        return self.test.dataset

    @property
    def test(self) -> TestSet:
        """The test images that are attacked; raises as :attr:`dataset`."""
        if self._test is None:
            study = self.job.study
            data = self._dataset if self._dataset is not None else load_dataset(study.dataset, root=self.job.data_root)
            if data.sha256 != self.job.manifest["dataset"]["sha256"]:
                raise UnitError(f"the data set {study.dataset!r} on this machine is not the one of the run")
            self._test = TestSet.choose(data.to(self.job.device), study.test_images)
        return self._test

    @property
    def audit_test(self) -> TestSet:
        """The test images that audits look at; raises as :attr:`dataset`."""
        if self._audit_test is None:
            assert self.job.audit is not None
            n = min(self.job.audit.images, len(self.dataset.test.labels))
            self._audit_test = TestSet.choose(self.dataset, n)
        return self._audit_test

    def forget_models(self) -> None:
        """Give the memory of the models back."""
        self._attacked = self._source = None

    def attacked(self, task: Task) -> Attacked:
        """The model of an attack, loaded if it is not the one of the attack before."""
        subject = _subject(task, self.job)
        if self._attacked is None or self._attacked.subject != subject:
            self._attacked = None
            self._attacked = Attacked(
                load_model(checkpoint_path(self.job.run, task.model), self.job.device),
                subject,
                self.test,
                attack_seed=task.seed,
                batch_size=self.job.batch_size,
                compile=self.job.compile,
            )
        return self._attacked

    def source(self, source: Source) -> nn.Module:
        """A model that examples are crafted on, loaded if it is not the one of the attack before."""
        if self._source is None or self._source[0] != source.identity:
            self._source = (source.identity, source.load())
        return self._source[1]


def checkpoint_path(run: Path, model: str) -> Path:
    """Where the checkpoint of a model lies."""
    return run / "models" / f"{model}.safetensors"


def plan_attacks(study: StudySpec, n_classes: int | None = None) -> list[AttackUnit]:
    """The attack units of a study, model by model in the order of its methods and seeds.

    For ``n_classes`` see :func:`robustfdd.catalogue.resolve_attacks`.
    """
    attacks = resolve_attacks(study, n_classes)
    candidates = [_candidate(method) for method in study.methods]
    units: list[AttackUnit] = []
    for method in study.methods:
        for seed in study.seeds:
            origin = origin_of(candidates, study.seeds, method.label, seed)
            for use, spec in attacks:
                crafted_on = origin if spec.access == "transfer" else None
                if spec.access == "transfer" and crafted_on is None:  # from a model to itself it would be BIM
                    continue
                units += [
                    AttackUnit(
                        method.label,
                        seed,
                        spec,
                        norm,
                        engine,
                        tuple(eps for eps in grid if eps > 0),
                        study.eps_unit,
                        method.eot_samples or 0,
                        study.protocol,
                        crafted_on.method if crafted_on else None,
                        study.attack_precision,
                        crafted_on.seed if crafted_on else -1,
                    )
                    for norm, grid in use.eps.items()
                    for engine in engines_for(use, spec, norm, study)
                ]
    return units


def _candidate(method: Method) -> Candidate:
    options = DROPOUTS[method.dropout].settings(method.options)
    drops = DROPOUTS[method.dropout].dynamic and method.dropout != "none" and options.get("active") != "never"
    return Candidate(method.label, method.dropout, bool(method.recipe.given), bool(method.eot_samples), drops)


def cost_of_training(recipe: Recipe) -> float:
    """Of one image in one epoch, in input gradients."""
    return TRAINING_COST + recipe.n_gradients


def plan_tasks(
    study: StudySpec,
    units: Sequence[AttackUnit],
    *,
    n_train: int,
    n_test: int,
    described: Mapping[str, Any],
    audit: AuditPlan | None,
) -> list[Task]:
    """The tasks of a study, in the order in which a single worker performs them: model by model, the audits last.

    An attack with examples of a network that is trained later comes right after that one's own attacks.

    Args:
        study: what is planned.
        units: its attack units, see :func:`plan_attacks`.
        n_train: training images of its data set.
        n_test: test images of it.
        described: the study as the manifest describes it.
        audit: what is audited; None if nothing is.
    """
    n_attacked = n_test if study.test_images is None else min(study.test_images, n_test)
    crafted_on = sibling(study)
    # What others are attacked with comes first.
    methods = sorted(study.methods, key=lambda method: method != crafted_on)
    tasks: list[Task] = []
    for position, method in enumerate(methods):
        recipe = study.recipe_of(method)
        cost = cost_of_training(recipe) * recipe.epochs * n_train + FORWARD_COST * n_test
        for seed in study.seeds:
            name = f"{method.label}--seed{seed}"
            title = f"train {method.label} seed {seed} ({recipe.epochs} epochs)"
            donor = _undropped(study, method, methods[:position])
            weights_of = f"{donor.label}--seed{seed}" if donor else None
            needs = (weights_of,) if weights_of else ()
            tasks.append(
                Task(name, "train", title, method.label, seed, cost, needs=needs, weights_of=weights_of),
            )
            tasks += [
                Task(
                    unit.name,
                    "attack",
                    unit.title,
                    method.label,
                    seed,
                    unit.cost(n_attacked),
                    needs=(name, *([Origin(unit.source, unit.source_seed).model] if unit.source else [])),
                    unit=unit,
                )
                for unit in units
                if (unit.method, unit.seed) == (method.label, seed)
            ]
    if audit is not None:
        for method in study.methods:
            for seed in study.seeds:
                plain = sibling_of(described, method.label, seed)
                models = [f"{method.label}--seed{seed}", *([plain.model] if plain else [])]
                tasks.append(
                    Task(
                        audit_name(method.label, seed),
                        "audit",
                        f"audit {method.label} seed {seed}",
                        method.label,
                        seed,
                        audit_cost(min(audit.images, n_test)),
                        needs=tuple(models),
                    )
                )
    return _in_order(tasks)


def _in_order(tasks: Sequence[Task]) -> list[Task]:
    """The same tasks, each after those that it needs: what has to wait comes once all that it waits for are there.

    What belongs to one model stays together: a task that waited comes before the next training.
    """
    ordered: list[Task] = []
    there: set[str] = set()
    waiting: list[Task] = []
    for task in [*tasks, None]:
        if task is None or task.kind != "attack":
            ready = [other for other in waiting if there.issuperset(other.needs)]
            ordered += ready
            there |= {other.name for other in ready}
            waiting = [other for other in waiting if other not in ready]
        if task is not None:
            if there.issuperset(task.needs):
                ordered.append(task)
                there.add(task.name)
            else:
                waiting.append(task)
    assert not waiting, "a task needs one that is not planned"
    return ordered


def _undropped(study: StudySpec, method: Method, before: list[Method]) -> Method | None:
    """A method without dropout that comes before and whose network the method's own is, once it is trained.

    A layer that acts at test time only is put into it: trained by itself, it would come to the same weights.
    """
    if DROPOUTS[method.dropout].dynamic:
        return None
    recipe = study.recipe_of(method)
    return next((m for m in before if m.dropout == "none" and study.recipe_of(m) == recipe), None)


def is_done(task: Task, context: Context) -> bool:
    """Whether the result of a task is there, whole and of the same key; what it needs must be done.

    Raises:
        CheckpointError: a checkpoint that it needs is missing or damaged.
        UnitError: the data set of this machine is another one.
    """
    job = context.job
    if task.kind == "train":
        return state_of_checkpoint(task, context) == "finished"
    if task.kind == "attack":
        assert task.unit is not None
        return has_result(job.run, task.unit, _attack_key(task, context))
    assert job.audit is not None
    path = checkpoint_path(job.run, task.model)
    return is_audited(job.run, subject_of(job.run, job.manifest, job.audit, task.method, task.seed, path))


def perform(task: Task, context: Context, report: Report) -> Done | Failure:
    """Perform a task, unless its result is there; what goes wrong is a failure of this task alone.

    Args:
        task: what to do; the tasks that it needs must be done.
        context: what this process keeps; used for one task at a time.
        report: called with the cost of each step.
    """
    try:
        if task.kind == "train":
            context.forget_models()
        if is_done(task, context):
            return Done(found=True)
        note = {"train": _train, "attack": _attack, "audit": _audit}[task.kind](task, context, report)
    except Exception as error:  # one failing task must not take the others with it
        return failure_of(task.name, task.kind, task.method, task.seed, error, task.unit)
    return Done(note)


def discard(task: Task, run: Path) -> None:
    """Remove results of a task that are not of this run's model, or of no model of it."""
    if task.kind == "attack":
        assert task.unit is not None
        results_path(run, task.unit).unlink(missing_ok=True)
    elif task.kind == "audit":
        discard_audit(run, task.method, task.seed)


def _train(task: Task, context: Context, report: Report) -> str:
    job, dataset = context.job, context.dataset
    method = _method(task.method, job)
    recipe = job.study.recipe_of(method)
    path = checkpoint_path(job.run, task.name)
    model = fresh_model(task, context)
    if task.weights_of is not None:
        adopt_weights(model, checkpoint_path(job.run, task.weights_of), dataset, out=path, label=method.label)
        return f"weights of {task.weights_of}"
    train(
        model.to(job.device),
        dataset,
        recipe,
        seed=task.seed,
        out=path,
        label=method.label,
        advance=lambda n: report(cost_of_training(recipe) * n),
        compile=job.compile,
    )
    history = records.read_json(path.with_suffix(".json"))
    clean = 100 * share(history["clean_accuracy"], history["n_test"])
    resumed = f", taken up after epoch {history['resumed_after'][-1]}" if history["resumed_after"] else ""
    return f"clean accuracy {fixed(clean, 1)} %, {duration(history['seconds'])}{resumed}"


def fresh_model(task: Task, context: Context) -> ResNet18:
    """The network of a task's method and seed, with its first weights."""
    study = context.job.study
    method = _method(task.method, context.job)
    return build_model(
        context.dataset,
        method.dropout,
        width=study.model.width,
        normalization=study.normalization,
        placement=method.placement,
        seed=task.seed,
        **method.options,
    )


def state_of_checkpoint(task: Task, context: Context) -> Literal["finished", "of other code", "missing"]:
    """Whether the checkpoint of a training and its history are whole, and of the same network, recipe, seed and data.

    ``"of other code"`` if so but for the code that trained it, or where it does not say which code that was.
    """
    job = context.job
    path = checkpoint_path(job.run, task.name)
    method = _method(task.method, job)
    try:
        checkpoint = read_checkpoint(path)
        history = records.read_json(path.with_suffix(".json"))
        made_of = checkpoint.provenance
        # Validated, so that one that leaves a default out is the recipe that spells it out.
        trained_with = Recipe.model_validate(made_of.get("recipe"))
    except (CheckpointError, RunDirectoryError, ValidationError):
        return "missing"
    network = fresh_model(task, context)
    same = (
        checkpoint.config == network.config
        and trained_with == job.study.recipe_of(method)
        and made_of.get("seed") == task.seed
        and made_of.get("dataset_sha256") == context.dataset.sha256
        and history.get("sha256") == checkpoint.sha256
    )
    if not same:
        return "missing"
    if task.weights_of is not None:  # then that network was trained
        donor = next(m for m in job.study.methods if Origin(m.label, task.seed).model == task.weights_of)
        network = fresh_model(replace(task, method=donor.label), context)
    code = training_code(network, job.study.recipe_of(method))
    return "finished" if made_of.get("code") == code else "of other code"


def _method(label: str, job: Job) -> Method:
    return next(method for method in job.study.methods if method.label == label)


def _network(origin: Origin, job: Job) -> tuple[Path, str, str]:
    """The checkpoint of a network, its hash, and the version of the code that the network is made of."""
    path = checkpoint_path(job.run, origin.model)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    return path, file_sha256(path), code_version(parts=parts_of(_method(origin.method, job).dropout))


def _subject(task: Task, job: Job) -> Subject:
    assert task.unit is not None
    _, identity, code = _network(Origin(task.method, task.seed), job)
    scale = float(job.manifest["eps_scale"])
    return Subject(job.study.name, task.method, task.seed, scale, identity, task.unit.eot_samples, code)


def _source(task: Task, job: Job) -> Source | None:
    assert task.unit is not None
    if task.unit.source is None:
        return None
    origin = Origin(task.unit.source, task.unit.source_seed)
    path, identity, code = _network(origin, job)
    return Source(*origin, identity, code, lambda: load_model(path, job.device))


def _attack_key(task: Task, context: Context) -> str:
    assert task.unit is not None
    subject, source = _subject(task, context.job), _source(task, context.job)
    return unit_key(task.unit, subject, context.test, task.seed, source)


def _attack(task: Task, context: Context, report: Report) -> str:
    assert task.unit is not None
    key = _attack_key(task, context)
    source = _source(task, context.job)
    crafted_on = context.source(source) if source is not None else None
    cells = context.attacked(task).cells(task.unit, report, crafted_on)
    records.write_cells(results_path(context.job.run, task.unit), cells, key=key)
    return ""


def _audit(task: Task, context: Context, report: Report) -> str:
    job = context.job
    assert job.audit is not None
    context.forget_models()
    subject = subject_of(job.run, job.manifest, job.audit, task.method, task.seed, checkpoint_path(job.run, task.model))
    return audit_subject(
        job.run,
        subject,
        job.audit,
        context.audit_test,
        torch.device(job.device),
        job.batch_size or FIXED,
        report,
    )


def worker_name() -> str:
    """What status and progress call this process."""
    return f"{socket.gethostname()}:{os.getpid()}"
