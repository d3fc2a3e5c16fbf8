"""From a study to records: plan the units, train the models, attack them, write each result as it comes.

A finished unit is not computed again when its key (everything its result depends on) is still the same. A unit that
fails is noted with its reason and the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from robustfdd import catalogue, records
from robustfdd.batching import FIXED, BatchSize
from robustfdd.catalogue import engines_for, load_attack, load_study, resolve_attacks, sibling
from robustfdd.classifier import device_of
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.datasets.base import to_pixels
from robustfdd.dropouts import DROPOUTS, build_dropout
from robustfdd.engines import get_engine
from robustfdd.errors import CheckpointError, ConfigurationError, DatasetError, RunDirectoryError
from robustfdd.manifest import describe_model, describe_study, make_manifest, open_run
from robustfdd.measure import FORWARD_COST, check_source
from robustfdd.models import ResNet18, build_model, check_same_data, file_sha256, load_model, read_checkpoint
from robustfdd.preparation import check_compiler, prepare
from robustfdd.progress import Display, duration
from robustfdd.specs import (
    AttackSpec,
    AttackUse,
    EngineName,
    EpsUnit,
    Method,
    Precision,
    Protocol,
    Recipe,
    StudySpec,
    normalized_eps,
    pixel_eps,
)
from robustfdd.threat import Norm, Threat
from robustfdd.training import adopt_weights, train
from robustfdd.units import (
    AttackUnit,
    Source,
    Subject,
    TestSet,
    attack_cells,
    attack_model,
    failure_of,
    function_digest,
)

#: Cost of a training step per image, in input gradients and without those of adversarial training; only progress bars
#: depend on it.
TRAINING_COST = 1.5
#: What records call a model that was given to craft a transfer attack on.
SOURCE = "source"


def _cost_of_training(recipe: Recipe) -> float:
    """Of one image in one epoch, in input gradients."""
    return TRAINING_COST + recipe.n_gradients


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
    attacks, crafted_on = resolve_attacks(study), sibling(study)
    return [
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
            crafted_on.label if crafted_on and spec.access == "transfer" else None,
            study.attack_precision,
        )
        for method in study.methods
        for seed in study.seeds
        for use, spec in attacks
        if not (spec.access == "transfer" and method == crafted_on)  # from a model to itself it would be BIM
        for norm, grid in use.eps.items()
        for engine in engines_for(use, spec, norm, study)
    ]


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
        compile: whether the passes of attacks go through ``torch.compile``, see
            :func:`robustfdd.preparation.prepare`.
        console: where to show progress; nowhere when None.
        command: the command line, for the manifest.

    Returns:
        The run directory. Units that failed are under its ``failures/``, see :func:`robustfdd.records.load_run`.

    Raises:
        ConfigurationError: the study, an override or the device is wrong.
        DatasetError: the data set cannot be loaded.
        RunDirectoryError: ``out`` holds another run.
    """
    study = load_study(name_or_path, overrides, only)
    _check_methods(study, str(name_or_path))
    target = resolve_device(device)
    if compile:
        check_compiler(target)
    run = Path(out) if out is not None else Path("runs") / study.name
    try:
        dataset = load_dataset(study.dataset, root=data_root)
    except DatasetError as error:
        raise DatasetError(f"{name_or_path}: dataset: {error}") from error
    n_test = len(dataset.test.labels)
    test = TestSet.choose(dataset.to(target), study.test_images)
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
    )
    open_run(run, manifest, resume=resume)

    training_costs = {
        method.label: _cost_of_training(recipe) * recipe.epochs * len(dataset.train.labels) + FORWARD_COST * n_test
        for method in study.methods
        for recipe in [study.recipe_of(method)]
    }
    n_models = len(study.methods) * len(study.seeds)
    total = len(study.seeds) * sum(training_costs.values()) + sum(unit.cost(len(test.index)) for unit in units)
    with Display(total, console) as display:
        display.say(
            f"{study.title}: models {n_models}, attack runs {len(units)}; {len(test.index)} test images of "
            f"{dataset.title}, on {target}, into {run}"
        )
        # What others are attacked with comes first.
        crafted_on = sibling(study)
        sources: dict[int, Source] = {}
        for method in sorted(study.methods, key=lambda method: method != crafted_on):
            training_cost = training_costs[method.label]
            for seed in study.seeds:
                mine = [unit for unit in units if (unit.method, unit.seed) == (method.label, seed)]
                name = f"{method.label}--seed{seed}"
                try:
                    model = _trained(run, name, study, method, seed, test.dataset, training_cost, display)
                except Exception as error:  # one failing model must not take the others with it
                    failure = failure_of(name, "train", method.label, seed, error)
                    records.write_failure(run, failure)
                    for unit in mine:  # results of an earlier model are not this one's
                        (run / "results" / f"{unit.name}.parquet").unlink(missing_ok=True)
                    display.finish(f"FAILED: {failure.error}: {failure.message}")
                    display.skip(sum(unit.cost(len(test.index)) for unit in mine))
                    continue
                path = run / "models" / f"{name}.safetensors"
                identity = file_sha256(path)
                if method == crafted_on:
                    sources[seed] = Source(method.label, identity, partial(load_model, path, target))
                subject = Subject(study.name, method.label, seed, eps_scale, identity, method.eot_samples or 0)
                attack_model(
                    run,
                    model,
                    mine,
                    subject,
                    test,
                    attack_seed=seed,
                    batch_size=batch_size,
                    display=display,
                    source=sources.get(seed),
                    compile=compile,
                )
    return run


