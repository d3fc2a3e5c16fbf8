"""The command line: ``robustfdd run | plan | status | train | attack | audit | report | compare | list``."""

from __future__ import annotations

import functools
import io
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from robustfdd import __version__, catalogue, ending, records
from robustfdd.analysis import analyse_run
from robustfdd.audit import IMAGES as AUDIT_IMAGES
from robustfdd.audit import AuditedAttack, audit_model, audit_run
from robustfdd.batching import FIXED
from robustfdd.datasets import DATASETS, Dataset, load_dataset
from robustfdd.dropouts import DROPOUTS, check_options
from robustfdd.engines import get_engine
from robustfdd.errors import ConfigurationError, RobustFDDError, Terminated, UnitError, is_out_of_memory
from robustfdd.evaluation import (
    done_already,
    evaluate,
    prepare_evaluation,
    resolve_device,
    run_evaluation,
    seconds_per_pass,
)
from robustfdd.executors import Executor, Inline, Processes, Ray
from robustfdd.foreign import load_factory
from robustfdd.locking import exclusive
from robustfdd.manifest import command_line
from robustfdd.models import build_model, check_same_data, load_model, own_config, read_checkpoint
from robustfdd.preparation import check_compiler
from robustfdd.progress import Display, duration
from robustfdd.report import (
    audit_text,
    combine,
    disagreements,
    main_table_text,
    undefined_gradients,
    write_report,
)
from robustfdd.report.compare import compare_runs, comparison_text, write_comparisons
from robustfdd.rounding import fixed, share
from robustfdd.specs import (
    LIBRARIES,
    AttackUse,
    EpsUnit,
    Method,
    ModelOptions,
    Normalization,
    Placement,
    Precision,
    Protocol,
    Recipe,
    threat_of,
)
from robustfdd.status import Status, read_status
from robustfdd.text import is_clean, on_one_screen, printable, reason, shortened
from robustfdd.threat import Norm, Threat
from robustfdd.training import train as train_model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train image classifiers with feature density dropout and its alternatives, attack them through ART and "
    "Foolbox, and report their robustness.",
)
#: Columns of tables that are not written to a terminal: enough for a dozen methods.
PIPED_WIDTH = 160
#: What `robustfdd attack` runs where nothing is asked for: the attacks of the paper.
PAPER_ATTACKS = ("fgsm", "bim", "pgd")
#: Tables and paths go to standard output, everything about how it goes to standard error.
out_console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, emoji=False)
err_console = Console(stderr=True, emoji=False)

P = ParamSpec("P")
R = TypeVar("R")

DataRoot = Annotated[
    Path | None,
    typer.Option(
        envvar="ROBUSTFDD_DATA",
        help="Where data sets lie, or are downloaded to. By default robustfdd/data in the user's cache folder.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:INDEX.")]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Pass models through torch.compile: minutes at first, faster where much follows."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Images attacked at once; no result depends on it. By default what fits, halved if it does not."
    ),
]

SetStudy = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the study, e.g. recipe.epochs=5. Repeatable."),
]
Only = Annotated[
    list[str] | None, typer.Option(metavar="METHOD", help="Run only this method of the study. Repeatable.")
]


def _reporting_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn mistakes of the user into one message and exit code 2, and an interruption into a hint how to go on."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with ending.in_order(Terminated):
                return command(*args, **kwargs)
        except RobustFDDError as error:
            _complain(f"error: {error}")
            raise typer.Exit(2) from None
        except UnitError as error:
            _complain(f"failed: {error}")
            raise typer.Exit(1) from None
        except MemoryError as error:  # of a data set of images, whose size is as large as it is
            _complain(f"error: not enough memory ({str(error) or 'it ran out'})")
            raise typer.Exit(2) from None
        except OSError as error:  # a disk that is full, a place that cannot be written to
            _complain(f"error: {error}")
            raise typer.Exit(2) from None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _complain(f"failed: out of memory ({reason(error)})")
            raise typer.Exit(1) from None
        except KeyboardInterrupt as error:
            _say_plainly(err_console, ending.INTERRUPTED)
            number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
            raise typer.Exit(ending.exit_code(number)) from None

    return wrapped


