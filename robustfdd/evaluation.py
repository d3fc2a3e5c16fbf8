"""From a study to records: plan the units, train the models, attack them, write each result as it comes.

A finished unit is not computed again when its key (everything its result depends on) is still the same. A unit that
fails is noted with its reason and the others go on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console
from torch import nn

from robustfdd import catalogue, records
from robustfdd.ascent import cross_entropy, input_gradient
from robustfdd.audit.study import plan_of
from robustfdd.batching import FIXED, BatchSize
from robustfdd.catalogue import load_attack, load_study
from robustfdd.classifier import device_of, frozen
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.datasets.base import to_pixels
from robustfdd.dropouts import DROPOUTS, build_dropout, check_options
from robustfdd.engines import get_engine
from robustfdd.errors import ConfigurationError, DatasetError, RobustFDDError, UnitError
from robustfdd.executors import Executor, Inline, coordinate
from robustfdd.locking import exclusive, resolved
from robustfdd.manifest import (
    check_run_directory,
    check_same_run,
    describe_model,
    describe_study,
    make_manifest,
    open_run,
)
from robustfdd.measure import CleanOutcome, check_source
from robustfdd.models import ResNet18, check_same_data
from robustfdd.preparation import check_compiler, prepare
from robustfdd.progress import Display
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import (
    AttackSpec,
    AttackUse,
    EngineName,
    EpsUnit,
    Method,
    Precision,
    Protocol,
    StudySpec,
    eps_in,
    pixel_eps,
    unit_asked_for,
)
from robustfdd.tasks import Context, Job, Task, fresh_model, is_done, plan_attacks, plan_tasks
from robustfdd.threat import Threat
from robustfdd.units import (
    AttackUnit,
    Source,
    Subject,
    TestSet,
    attack_cells,
    attack_model,
    function_digest,
)

#: What records call a model that was given to craft a transfer attack on.
SOURCE = "source"


def resolve_device(name: str | torch.device) -> torch.device:
    """The torch device of that name.

    Raises:
        ConfigurationError: there is no such device on this machine.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"--device {name}: no device of torch; allowed: cpu, cuda, cuda:INDEX") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigurationError(
                f"--device {name}: torch sees {count} CUDA devices on this machine; use --device cpu"
            )
    elif device.type != "cpu":
        raise ConfigurationError(f"--device {name}: allowed: cpu, cuda, cuda:INDEX")
    return device


def _check_methods(study: StudySpec, source: str) -> None:
    for method in study.methods:
        try:
            check_options(method.dropout, method.options)
            layer = build_dropout(method.dropout, n_units=1, **method.options)
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}: methods: {method.label}: {error}") from None
        random = getattr(layer, "random_in_evaluation", False)
        if random and method.eot_samples is None:
            raise ConfigurationError(
                f"{source}: methods: {method.label}: the model is random in evaluation, where an attack needs the mean "
                "of several gradients; say of how many with eot_samples, e.g. eot_samples = 16"
            )
        if method.eot_samples is not None and not random:
            raise ConfigurationError(
                f"{source}: methods: {method.label}: eot_samples is for models that are random in evaluation, and this "
                "one is not; leave it out"
            )
        allowed = DROPOUTS[method.dropout].placements
        if method.placement not in allowed:
            raise ConfigurationError(
                f"{source}: methods: {method.label}: placement {method.placement!r}; allowed: {', '.join(allowed)}"
            )


def _check_engines(units: Sequence[AttackUnit], eps_scale: float) -> None:
    """Ask each engine whether it has what is planned, at the largest radius, before anything is trained or written."""
    for unit in {(unit.attack.name, unit.norm, unit.engine): unit for unit in units}.values():
        eps = pixel_eps(unit.eps[-1], unit.eps_unit, eps_scale)
        get_engine(unit.engine).check(unit.attack, Threat(unit.norm, eps))


def plan(study: StudySpec) -> list[AttackUnit]:
    """The attack units of a study, model by model in the order of its methods and seeds."""
    return plan_attacks(study)


@dataclass(frozen=True)
class Prepared:
    """A study that was checked, with its data loaded and its tasks planned; nothing is written yet.

    Attributes:
        tasks: in the order in which a single worker performs them.
        job: what they share.
        context: with the data set.
    """

    tasks: list[Task]
    job: Job
    context: Context