def _trained(
    run: Path,
    name: str,
    study: StudySpec,
    method: Method,
    seed: int,
    dataset: Dataset,
    cost: float,
    display: Display,
) -> ResNet18:
    """The model of one method and seed: loaded if its checkpoint is of the same recipe and data, else trained."""
    path = run / "models" / f"{name}.safetensors"
    recipe = study.recipe_of(method)
    display.start(f"train {method.label} seed {seed} ({recipe.epochs} epochs)", cost)
    model = build_model(
        dataset,
        method.dropout,
        width=study.model.width,
        normalization=study.normalization,
        placement=method.placement,
        seed=seed,
        **method.options,
    )
    if _is_of(path, model, recipe, seed, dataset):
        display.skip(cost)
        return load_model(path, dataset.test.images.device)
    if not DROPOUTS[method.dropout].dynamic and (trained := _undropped(run, study, recipe, seed, dataset)):
        checkpoint = adopt_weights(model, trained, dataset, out=path, label=method.label)
        display.finish(f"weights of {trained.stem}")
        return load_model(checkpoint.path, dataset.test.images.device)
    checkpoint = train(
        model.to(dataset.test.images.device),
        dataset,
        recipe,
        seed=seed,
        out=path,
        label=method.label,
        advance=lambda n: display.advance(_cost_of_training(recipe) * n),
    )
    (run / "failures" / f"{name}.json").unlink(missing_ok=True)
    history = records.read_json(path.with_suffix(".json"))
    display.finish(f"clean accuracy {100 * history['clean_accuracy']:.1f} %, {duration(history['seconds'])}")
    return load_model(checkpoint.path, dataset.test.images.device)


def _undropped(run: Path, study: StudySpec, recipe: Recipe, seed: int, dataset: Dataset) -> Path | None:
    """The run's network of that recipe and seed that was trained without dropout, if it has one.

    A layer that acts at test time only is put into it: trained by itself, it would come to the same weights.
    """
    for method in study.methods:
        path = run / "models" / f"{method.label}--seed{seed}.safetensors"
        if method.dropout == "none" and path.is_file():
            width, normalization = study.model.width, study.normalization
            model = build_model(dataset, "none", width=width, normalization=normalization, placement=method.placement)
            if _is_of(path, model, recipe, seed, dataset):
                return path
    return None


def _is_of(path: Path, model: ResNet18, recipe: Recipe, seed: int, dataset: Dataset) -> bool:
    """Whether the checkpoint and its history are whole and came from the same network, recipe, seed and data."""
    try:
        checkpoint = read_checkpoint(path)
        history = records.read_json(path.with_suffix(".json"))
        made_of = checkpoint.provenance
        # Validated, so that one that leaves a default out is the recipe that spells it out.
        trained_with = Recipe.model_validate(made_of.get("recipe"))
    except (CheckpointError, RunDirectoryError, ValidationError):
        return False
    return (
        checkpoint.config == model.config
        and trained_with == recipe
        and made_of.get("seed") == seed
        and made_of.get("dataset_sha256") == dataset.sha256
        and history.get("sha256") == checkpoint.sha256
    )


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
    grids: dict[Norm, list[float]] = {}
    for threat in threats:
        grids.setdefault(threat.norm, []).append(threat.eps)
    if not specs or not grids or not engines:
        raise ConfigurationError("evaluate needs at least one attack, one threat and one engine")
    data = load_dataset(dataset) if isinstance(dataset, str) else dataset
    if isinstance(model, ResNet18):
        check_same_data(model.config, data, label)
    if eps_scale is None:
        eps_scale = model.config.std if isinstance(model, ResNet18) else data.std
    study_eps: dict[Norm, tuple[float, ...]] = {
        norm: tuple(normalized_eps(e, "pixel", eps_scale) if eps_unit == "normalized" else e for e in grid)
        for norm, grid in grids.items()
    }
    uses = [catalogue.parse(AttackUse, {"name": spec.name, "eps": study_eps}, "evaluate: threats") for spec in specs]
    catalogue.parse(Method, {"dropout": label}, "evaluate: label")
    units = [
        AttackUnit(
            label,
            -1,
            spec,
            norm,
            engine,
            tuple(e for e in grid if e > 0),
            eps_unit,
            eot_samples,
            protocol,
            SOURCE if spec.access == "transfer" else None,
            precision,
        )
        for spec, use in zip(specs, uses, strict=True)
        for norm, grid in use.eps.items()
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
                    display=display,
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
    open_run(run, manifest, resume=True)
    given = source  # what a lambda returns must not be another thing later
    crafted_on = Source(SOURCE, function_digest(given, clean), lambda: given) if given is not None else None
    with Display(total, console) as display:
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
