"""The whole benchmark: what is asked for, measured and written to a folder."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from rich.console import Console

from benchmarks.cases import Case
from benchmarks.cluster import Size, run_cluster
from benchmarks.dropout import run_dropouts
from benchmarks.figures import dropout_figure, sweep_figure, training_figure
from benchmarks.progress import Bar
from benchmarks.subject import make_subject
from benchmarks.sweep import run_sweeps
from benchmarks.tables import (
    Table,
    cluster_tables,
    dropout_tables,
    fill_page,
    sweep_tables,
    target_tables,
    training_tables,
    write_tables,
)
from benchmarks.targets import target_table
from benchmarks.training import TrainingData, run_training
from robustfdd import provenance
from robustfdd.datasets import Dataset

Part = Literal["sweep", "dropout", "training", "cluster"]
PARTS: tuple[Part, ...] = get_args(Part)
#: Packages of a record that robustfdd itself does not keep.
_PEERS = ("adv-lib", "pandas", "matplotlib", "ray")


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        parts: which parts.
        cases: what is swept.
        contenders: who sweeps.
        images: test images of a sweep.
        batch_size: images attacked at once.
        repeats: counted rounds of sweeps, of training and of studies on clusters.
        width: of the network that is swept and trained; the sweep takes that of the checkpoint where one is given.
        epochs: of the network that is swept, where none is given.
        dropouts: which are timed; all where empty.
        dropout_widths: of the networks that they are timed in.
        dropout_batches: images a step.
        dropout_steps: pairs of steps.
        training_images: images of an epoch.
        compiled: whether to train through ``torch.compile`` too.
        threads: of torch, in every process.
        cluster_epochs: of each network of the study that is run on clusters.
    """

    parts: tuple[Part, ...]
    cases: tuple[Case, ...]
    contenders: tuple[str, ...]
    images: int
    batch_size: int
    repeats: int
    width: int
    epochs: int
    dropouts: tuple[str, ...]
    dropout_widths: tuple[int, ...]
    dropout_batches: tuple[int, ...]
    dropout_steps: int
    training_images: int
    compiled: bool
    threads: int
    cluster_epochs: int


def benchmark(
    settings: Settings,
    dataset: Dataset,
    *,
    checkpoint: Path | None,
    device: torch.device,
    out: Path,
    command: str,
    page: Path | None = None,
    console: Console | None = None,
) -> Path:
    """Measure everything that is asked for and write it.

    Args:
        settings: how much.
        dataset: what networks are trained on, and attacked on.
        checkpoint: of the network that is swept; one is trained when None.
        device: where.
        out: the folder of the results; its name is that of the run.
        command: how this was called, for the record.
        page: a Markdown page to put the tables into; see :func:`benchmarks.tables.fill_page`.
        console: for progress and tables; None says nothing.

    Returns:
        ``out``, with ``hardware.json`` and, for every part, tables as CSV and Markdown and a figure.
    """
    out.mkdir(parents=True, exist_ok=True)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    record = _record(settings, dataset, device, command)
    results = _Results(out)
    try:
        with Bar(console) as bar:
            if "sweep" in settings.parts:
                record["subject"] = _sweep(settings, dataset, checkpoint, device, bar, results)
            if "dropout" in settings.parts:
                _dropout(settings, dataset, device, bar, results)
            if "training" in settings.parts:
                _training(settings, dataset, device, bar, results)
            if "cluster" in settings.parts:
                _cluster(settings, dataset, bar, results)
    finally:
        torch.set_num_threads(threads_before)
    targets = target_table(*(results.measured.get(part) for part in PARTS))
    if len(targets):
        results.add("targets", targets, target_tables(targets))
    results.tables["hardware"] = [_hardware_table(record)]
    _write_record(out, {**record, "notes": results.notes}, results.tables["hardware"][0])
    if page is not None:
        fill_page(page, out.parent)
    if console is not None:
        for table in (table for several in results.tables.values() for table in several):
            table.print(console)
        for note in results.notes:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return out