def prepare_evaluation(
    name_or_path: str | Path,
    *,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    data_root: Path | None = None,
    batch_size: int | None = None,
    compile: bool = False,
    audit: bool = False,
    executor: Executor | None = None,
    command: str | None = None,
) -> Prepared:
    """Check a study and plan its tasks; the arguments and what is raised are those of :func:`run_evaluation`."""
    study = load_study(name_or_path, overrides, only)
    _check_methods(study, str(name_or_path))
    local = executor is None or executor.local
    target = resolve_device(device) if local else torch.device(device)
    if compile:
        check_compiler(target)
    run = Path(out) if out is not None else Path("runs") / study.name
    try:
        dataset = load_dataset(study.dataset, root=data_root)
    except DatasetError as error:
        raise DatasetError(f"{name_or_path}: dataset: {error}") from error
    TestSet.choose(dataset, study.test_images)
    eps_scale = dataset.std if study.normalization == "z-score" else 1.0
    units = plan(study)
    _check_engines(units, eps_scale)
    manifest = make_manifest(
        describe_study(study),
        dataset,
        units,
        eps_scale=eps_scale,
        overrides=[*overrides, *(f"only {label}" for label in only)],
        command=command,
        device=target,
        hardware=executor.hardware(target) if executor is not None else None,
    )
    audited = plan_of(manifest) if audit else None
    tasks = plan_tasks(
        study,
        n_train=len(dataset.train.labels),
        n_test=len(dataset.test.labels),
        described=manifest["study"],
        audit=audited,
    )
    root = resolved(data_root) if data_root is not None else None
    job = Job(resolved(run), study, manifest, root, str(target), audited, batch_size, compile)
    # Of a cluster's devices this machine may have none; what is done already can be seen without.
    return Prepared(tasks, job, Context(job if local else replace(job, device="cpu"), dataset))


def done_already(prepared: Prepared) -> set[str]:
    """Names of the tasks whose results are in the run directory already; nothing in it is touched.

    Raises:
        RunDirectoryError: it holds another run.
    """
    if check_same_run(prepared.job.run, prepared.job.manifest) is None:
        return set()
    done: set[str] = set()
    for task in prepared.tasks:
        if done.issuperset(task.needs):
            with suppress(RobustFDDError, UnitError):  # what is damaged is not done
                if is_done(task, prepared.context):
                    done.add(task.name)
    return done


def seconds_per_pass(prepared: Prepared, *, repeats: int = 3) -> float:
    """How long an input gradient of one image takes on this machine, timed on a fresh network of the study.

    Args:
        prepared: the study; the model that is trained first is used, with the size of batches that attacks have.
        repeats: batches to time, after one that is not; the median counts.
    """
    job, dataset = prepared.job, prepared.context.dataset
    first = prepared.tasks[0]
    random = any(method.eot_samples for method in job.study.methods if method.label == first.method)
    model = fresh_model(first, prepared.context).to(job.device)
    images, labels = dataset.test.images, dataset.test.labels
    quick = prepare(model.eval(), to_pixels(images[:32]))
    size = BatchSize(job.batch_size).choose(quick, to_pixels(images[:1]), random=random)
    n = min(size, len(images))
    x, y = to_pixels(images[:n]), labels[:n]
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        with frozen(quick), GlobalRandomness(0):
            gradient = input_gradient(quick, x, y, cross_entropy)[2]
        float(gradient.sum())  # waits for the device
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:]) / n


def run_evaluation(
    name_or_path: str | Path,
    *,
    out: str | Path | None = None,
    device: str | torch.device = "cpu",
    resume: bool = True,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    data_root: Path | None = None,
    batch_size: int | None = None,
    compile: bool = False,
    executor: Executor | None = None,
    audit: bool = False,
    console: Console | None = None,
    command: str | None = None,
) -> Path:
    """Run a study: train its models, attack them, write the records.

    Args:
        name_or_path: a study of ``robustfdd list``, or the path of a study file.
        out: the run directory; ``runs/NAME`` when None.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:INDEX"``.
        resume: go on with a run of the same study found in ``out``; an error when False.
        overrides: ``"dotted.key=value"`` changes to the study, kept in the manifest.
        only: labels of the methods to run; all when empty.
        data_root: where data sets lie or are downloaded to; see :func:`robustfdd.load_dataset`.
        batch_size: images attacked at once; no result depends on it, but for models whose forward is random. Chosen
            to fit memory when None (:mod:`robustfdd.batching`), and halved when it does not.
        compile: whether training and the passes of attacks go through ``torch.compile``, see
            :func:`robustfdd.training.fit` and :func:`robustfdd.preparation.prepare`.
        executor: where the units are computed; in this process, one after the other, when None.
        audit: whether to audit the models too, see :func:`robustfdd.audit.audit_run`.
        console: where to show progress; nowhere when None.
        command: the command line, for the manifest.

    Returns:
        The run directory. Units that failed are under its ``failures/``, see :func:`robustfdd.records.load_run`.

    Raises:
        ConfigurationError: the study, an override or the device is wrong.
        DatasetError: the data set cannot be loaded.
        RunDirectoryError: ``out`` holds another run.
        RunLockedError: another process works in ``out``.
    """
    prepared = prepare_evaluation(
        name_or_path,
        out=out,
        device=device,
        overrides=overrides,
        only=only,
        data_root=data_root,
        batch_size=batch_size,
        compile=compile,
        audit=audit,
        executor=executor,
        command=command,
    )
    tasks, job, study = prepared.tasks, prepared.job, prepared.job.study
    run = Path(out) if out is not None else Path("runs") / study.name
    check_run_directory(run)
    with exclusive(run), Display(sum(task.cost for task in tasks), console) as display:
        open_run(run, job.manifest, resume=resume)
        n_models, n_attacks = (sum(task.kind == kind for task in tasks) for kind in ("train", "attack"))
        display.say(
            f"{study.title}: models {n_models}, attack runs {n_attacks}; {len(prepared.context.test.index)} test "
            f"images of {prepared.context.dataset.title}, on {job.device}, into {run}"
        )
        coordinate(tasks, job, prepared.context, executor or Inline(), display)
    return run


