"""The commands about one model: train it, attack it, audit it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustfdd import catalogue
from robustfdd.cli.base import BatchSize, Compile, DataRoot, Device, command, err_console, out_console, say_plainly
from robustfdd.errors import ConfigurationError
from robustfdd.specs import (
    AUDITED_IMAGES,
    AUDITED_STEPS,
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
from robustfdd.text import is_clean
from robustfdd.threat import Norm, Threat

if TYPE_CHECKING:
    import torch
    from torch import nn

    from robustfdd.datasets import Dataset

#: What `robustfdd attack` runs where nothing is asked for: the attacks of the paper.
PAPER_ATTACKS = ("fgsm", "bim", "pgd")


@command("train", "evaluation", "training")
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
    from robustfdd import records
    from robustfdd.datasets import load_dataset
    from robustfdd.dropouts import check_options
    from robustfdd.evaluation import resolve_device
    from robustfdd.models import build_model
    from robustfdd.progress import Display
    from robustfdd.rounding import fixed, share
    from robustfdd.training import train as train_model

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
    say_plainly(
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


@command("attack", "evaluation", "cli.conclusion")
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
    from robustfdd.cli.conclusion import conclude
    from robustfdd.datasets import load_dataset
    from robustfdd.engines import get_engine
    from robustfdd.evaluation import evaluate, resolve_device
    from robustfdd.manifest import command_line
    from robustfdd.preparation import check_compiler

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
    conclude(out)


def _network(model: str, weights: Path | None, data: Dataset, device: torch.device) -> tuple[nn.Module, float]:
    """A model named on the command line, and the standard deviation that turns a normalised epsilon into pixels."""
    from robustfdd.foreign import load_factory
    from robustfdd.models import check_same_data, load_model, own_config, read_checkpoint

    if ":" in model and not Path(model).exists():
        return load_factory(model, weights, device), data.std
    if weights is not None:
        raise ConfigurationError("--weights goes with package.module:factory; a checkpoint has its own")
    config = own_config(read_checkpoint(model))
    check_same_data(config, data, model)
    return load_model(model, device), config.std


@command("audit", "evaluation", "cli.conclusion")
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
    steps: Annotated[int, typer.Option(min=1, help="Steps of the PGD whose figure is audited.")] = AUDITED_STEPS,
    relative_step: Annotated[
        float | None,
        typer.Option(
            help="Their length in units of epsilon. By default 2.5 / steps, and the best iterate counts; with "
            "a length of your own the last one does.",
            show_default=False,
        ),
    ] = None,
    test_images: Annotated[int, typer.Option(min=1, help="How many, evenly over the classes.")] = AUDITED_IMAGES,
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
    from robustfdd import records
    from robustfdd.audit import AuditedAttack, audit_model
    from robustfdd.batching import FIXED
    from robustfdd.cli.conclusion import audit_models, conclude
    from robustfdd.datasets import load_dataset
    from robustfdd.evaluation import resolve_device
    from robustfdd.locking import exclusive
    from robustfdd.manifest import command_line

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
            audit_models(Path(model), data_root, device, batch_size or FIXED)
            conclude(Path(model))
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
    conclude(directory)