def _complain(message: str) -> None:
    err_console.print(on_one_screen(message), style="bold red", markup=False, highlight=False, soft_wrap=True)


def _version(asked: bool) -> None:
    if asked:
        out_console.print(f"robustfdd {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
@_reporting_errors
def run(
    study: Annotated[str, typer.Argument(help="A study of `robustfdd list`, or the path of a study file.")],
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
        _analyse(directory, data_root, device)
        _conclude(directory, read_status(directory))


def _executor(name: str | None, jobs: int, address: str | None, gpus_per_unit: float | None, device: str) -> Executor:
    """The executor that the options of `robustfdd run` ask for."""
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
        return Ray(address, share, say=lambda text: _say_plainly(err_console, text))
    return Processes(jobs) if name == "processes" else Inline()


@app.command("plan")
@_reporting_errors
def plan_(
    study: Annotated[str, typer.Argument(help="A study of `robustfdd list`, or the path of a study file.")],
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
    table = Table(title=_cell(prepared.job.study.title), title_justify="left", title_style="bold")
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
            table.add_row(*map(_cell, row), *([] if out is None else ["done" if task.name in done else "left"]))
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


def _cell(text: str) -> Text:
    """Text in a table as it stands, whatever console markup it looks like."""
    return Text(shortened(printable(text), 200))


def _count(passes: float) -> str:
    """A number of passes: ``"870"``, ``"12.3 k"``, ``"4.6 M"``."""
    for power, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if passes >= power:
            return f"{passes / power:.1f}{unit}"
    return f"{passes:.0f}"


@app.command()
@_reporting_errors
def status(run: Annotated[Path, typer.Argument(help="A run directory; it may be in use.")]) -> None:
    """Say how far a run is: what is done, running, failed and left."""
    found = read_status(run)
    _say_plainly(out_console, f"{run}: {_state_in_words(found)}")
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
        _say_plainly(out_console, f"running: {entry.name} on {entry.worker}{since}{share}")
    for entry in found.of("failed"):
        _say_plainly(out_console, f"failed: {entry.name}: {entry.reason}")
    for entry in found.of("blocked"):
        _say_plainly(out_console, f"not run: {entry.name}: {entry.reason}")
    for entry in found.of("left"):
        if entry.reason:  # it was done, and its file is damaged
            _say_plainly(out_console, f"to be done again: {entry.name}: {entry.reason}")
    if found.seconds_left is not None and found.of("left", "running"):
        _say_plainly(out_console, f"about {duration(found.seconds_left)} left")


def _state_in_words(found: Status) -> str:
    if found.held:
        return f"in use by {found.holder or 'a process'}"
    if not found.of("left", "failed", "blocked"):
        return "complete"
    if found.last is None:
        return "not running"
    how = "stopped" if found.ended else "cut off"
    return f"not running, {how} at {found.last.isoformat(timespec='seconds')}; `robustfdd run` goes on"


def _say_plainly(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def _audit_run(directory: Path, data_root: Path | None, device: str, batch_size: int) -> None:
    """Audit the models of a run as far as that was not done yet, and say what could not be."""
    target = resolve_device(device)
    notes = audit_run(directory, data_root=data_root, device=target, batch_size=batch_size, console=err_console)
    for note in notes:
        if note.kind == "skipped":  # what failed is named with the failures
            _say_plainly(err_console, f"note: {note}")


def _analyse(directory: Path, data_root: Path | None, device: str) -> None:
    """Look into the models of a run as far as that was not done yet, and say what could not be."""
    try:
        notes = analyse_run(directory, data_root=data_root, device=resolve_device(device), console=err_console)
    except ConfigurationError as error:  # the report of a run from a machine with a GPU, made on one without
        _say_plainly(err_console, f"note: analysis skipped: {error}")
        return
    for text in dict.fromkeys(f"{note.kind}: {note.message}" for note in notes):
        _say_plainly(err_console, f"note: analysis {text}")


def _conclude(directory: Path, status: Status | None = None) -> None:
    """Write and name the report; exit with 1 if a unit failed."""
    page = write_report([directory])
    found = records.load_run(directory)
    _print_tables(found)
    _say_plainly(out_console, f"report: {page}")
    blocked = status.of("blocked") if status else []
    if found.failures:
        err_console.print(f"{len(found.failures)} of the units failed; the report names them:", style="bold red")
        for failure in found.failures:
            _say_plainly(err_console, f"  {failure.unit}: {failure.error}: {failure.message}")
    if blocked:
        err_console.print(f"{len(blocked)} of the units were not run because of that:", style="bold red")
        for entry in blocked:
            _say_plainly(err_console, f"  {entry.name}: {entry.reason}")
    if found.failures or blocked:
        raise typer.Exit(1)


def _print_tables(found: records.Run) -> None:
    out_console.print(main_table_text(found))
    out_console.print(audit_text(found))
    for warning in (*map(str, disagreements(found)), *undefined_gradients(found.cells)):
        err_console.print(
            printable(f"warning: {warning}"), style="bold yellow", markup=False, highlight=False, soft_wrap=True
        )


@app.command()
@_reporting_errors
def train(
    dataset: Annotated[str, typer.Option(help="A data set of `robustfdd list`, or folder:PATH.")],
    dropout: Annotated[str, typer.Option(help="A dropout of `robustfdd list`.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")],
    out: Annotated[Path, typer.Option(help="The checkpoint to write, ending in .safetensors.")],
    width: Annotated[int, typer.Option(help="Channels of the first stage; 64 is the usual ResNet-18.")] = 64,
    placement: Annotated[Placement, typer.Option(help="Where the dropout sits.")] = "last",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the dropout, e.g. rescale=inverted. Repeatable."),
    ] = None,
    normalization: Annotated[Normalization, typer.Option(help="Of the model's input.")] = "z-score",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A value of the recipe, e.g. learning_rate=0.05. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of weights, order, augmentation and masks.")] = 0,
    device: Device = "cpu",
    data_root: DataRoot = None,
    compile: Compile = False,
) -> None:
    """Train one model and write its checkpoint."""
    if out.suffix != ".safetensors":
        raise ConfigurationError(f"--out {out}: a checkpoint's name must end in .safetensors")
    if not is_clean(str(out)):  # the name is written into the record of the training
        raise ConfigurationError(f"--out {out}: has control characters, or bytes that are no UTF-8")
    recipe_values: dict[str, Any] = {"epochs": epochs}
    for assignment in set_ or ():
        catalogue.apply_override(recipe_values, assignment)
    recipe = catalogue.parse(Recipe, recipe_values, "train --set")
    options: dict[str, Any] = {}
    for assignment in option or ():
        catalogue.apply_override(options, assignment)
    method = catalogue.parse(Method, {"dropout": dropout, "placement": placement, "options": options}, "train --option")
    check_options(method.dropout, method.options)
    catalogue.parse(ModelOptions, {"width": width}, "train --width")
    target = resolve_device(device)
    data = load_dataset(dataset, root=data_root)
    model = build_model(
        data,
        method.dropout,
        width=width,
        normalization=normalization,
        placement=method.placement,
        seed=seed,
        **method.options,
    ).to(target)
    total = recipe.epochs * len(data.train.labels)
    with Display(total, err_console) as display:
        display.start(f"train {dropout} on {data.title} ({recipe.epochs} epochs)", total)
        checkpoint = train_model(model, data, recipe, seed=seed, out=out, advance=display.advance, compile=compile)
        history = records.read_json(out.with_suffix(".json"))
        display.finish()
    _say_plainly(
        out_console,
        f"clean accuracy {fixed(100 * share(history['clean_accuracy'], history['n_test']), 2)} % on "
        f"{history['n_test']} test images\n"
        f"checkpoint: {checkpoint.path}",
    )


def _epsilons(text: str | None, norm: Norm, scale: float, unit: EpsUnit) -> list[Threat]:
    if text is None:
        return []
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigurationError(f"--{norm} {text}: must be numbers with commas between them, e.g. 0.01,0.03") from None
    use = catalogue.parse(AttackUse, {"name": "x", "eps": {norm: values}}, f"--{norm} {text}")
    return [threat_of(norm, eps, unit, scale) for eps in use.eps[norm]]


@app.command()
@_reporting_errors
def attack(
    model: Annotated[
        str,
        typer.Option(help="A checkpoint (.safetensors) of robustfdd, or package.module:factory of any torch model."),
    ],
    dataset: Annotated[str, typer.Option(help="A data set of `robustfdd list`, or folder:PATH.")],
    out: Annotated[Path, typer.Option(help="The run directory to write.")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights for a factory's model: .safetensors, or .pt read as weights only.")
    ] = None,
    attack_: Annotated[
        list[str] | None,
        typer.Option(
            "--attack",
            help="An attack of `robustfdd list` or an attack file. Repeatable. By default the three of the paper: "
            "fgsm, bim and pgd.",
        ),
    ] = None,
    linf: Annotated[str | None, typer.Option(metavar="EPS,...", help="Epsilons in L-infinity.")] = None,
    l2: Annotated[str | None, typer.Option(metavar="EPS,...", help="Epsilons in L2.")] = None,
    eps_unit: Annotated[
        EpsUnit,
        typer.Option(
            help="pixel: of pixels in [0, 1]. normalized: of the standard deviation that a robustfdd model divides by, "
            "or that of the data set."
        ),
    ] = "pixel",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            help="foolbox, art or native. Repeatable. Each attack runs through those that offer it. By default the two "
            "libraries."
        ),
    ] = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            help="paper: each epsilon by itself, last iterate. strong: larger steps, restarts, best iterate, and what "
            "is broken stays broken."
        ),
    ] = "paper",
    test_images: Annotated[
        int | None, typer.Option(min=1, help="How many test images, evenly over the classes. By default all.")
    ] = None,
    label: Annotated[str, typer.Option(help="What tables call the model.")] = "model",
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of everything random in the attacks.")] = 0,
    eot_samples: Annotated[
        int,
        typer.Option(
            min=0, help="For a model that is random in evaluation: passes averaged for one gradient. 0: not random."
        ),
    ] = 0,
    device: Device = "cpu",
    data_root: DataRoot = None,
    batch_size: BatchSize = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Of the passes that attacks make. bf16 is faster where the hardware has it, and a weaker attack; the "
            "records say so."
        ),
    ] = "fp32",
    compile: Compile = False,
) -> None:
    """Attack a trained model, this package's or anybody's, and write the records."""
    target = resolve_device(device)
    if compile:
        check_compiler(target)
    if linf is None and l2 is None:
        raise ConfigurationError("give epsilons with --linf, --l2 or both, e.g. --linf 0.01,0.03")
    data = load_dataset(dataset, root=data_root)
    network, scale = _network(model, weights, data, target)
    threats = [*_epsilons(linf, "linf", scale, eps_unit), *_epsilons(l2, "l2", scale, eps_unit)]
    evaluate(
        network,
        data,
        attack_ or PAPER_ATTACKS,
        threats,
        engines=[get_engine(name).name for name in engine or LIBRARIES],
        out=out,
        label=label,
        eps_scale=scale,
        eps_unit=eps_unit,
        test_images=test_images,
        seed=seed,
        batch_size=batch_size,
        eot_samples=eot_samples,
        protocol=protocol,
        precision=precision,
        compile=compile,
        console=err_console,
        command=command_line(),
    )
    _conclude(out)