class _Results:
    """What was measured, written as it comes.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.tables: dict[str, Sequence[Table]] = {}
        self.measured: dict[str, pd.DataFrame] = {}
        self.notes: list[str] = []

    def add(self, name: str, frame: pd.DataFrame, tables: Sequence[Table], **details: pd.DataFrame) -> None:
        """Write the numbers of a part, and in files of their own what they were computed from."""
        self.measured[name], self.tables[name] = frame, tables
        write_tables(self.out, name, frame, tables)
        for detail, rows in details.items():
            rows.to_csv(self.out / f"{name}-{detail}.csv", index=False)


def _sweep(
    settings: Settings, dataset: Dataset, checkpoint: Path | None, device: torch.device, bar: Bar, results: _Results
) -> dict[str, Any]:
    """The sweeps; what is said of the network in the record."""
    bar.begin("training the network to be attacked" if checkpoint is None else "reading the network", 1)
    with tempfile.TemporaryDirectory() as folder:
        subject = make_subject(
            dataset,
            checkpoint,
            folder=Path(folder),
            width=settings.width,
            epochs=settings.epochs,
            n_images=settings.images,
            batch_size=settings.batch_size,
            device=device,
        )
        bar.advance("done")
        swept = run_sweeps(
            subject,
            settings.cases,
            settings.contenders,
            repeats=settings.repeats,
            threads=settings.threads,
            bar=bar,
        )
    results.notes += swept.notes
    tables = sweep_tables(swept.summary, swept.answers, settings.repeats)
    results.add("sweep", swept.summary, tables, answers=swept.answers, rounds=swept.rounds)
    if "ratio" in swept.summary:
        sweep_figure(swept.summary, results.out / "sweep.png")
    return dict(subject.about)


def _dropout(settings: Settings, dataset: Dataset, device: torch.device, bar: Bar, results: _Results) -> None:
    found = run_dropouts(
        dataset,
        settings.dropouts,
        widths=settings.dropout_widths,
        batch_sizes=settings.dropout_batches,
        steps=settings.dropout_steps,
        device=device,
        bar=bar,
    )
    results.add("dropout", found, dropout_tables(found))
    dropout_figure(found, results.out / "dropout.png")


def _training(settings: Settings, dataset: Dataset, device: torch.device, bar: Bar, results: _Results) -> None:
    rounds, found, notes = run_training(
        TrainingData.of(dataset, settings.training_images, width=settings.width, device=device),
        repeats=settings.repeats,
        threads=settings.threads,
        compiled=settings.compiled,
        bar=bar,
    )
    results.notes += notes
    results.add("training", found, training_tables(found, settings.repeats), rounds=rounds)
    training_figure(found, results.out / "training.png")


def _cluster(settings: Settings, dataset: Dataset, bar: Bar, results: _Results) -> None:
    if find_spec("ray") is None:
        results.notes.append("cluster is left out: Ray is not installed; pip install 'robustfdd[ray]'")
        return
    size = Size(dataset.name, settings.images, settings.width, settings.cluster_epochs)
    rounds, found = run_cluster(size, repeats=settings.repeats, bar=bar)
    results.add("cluster", found, cluster_tables(found, settings.repeats), rounds=rounds)


def _write_record(out: Path, record: dict[str, Any], table: Table) -> None:
    (out / "hardware.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (out / "hardware.md").write_text(table.markdown(), encoding="utf-8")


def _record(settings: Settings, dataset: Dataset, device: torch.device, command: str) -> dict[str, Any]:
    """What the numbers were made with."""
    versions = provenance.versions()
    for package in _PEERS:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": command,
        "hardware": {**provenance.hardware(device), "threads": settings.threads, "machine": platform.machine()},
        "versions": versions,
        "git": provenance.git(),
        "dataset": {"name": dataset.name, "sha256": dataset.sha256},
        "settings": asdict(settings),
    }


def _hardware_table(record: dict[str, Any]) -> Table:
    """What of the record a reader wants to see beside the numbers."""
    hardware, versions, git = record["hardware"], record["versions"], record["git"]
    rows = [
        ["processor", str(hardware["processor"])],
        ["cores, threads", f"{hardware['cores']}, {hardware['threads']}"],
    ]
    if "gpu" in hardware:
        rows.append(["GPU", f"{hardware['gpu']}, {hardware['gpu_memory_gib']} GiB, CUDA {hardware['cuda']}"])
    peers = ("python", "torch", "adversarial-robustness-toolbox", "foolbox", "adv-lib")
    rows.append(["versions", ", ".join(f"{name} {versions[name]}" for name in peers)])
    if git is not None:
        rows.append(["commit", git["commit"] + (", changed since" if git["dirty"] else "")])
    rows.append(["command", f"`{record['command']}`"])
    return Table("Measured on", ["", ""], rows)
