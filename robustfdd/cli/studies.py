"""The commands about studies: run one, show what it would compute, say how far it is."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from robustfdd.cli.base import (
    BatchSize,
    Compile,
    DataRoot,
    Device,
    cell,
    command,
    err_console,
    out_console,
    say_plainly,
)
from robustfdd.errors import ConfigurationError

if TYPE_CHECKING:
    from robustfdd.executors import Executor
    from robustfdd.status import Status

Study = Annotated[str, typer.Argument(help="A study of `robustfdd list`, or the path of a study file.")]
SetStudy = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the study, e.g. recipe.epochs=5. Repeatable."),
]
Only = Annotated[
    list[str] | None, typer.Option(metavar="METHOD", help="Run only this method of the study. Repeatable.")
]


@command("run", "evaluation", "cli.conclusion")
def run(
    study: Study,
    out: Annotated[
        Path | None, typer.Option(help="The run directory. By default runs/STUDY.", show_default=False)
    ] = None,
    device: Device = "cpu",
    set_: SetStudy = None,
    only: Only = None,
    data_root: DataRoot = None,
    batch_size: BatchSize = None,
    compile: Compile = False,
    resume: Annotated[
        bool, typer.Option(help="Go on with the same run where it stopped, or refuse to when it exists.")
    ] = True,
    audit: Annotated[
        bool, typer.Option(help="Say of each model whether its robust accuracy can be believed, or leave it open.")
    ] = True,
    jobs: Annotated[
        int, typer.Option(min=1, help="Units computed at once, each in a process of its own; they share the device.")
    ] = 1,
    executor: Annotated[
        Literal["inline", "processes", "ray"] | None,
        typer.Option(
            help="Where units are computed: in this process, in several (--jobs), or on Ray (pip install "
            "'robustfdd[ray]'). By default what --jobs asks for.",
            show_default=False,
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Of a Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local for a new one of this machine. By "
            "default the one that is there, or else a new one.",
            show_default=False,
        ),
    ] = None,
    gpus_per_unit: Annotated[
        float | None,
        typer.Option(help="With --executor ray: share of a GPU that a unit takes, e.g. 0.25. By default 1 with cuda."),
    ] = None,
) -> None:
    """Run a study: train its models, attack them, audit them, write records and report."""
    from robustfdd.cli.conclusion import analyse, conclude
    from robustfdd.evaluation import run_evaluation
    from robustfdd.locking import exclusive
    from robustfdd.manifest import command_line
    from robustfdd.status import read_status

    chosen = _executor(executor, jobs, address, gpus_per_unit, device)
    directory = run_evaluation(
        study,
        out=out,
        device=device,
        resume=resume,
        overrides=set_ or (),
        only=only or (),
        data_root=data_root,
        batch_size=batch_size,
        compile=compile,
        executor=chosen,
        audit=audit,
        console=err_console,
        command=command_line(),
    )
    with exclusive(directory):
        analyse(directory, data_root, device)
        conclude(directory, read_status(directory))


def _executor(name: str | None, jobs: int, address: str | None, gpus_per_unit: float | None, device: str) -> Executor:
    """The executor that the options of `robustfdd run` ask for."""
    from robustfdd.executors import Inline, Processes, Ray

    name = name or ("processes" if jobs > 1 else "inline")
    if name != "ray" and (address is not None or gpus_per_unit is not None):
        raise ConfigurationError("--address and --gpus-per-unit go with --executor ray")
    if name != "processes" and jobs > 1:
        raise ConfigurationError(f"--jobs {jobs}: goes with --executor processes; Ray runs what there is room for")
    if name == "ray":
        on_gpu = device.startswith("cuda")
        if device not in ("cpu", "cuda"):
            raise ConfigurationError(f"--device {device}: with --executor ray cpu or cuda; Ray chooses which GPU")
        if gpus_per_unit and not on_gpu:
            raise ConfigurationError("--gpus-per-unit goes with --device cuda")
        share = gpus_per_unit if gpus_per_unit is not None else float(on_gpu)
        return Ray(address, share, say=lambda text: say_plainly(err_console, text))
    return Processes(jobs) if name == "processes" else Inline()


@command("plan", "evaluation")
def plan_(
    study: Study,
    out: Annotated[
        Path | None, typer.Option(help="A run directory of this study: what is done in it already.", show_default=False)
    ] = None,
    device: Device = "cpu",
    set_: SetStudy = None,
    only: Only = None,
    data_root: DataRoot = None,
    batch_size: BatchSize = None,
    audit: Annotated[bool, typer.Option(help="Count the audits too.")] = True,
) -> None:
    """Show what a study would compute, unit by unit, and about how long that takes on this machine."""
    from robustfdd.evaluation import done_already, prepare_evaluation, seconds_per_pass
    from robustfdd.progress import duration

    if out is not None and not (out / "manifest.json").is_file():
        raise ConfigurationError(f"--out {out}: no run directory (there is no manifest.json in it)")
    prepared = prepare_evaluation(
        study,
        out=out,
        device=device,
        overrides=set_ or (),
        only=only or (),
        data_root=data_root,
        batch_size=batch_size,
        audit=audit,
    )
    done = done_already(prepared) if out is not None else set()
    seconds = seconds_per_pass(prepared)
    table = Table(title=cell(prepared.job.study.title), title_justify="left", title_style="bold")
    table.add_column("model")
    table.add_column("unit")
    for column in ("passes", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    if out is not None:
        table.add_column("state")
    models = dict.fromkeys(task.model for task in prepared.tasks)
    for model in models:
        for task in (task for task in prepared.tasks if task.model == model):
            what = f"{task.unit.attack.title} {task.unit.norm} {task.unit.engine}" if task.unit else task.kind
            row = [model, what, _count(task.cost), duration(task.cost * seconds)]
            table.add_row(*map(cell, row), *([] if out is None else ["done" if task.name in done else "left"]))
        table.add_section()
    left = [task for task in prepared.tasks if task.name not in done]
    for title, tasks in (("all", prepared.tasks), *([] if out is None else [("left", left)])):
        cost = sum(task.cost for task in tasks)
        table.add_row(title, f"{len(tasks)} units", _count(cost), duration(cost * seconds))
    out_console.print(table)
    out_console.print(
        f"Passes are input gradients of one image. The time is an estimate for one unit after the other on "
        f"{prepared.job.device}, from a few timed passes of a fresh network ({1e3 * seconds:.3g} ms an image).",
        highlight=False,
        soft_wrap=True,
    )


def _count(passes: float) -> str:
    """A number of passes: ``"870"``, ``"12.3 k"``, ``"4.6 M"``."""
    for power, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if passes >= power:
            return f"{passes / power:.1f}{unit}"
    return f"{passes:.0f}"


@command("status", "status")
def status(run: Annotated[Path, typer.Argument(help="A run directory; it may be in use.")]) -> None:
    """Say how far a run is: what is done, running, failed and left."""
    from robustfdd.progress import duration
    from robustfdd.status import read_status

    found = read_status(run)
    say_plainly(out_console, f"{run}: {_state_in_words(found)}")
    table = Table()
    columns = {"done": ("done",), "running": ("running",), "failed": ("failed",), "not run": ("blocked",)}
    columns["left"] = ("left",)
    table.add_column("units")
    for name in columns:
        table.add_column(name, justify="right")
    kinds = {"train": "trainings", "attack": "attacks", "audit": "audits", "other": "others"}
    for kind, title in kinds.items():
        of_kind = [entry for entry in found.tasks if entry.kind == kind]
        if of_kind:
            counts = [str(sum(e.state in states for e in of_kind)) for states in columns.values()]
            table.add_row(title, *counts)
    out_console.print(table)
    now = datetime.now(timezone.utc)
    for entry in found.of("running"):
        since = f" for {duration((now - entry.since).total_seconds())}" if entry.since else ""
        share = f", {100 * entry.done_cost / entry.cost:.0f} %" if entry.done_cost and entry.cost else ""
        say_plainly(out_console, f"running: {entry.name} on {entry.worker}{since}{share}")
    for entry in found.of("failed"):
        say_plainly(out_console, f"failed: {entry.name}: {entry.reason}")
    for entry in found.of("blocked"):
        say_plainly(out_console, f"not run: {entry.name}: {entry.reason}")
    for entry in found.of("left"):
        if entry.reason:  # it was done, and its file is damaged
            say_plainly(out_console, f"to be done again: {entry.name}: {entry.reason}")
    if found.seconds_left is not None and found.of("left", "running"):
        say_plainly(out_console, f"about {duration(found.seconds_left)} left")


def _state_in_words(found: Status) -> str:
    if found.held:
        return f"in use by {found.holder or 'a process'}"
    if not found.of("left", "failed", "blocked"):
        return "complete"
    if found.last is None:
        return "not running"
    how = "stopped" if found.ended else "cut off"
    return f"not running, {how} at {found.last.isoformat(timespec='seconds')}; `robustfdd run` goes on"