def _network(model: str, weights: Path | None, data: Dataset, device: torch.device) -> tuple[nn.Module, float]:
    """A model named on the command line, and the standard deviation that turns a normalised epsilon into pixels."""
    if ":" in model and not Path(model).exists():
        return load_factory(model, weights, device), data.std
    if weights is not None:
        raise ConfigurationError("--weights goes with package.module:factory; a checkpoint has its own")
    config = own_config(read_checkpoint(model))
    check_same_data(config, data, model)
    return load_model(model, device), config.std


@app.command()
@_reporting_errors
def audit(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint (.safetensors) of robustfdd, package.module:factory of any torch model, or a run "
            "directory, all models of which are then audited as its study says."
        ),
    ],
    dataset: Annotated[
        str | None, typer.Option(help="A data set of `robustfdd list`, or folder:PATH. A run directory has its own.")
    ] = None,
    linf: Annotated[float | None, typer.Option(help="The epsilon of the number under audit, in L-infinity.")] = None,
    l2: Annotated[float | None, typer.Option(help="The same in L2.")] = None,
    eps_unit: Annotated[EpsUnit, typer.Option(help="As for `robustfdd attack`.")] = "pixel",
    weights: Annotated[
        Path | None, typer.Option(help="Weights for a factory's model: .safetensors, or .pt read as weights only.")
    ] = None,
    sibling: Annotated[
        str | None,
        typer.Option(
            help="A model for the same data without the defence, to transfer adversarial examples from: a checkpoint "
            "or package.module:factory."
        ),
    ] = None,
    sibling_weights: Annotated[Path | None, typer.Option(help="Weights for the sibling's factory.")] = None,
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of the PGD whose figure is audited.")
    ] = AuditedAttack().steps,
    relative_step: Annotated[
        float | None,
        typer.Option(
            help="Their length in units of epsilon. By default 2.5 / steps, and the best iterate counts; with "
            "a length of your own the last one does.",
            show_default=False,
        ),
    ] = None,
    test_images: Annotated[int, typer.Option(min=1, help="How many, evenly over the classes.")] = AUDIT_IMAGES,
    eot_samples: Annotated[
        int,
        typer.Option(
            min=0, help="For a model that is random in evaluation: passes that your attack averages. 0: none."
        ),
    ] = 0,
    label: Annotated[str, typer.Option(help="What tables call the model.")] = "model",
    out: Annotated[
        Path | None, typer.Option(help="The run directory to write. By default runs/audit-LABEL.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of every random draw.")] = 0,
    device: Device = "cpu",
    data_root: DataRoot = None,
    batch_size: BatchSize = None,
) -> None:
    """Say whether the robust accuracy of a model can be believed, with the evidence."""
    if Path(model).is_dir():
        given = {
            "--dataset": dataset,
            "--linf": linf,
            "--l2": l2,
            "--weights": weights,
            "--sibling": sibling,
            "--sibling-weights": sibling_weights,
            "--relative-step": relative_step,
            "--out": out,
        }
        if wrong := [name for name, value in given.items() if value is not None]:
            raise ConfigurationError(f"{', '.join(wrong)}: not for a run directory, whose study says it")
        records.load_run(Path(model))
        with exclusive(Path(model)):
            _audit_run(Path(model), data_root, device, batch_size or FIXED)
            _conclude(Path(model))
        return
    if dataset is None:
        raise ConfigurationError("--dataset is missing: a data set of `robustfdd list`, or folder:PATH")
    if (linf is None) == (l2 is None):
        raise ConfigurationError("give the epsilon with --linf or with --l2, e.g. --linf 0.03")
    target = resolve_device(device)
    data = load_dataset(dataset, root=data_root)
    network, scale = _network(model, weights, data, target)
    other = None if sibling is None else _network(sibling, sibling_weights, data, target)[0]
    norm: Norm = "linf" if linf is not None else "l2"
    radius = linf if linf is not None else l2
    assert radius is not None
    directory = audit_model(
        network,
        data,
        threat_of(norm, radius, eps_unit, scale),
        out=out or Path("runs") / f"audit-{label}",
        label=label,
        eps_scale=scale,
        eps_unit=eps_unit,
        attack=AuditedAttack(steps, relative_step, best_iterate=relative_step is None),
        sibling=other,
        test_images=test_images,
        eot_samples=eot_samples,
        seed=seed,
        batch_size=batch_size or FIXED,
        console=err_console,
        command=command_line(),
    )
    _conclude(directory)