def _given(source: nn.Module | None, clean: CleanOutcome) -> Source | None:
    """A model that was given to craft transfer attacks on."""
    return None if source is None else Source(SOURCE, function_digest(source, clean), lambda: source)


def _radii(grid: Sequence[Threat], unit: EpsUnit, scale: float) -> tuple[float, ...]:
    return tuple(eps_in(threat, unit, scale) for threat in grid)


def _unit(grid: Sequence[Threat], scale: float) -> EpsUnit:
    """The unit in which all radii of a norm were asked for; pixels where they are in both."""
    return "normalized" if {unit_asked_for(threat, scale) for threat in grid} == {"normalized"} else "pixel"


def evaluate(
    model: nn.Module,
    dataset: Dataset | str,
    attacks: Sequence[str | AttackSpec],
    threats: Sequence[Threat],
    *,
    engines: Sequence[EngineName] = ("foolbox",),
    out: str | Path | None = None,
    label: str = "model",
    eps_scale: float | None = None,
    eps_unit: EpsUnit = "pixel",
    test_images: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    eot_samples: int = 0,
    protocol: Protocol = "paper",
    source: nn.Module | None = None,
    precision: Precision = "fp32",
    compile: bool = False,
    console: Console | None = None,
    command: str | None = None,
) -> pd.DataFrame:
    """Attack anybody's trained classifier and record what became of every test image.

    Args:
        model: any torch module: pixels in [0, 1] in, logits out, normalisation inside.
        dataset: a data set or the name of one; it is moved to the device of the model.
        attacks: names, paths of attack files, or specifications.
        threats: norms and radii in pixel units, ascending in each norm; every attack runs at each of them and at 0.
            Records hold exactly what was asked for, also where that was in normalised units
            (:func:`robustfdd.specs.threat_of`).
        engines: each attack runs through those of them that offer it; reports show the first.
        out: a run directory to write, from which :func:`robustfdd.write_report` makes a report; only the return value
            when None.
        label: what records call the model.
        eps_scale: pixel epsilon = normalised epsilon times this. When None: the standard deviation that a model of
            this package divides by, and that of the data set for any other.
        eps_unit: the unit that the report names first.
        test_images: how many test images are attacked, chosen evenly over the classes; all when None.
        seed: of everything random in the attacks.
        batch_size: images attacked at once; no result depends on it, but for models whose forward is random. Chosen
            to fit memory when None (:mod:`robustfdd.batching`), and halved when it does not.
        eot_samples: for a model whose forward is random in evaluation, and only for such a one: passes that an attack
            averages for one gradient, from 1.
        protocol: ``"paper"`` or ``"strong"``, see :class:`robustfdd.specs.StudySpec`.
        source: another classifier, deterministic in evaluation, on which attack ``transfer`` is crafted; needed for
            that one and used by no other.
        precision: of the passes that attacks make, see :class:`robustfdd.specs.StudySpec`.
        compile: whether those passes go through ``torch.compile``, see :func:`robustfdd.preparation.prepare`.
        console: where to show progress; nowhere when None.
        command: the command line, for the manifest.

    Returns:
        One row a cell, with the columns of :data:`robustfdd.records.SCHEMA`.

    Raises:
        ConfigurationError: an attack, engine or label is unknown or wrong, or an attack is offered by none of the
            engines in a norm, or lacks its source.
        DatasetError: the data set cannot be loaded.
        ModelContractError: the model does not keep the contract.
        RunDirectoryError: ``out`` holds another run.
        EngineError: an attack failed, and there is no ``out`` to note it in.
    """
    specs = [a if isinstance(a, AttackSpec) else load_attack(a) for a in attacks]
    if protocol == "strong":
        specs = [spec.strengthened() for spec in specs]
    sources = {spec.name: source if spec.access == "transfer" else None for spec in specs}
    for spec in specs:
        check_source(spec, sources[spec.name])
    for kind, names in (("attack", [spec.name for spec in specs]), ("engine", list(engines))):
        if len(set(names)) < len(names):
            raise ConfigurationError(f"evaluate: an {kind} is given more than once: {', '.join(names)}")
    engines = [get_engine(name).name for name in engines]
    grids = {threat.norm: [other for other in threats if other.norm == threat.norm] for threat in threats}
    if not specs or not grids or not engines:
        raise ConfigurationError("evaluate needs at least one attack, one threat and one engine")
    data = load_dataset(dataset) if isinstance(dataset, str) else dataset
    if isinstance(model, ResNet18):
        check_same_data(model.config, data, label)
    if eps_scale is None:
        eps_scale = model.config.std if isinstance(model, ResNet18) else data.std
    study_eps = {norm: _radii(grid, eps_unit, eps_scale) for norm, grid in grids.items()}
    # What is attacked, and recorded, are the radii in the unit in which they were asked for, to the last bit.
    asked = {norm: _unit(grid, eps_scale) for norm, grid in grids.items()}
    uses = [catalogue.parse(AttackUse, {"name": spec.name, "eps": study_eps}, "evaluate: threats") for spec in specs]
    catalogue.parse(Method, {"dropout": label}, "evaluate: label")
    units = [
        AttackUnit(
            label,
            -1,
            spec,
            norm,
            engine,
            tuple(eps for eps in _radii(grid, asked[norm], eps_scale) if eps > 0),
            asked[norm],
            eot_samples,
            protocol,
            SOURCE if spec.access == "transfer" else None,
            precision,
        )
        for spec in specs
        for norm, grid in grids.items()
        for engine in spec.offered(norm, engines)
    ]
    _check_engines(units, eps_scale)
    test = TestSet.choose(data.to(device_of(model)), test_images)
    clean = test.clean(model, batch_size or FIXED, eot_samples)
    subject = Subject(label, label, -1, eps_scale, function_digest(model, clean), eot_samples)
    total = sum(unit.cost(len(test.index)) for unit in units)
    if out is None:
        sample = to_pixels(clean.images[:32])
        prepared: dict[str | None, nn.Module] = {None: prepare(model, sample, compile=compile, precision=precision)}
        if source is not None:
            prepared[SOURCE] = prepare(source, sample, compile=compile, precision=precision)
        sizes = BatchSize(batch_size)
        with Display(total, console) as display:
            rows = []
            for unit in units:
                display.start(f"{unit.attack.title} {unit.norm} through {unit.engine}", unit.cost(len(test.index)))
                cells = attack_cells(
                    model,
                    clean,
                    unit,
                    subject,
                    test,
                    attack_seed=seed,
                    batch_size=sizes,
                    advance=display.advance,
                    source=sources[unit.attack.name],
                    prepared=prepared[unit.source],
                )
                rows += [cell.row() for cell in cells]
                display.finish()
        frame: pd.DataFrame = pd.DataFrame(rows, columns=list(records.SCHEMA.names))
        frame["survival_rate"] = frame["survival_rate"].astype(float)  # None, where nothing was attacked, becomes NaN
        return frame

    study = describe_model(
        model,
        subject,
        data,
        list(zip(uses, specs, strict=True)),
        engines=engines,
        eps_unit=eps_unit,
        test_images=test_images,
        protocol=protocol,
        source=SOURCE,
        precision=precision,
    )
    manifest = make_manifest(
        study, data, units, eps_scale=eps_scale, overrides=[], command=command, device=device_of(model)
    )
    run = Path(out)
    check_run_directory(run)
    crafted_on = _given(source, clean)
    with exclusive(run), Display(total, console) as display:
        open_run(run, manifest, resume=True)
        attack_model(
            run,
            model,
            units,
            subject,
            test,
            attack_seed=seed,
            batch_size=batch_size,
            display=display,
            source=crafted_on,
            compile=compile,
        )
    written: pd.DataFrame = records.load_run(run).cells.drop(columns="unit")
    return written
