"""The analyses of all models of a run: those that are missing or stale are made, one failing leaves the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from robustfdd import records
from robustfdd.analysis.base import ANALYSES, Analysis, AnalysisUnavailableError, TrainedModel
from robustfdd.catalogue import parse
from robustfdd.code_version import code_version
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.dropouts import DROPOUTS
from robustfdd.errors import CheckpointError, ConfigurationError, DatasetError, OutOfSpaceError, RunDirectoryError
from robustfdd.models import Checkpoint, check_same_data, load_model, own_config, parts_of, read_checkpoint
from robustfdd.progress import Display
from robustfdd.randomness import GlobalRandomness
from robustfdd.records import Failure
from robustfdd.specs import Recipe, is_name
from robustfdd.text import shown
from robustfdd.units import content_digest, failure_of

#: What the file of a checkpoint may be called.
_CHECKPOINT = re.compile(r"[\w][\w.-]{0,99}\.safetensors", re.ASCII)
#: Of everything random in an analysis.
SEED = 0


@dataclass(frozen=True)
class Note:
    """An analysis that was not made, and why.

    Attributes:
        kind: ``"failed"``: it raised, and is noted under the run's ``failures/``; ``"skipped"``: something that it
            needs is not on this machine.
        analysis: its name; None when it concerns all of them.
        method: of the model; None when it concerns all of them.
        seed: of the model; None when it concerns all of them.
        message: the reason.
        failure: what was noted, for a failed one.
    """

    kind: Literal["failed", "skipped"]
    analysis: str | None
    method: str | None
    seed: int | None
    message: str
    failure: Failure | None = None

    def __str__(self) -> str:
        about = [f"analysis {self.analysis}" if self.analysis else "all analyses"]
        if self.method is not None:
            about.append(f"of {self.method} seed {self.seed}")
        return f"{' '.join(about)} {self.kind}: {self.message}"


@dataclass(frozen=True)
class _Task:
    """One analysis of one model that is to be made."""

    analysis: Analysis
    key: str


def trained_model(run: Path, model: Mapping[str, Any]) -> tuple[str, int, Path]:
    """Method, seed and checkpoint of a model, by its JSON file, which may be somebody else's.

    Raises:
        RunDirectoryError: method or checkpoint are no names, so that they could lead out of the run directory.
        KeyError: something is missing.
        TypeError: the seed is no number.
        ValueError: the same.
    """
    method, seed, file = str(model["method"]), int(model["seed"]), str(model["checkpoint"])
    if not is_name(method):
        raise RunDirectoryError(f"{run / 'models'}: a model is of the method {shown(method)}, which is no name")
    if not _CHECKPOINT.fullmatch(file):
        raise RunDirectoryError(
            f"{run / 'models'}: a model of {method} has the checkpoint {shown(file)}; allowed: the name of a "
            ".safetensors file in that folder"
        )
    return method, seed, run / "models" / file


def analyse_run(
    run: Path,
    *,
    data_root: Path | None = None,
    device: str | torch.device = "cpu",
    console: Console | None = None,
    dataset: Dataset | None = None,
) -> list[Note]:
    """Make the analyses of a run's checkpoints that are missing or stale.

    A result is stale when it came from another checkpoint, other data, other code of the analysis or other settings; a
    duration also when it came from another type of device.

    Args:
        run: the run directory.
        data_root: where data sets lie or are downloaded to; see :func:`robustfdd.load_dataset`.
        device: where to compute.
        console: where to show progress; nowhere when None.
        dataset: the run's data set, if it is loaded already.

    Returns:
        What was not made, and why; empty when everything is there.

    Raises:
        RunDirectoryError: it is no run directory, or its manifest or the JSON file of a model is damaged.
    """
    manifest = records.read_manifest(run)
    models = records.read_models(run)
    if not models:
        return []
    try:
        study, data_sha256 = manifest["study"], manifest["dataset"]["sha256"]
        named, source = study["dataset"], f"{run / 'manifest.json'}: recipe"
        recipes = {
            str(method["label"]): parse(Recipe, {**study["recipe"], **method.get("recipe", {})}, source)
            for method in study["methods"]
        }
        described = [trained_model(run, model) for model in models]
        recipes = {method: recipes[method] for method, *_ in described}
    except (KeyError, TypeError, ValueError, ConfigurationError) as error:
        raise RunDirectoryError(f"{run}: the manifest or a model lacks what an analysis needs ({error!r})") from error

    notes: list[Note] = []
    plan: list[tuple[str, int, Path, list[_Task]]] = []
    for method, seed, path in described:
        try:
            checkpoint = read_checkpoint(path)
            _check_dropout(checkpoint)
            tasks = _tasks(run, checkpoint, method, seed, data_sha256, torch.device(device))
        except CheckpointError as error:
            notes.append(Note("skipped", None, method, seed, str(error)))
            continue
        if tasks:
            plan.append((method, seed, path, tasks))
    if not plan:
        return notes

    try:
        data = dataset if dataset is not None else load_dataset(named, root=data_root)
    except DatasetError as error:
        return [*notes, Note("skipped", None, None, None, f"the data set cannot be loaded: {error}")]
    if data.sha256 != data_sha256:
        message = f"the data set {named!r} on this machine is not the one of the run"
        return [*notes, Note("skipped", None, None, None, message)]
    data = data.to(device)

    with Display(sum(len(tasks) for *_, tasks in plan), console) as display:
        for method, seed, path, tasks in plan:
            try:
                model = load_model(path, device)
                check_same_data(model.config, data, path)
            except (CheckpointError, DatasetError) as error:
                notes.append(Note("skipped", None, method, seed, str(error)))
                display.skip(len(tasks))
                continue
            trained = TrainedModel(model, data, recipes[method])
            for task in tasks:
                note = _make(run, task, trained, method, seed, display)
                notes += [note] if note else []
    return notes


def _check_dropout(checkpoint: Checkpoint) -> None:
    """Make sure that the network of a checkpoint can be built in this process.

    Raises:
        CheckpointError: it is somebody else's, or its dropout was registered in another process.
    """
    name = own_config(checkpoint).dropout
    if name not in DROPOUTS:
        raise CheckpointError(
            f"{checkpoint.path}: its dropout {name!r} is not registered in this process; import the module that does, "
            "and analyse from Python"
        )


def _tasks(
    run: Path, checkpoint: Checkpoint, method: str, seed: int, data_sha256: str, device: torch.device
) -> list[_Task]:
    """What is to be made of one checkpoint; results of analyses that do not concern it (any more) are removed."""
    config = own_config(checkpoint)
    tasks = []
    for analysis in ANALYSES.values():
        paths = [records.analysis_path(run, table, method, seed) for table in analysis.tables]
        if not analysis.applies(config):
            for path in paths:
                path.unlink(missing_ok=True)
            continue
        depends_on: dict[str, Any] = {
            "analysis": [analysis.name, dict(analysis.settings), SEED],
            "code": code_version(parts=[analysis.compute, *parts_of(config.dropout)]),
            "model": [method, seed, checkpoint.sha256],
            "data": data_sha256,
            "device": device.type if analysis.per_device else None,
        }
        key = content_digest(depends_on)
        if not all(records.read_key(path) == key for path in paths):
            tasks.append(_Task(analysis, key))
    return tasks


def _make(run: Path, task: _Task, trained: TrainedModel, method: str, seed: int, display: Display) -> Note | None:
    """Make one analysis and write its tables; None, or what kept it from being made."""
    analysis = task.analysis
    unit = f"analysis-{analysis.name}--{method}--seed{seed}"
    paths = [records.analysis_path(run, table, method, seed) for table in analysis.tables]
    say = partial(Note, analysis=analysis.name, method=method, seed=seed)
    note: Note | None = None
    display.start(f"analyse {method} seed {seed}: {analysis.title}", 1.0)
    try:
        with GlobalRandomness(SEED):
            tables = analysis.compute(trained)
        for table in analysis.tables:
            records.write_analysis(run, table, tables[table], method=method, seed=seed, key=task.key)
    except AnalysisUnavailableError as error:
        note = say(kind="skipped", message=str(error))
    except OutOfSpaceError:  # the others would fare no better
        raise
    except Exception as error:  # one failing analysis must not take the others with it
        failure = failure_of(unit, "analysis", method, seed, error)
        records.write_failure(run, failure)
        note = say(kind="failed", message=f"{failure.error}: {failure.message}", failure=failure)
    if note is None or note.kind == "skipped":
        (run / "failures" / f"{unit}.json").unlink(missing_ok=True)
    if note is not None:  # what an earlier checkpoint or version gave is not this one's
        for path in paths:
            path.unlink(missing_ok=True)
    display.finish("" if note is None else f"{note.kind.upper()}: {note.message}")
    return note