@app.command()
@_reporting_errors
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run directory, or several: seeds, methods or attacks of one study that were run apart."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write. By default report/ in the first run directory.", show_default=False),
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Make tables, figures and the page from the records of a run, or of several that belong together.

    What the figures show of the models themselves is computed first where it is missing and the checkpoints are there.
    """
    if len(runs) > 1:
        combine([records.load_run(directory) for directory in runs])  # refused before anything is computed for them
    for directory in runs:
        if any((directory / "models").glob("*.safetensors")):
            hardware = records.read_manifest(directory).get("hardware") or {}
            device = hardware.get("device") or "cpu"
            _analyse(directory, data_root, device)
    page = write_report(runs, out=out)
    _print_tables(combine([records.load_run(directory) for directory in runs]))
    _say_plainly(out_console, f"report: {page}")


@app.command()
@_reporting_errors
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run directory, or several; those on one data set are compared together, as one run."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to write to. By default report/compare in the first run directory.", show_default=False
        ),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="DATASET",
            help="For runs on data that the paper does not have: hold them against its figures for this data set.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Hold a run against the published figures, cell by cell."""
    comparisons = compare_runs(runs, as_dataset=as_)
    folder = write_comparisons(comparisons, out or runs[0] / "report" / "compare")
    for comparison in comparisons:
        out_console.print(comparison_text(comparison))
    for path in sorted(folder.glob("*compare.*")):
        _say_plainly(out_console, f"comparison: {path}")


@app.command("list")
@_reporting_errors
def list_(
    what: Annotated[
        Literal["dropouts", "datasets", "attacks", "studies"] | None, typer.Argument(help="Only this.")
    ] = None,
) -> None:
    """Show the dropouts, data sets, attacks and studies that can be named."""
    attacks = [catalogue.load_attack(name) for name in catalogue.attack_names()]
    studies = [catalogue.load_study(name) for name in catalogue.study_names()]
    tables: dict[str, tuple[Sequence[str], list[tuple[str, ...]]]] = {
        "dropouts": (
            ("dropout", "works on", "placement", "what it does", "options"),
            [
                (
                    d.name,
                    d.site,
                    ", ".join(d.placements),
                    d.summary,
                    ", ".join(f"{key}={value}" for key, value in d.settings({}).items()),
                )
                for d in DROPOUTS.values()
            ],
        ),
        "datasets": (
            ("data set", "what it is"),
            [
                *((d.name, d.summary) for d in DATASETS.values()),
                ("folder:PATH", "your images: train/<class>/*, test/<class>/*"),
            ],
        ),
        "attacks": (
            ("attack", "kind", "access", "engines and norms", "what it does"),
            [(a.name, a.kind, a.access, a.offer, a.summary) for a in attacks],
        ),
        "studies": (
            ("study", "data set", "models", "what it is for"),
            [(s.name, s.dataset, str(len(s.methods) * len(s.seeds)), s.description) for s in studies],
        ),
    }
    for name, (columns, rows) in tables.items():
        if what not in (None, name):
            continue
        table = Table(title=name, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, no_wrap=index == 0)
        for row in rows:
            table.add_row(*row)
        out_console.print(table)


def main() -> None:
    """The command, once everything is imported; :mod:`robustfdd.__main__` is where it is entered."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the encoding of a terminal or a pipe lacks is no error
            stream.reconfigure(errors="backslashreplace")
    app()
