"""Training: SGD on the cross-entropy, of clean or of adversarial images, with data and augmentation on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parameter import is_lazy

from robustfdd.adversarial_training import craft
from robustfdd.classifier import batches, check_classifier, device_of, frozen, is_random, weights_digest
from robustfdd.code_version import code_version
from robustfdd.datasets import Dataset, Split
from robustfdd.datasets.augment import augment
from robustfdd.datasets.base import to_pixels
from robustfdd.dropouts import Dropout
from robustfdd.errors import ModelContractError, RobustFDDError, TrainingError, UnitError, is_out_of_memory
from robustfdd.layout import image_layout
from robustfdd.models import (
    Checkpoint,
    ResNet18,
    check_same_data,
    check_savable,
    load_model,
    parts_of,
    read_checkpoint,
    save_model,
)
from robustfdd.preparation import check_compiler
from robustfdd.provenance import versions
from robustfdd.randomness import GlobalRandomness
from robustfdd.records import check_writable, read_json, write_json
from robustfdd.resume import Snapshots, TrainingState, training_key
from robustfdd.specs import Recipe
from robustfdd.text import reason

#: Images that a model is tried on before it is trained.
TRIED = 32
#: Test images a pass.
_EVALUATED = 256


@dataclass(frozen=True)
class Epoch:
    """One epoch, as it went.

    Attributes:
        epoch: from 1.
        loss: mean cross-entropy over the epoch, on the augmented images, with the dropout active; in adversarial
            training on the perturbed ones.
        train_accuracy: on the same passes.
        learning_rate: at the end of the epoch.
        seconds: wall time.
    """

    epoch: int
    loss: float
    train_accuracy: float
    learning_rate: float
    seconds: float


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, n_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)


def _compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """A wrapper of the model that runs it through ``torch.compile``; parameters and buffers are the model's own."""
    check_compiler(device)
    # torch keeps a few graphs for one piece of code and runs it uncompiled beyond those; a study trains many models.
    torch.compiler.reset()
    # Random numbers come from torch's generators, as without compilation: the same seed, the same masks.
    return cast("nn.Module", torch.compile(model, dynamic=False, options={"fallback_random": True}))


@contextmanager
def _code_of_the_model(doing: str) -> Iterator[None]:
    """Where code of the model runs, whatever it raises becomes one message with its cause.

    Raises:
        ModelContractError: the code raised.
        UnitError: memory ran out.
    """
    try:
        yield
    except (RobustFDDError, UnitError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UnitError(f"out of memory {doing}; lower recipe.batch_size ({reason(error)})") from error
        raise ModelContractError(f"the model fails {doing}: {reason(error)}") from error


def _check_logits(logits: object, labels: Tensor, n_classes: int) -> None:
    """Hold what a model returns in training to the contract.

    Raises:
        ModelContractError: it is no tensor of logits for every image and class, or nothing can be learned from it.
    """
    n = len(labels)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != n or logits.shape[1] < n_classes:
        got = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelContractError(
            f"the model must return logits of shape ({n}, K) for {n} images in training mode too, with K at least "
            f"{n_classes}, not {got}; build a network that returns further outputs in training without them"
        )
    if not logits.requires_grad:
        raise ModelContractError(
            "the model cannot be trained: its logits do not depend on any parameter that requires a gradient. Look for "
            "frozen parameters, detach, no_grad, or a conversion to NumPy in its forward"
        )


def _not_finite(model: nn.Module) -> set[str]:
    """Names of the parameters and buffers that hold a NaN or an infinity."""
    return {
        name
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.layout == torch.strided and not is_lazy(tensor) and not bool(torch.isfinite(tensor).all())
    }


def _one_epoch(
    model: nn.Module,
    quick: nn.Module,
    split: Split,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    generator: torch.Generator,
    epoch: int,
    advance: Callable[[int], None] | None,
    n_classes: int,
) -> tuple[float, float]:
    """One pass over the split, the ``epoch``-th from 0; the mean loss and the accuracy on it.

    ``quick`` is what whole batches go through, the model or its compiled wrapper; a last, smaller batch goes through
    the model, lest it be compiled for anew.
    """
    layers = [module for module in model.modules() if isinstance(module, Dropout)]
    images, labels = split.images, split.labels
    layout = image_layout(model)
    # Summed on the device, read once an epoch: reading every step would make the host wait for the device.
    total_loss = torch.zeros((), device=images.device)
    total_correct = torch.zeros((), device=images.device, dtype=torch.int64)
    seen = 0
    order = torch.randperm(len(labels), generator=generator, device=images.device)
    for index in order.split(recipe.batch_size):
        if len(index) < 2:
            continue
        x = to_pixels(augment(images[index], recipe.augmentation, generator))
        y = labels[index]
        for layer in layers:
            layer.progress = (epoch + seen / len(labels)) / recipe.epochs
        network = quick if len(index) == min(recipe.batch_size, len(labels)) else model
        with _code_of_the_model(f"in training on a batch of shape {tuple(x.shape)}"):
            if recipe.adversarial:
                x = craft(network, x, y, recipe, generator)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                logits: Tensor = network(x.contiguous(memory_format=layout))
            _check_logits(logits, y, n_classes)
            logits = logits.float()
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        try:
            optimizer.step()
        except RuntimeError as error:  # a learning rate beyond what a float holds
            raise TrainingError(f"a step cannot be made ({reason(error)}); {_lower(recipe)}") from error
        scheduler.step()
        total_loss += loss.detach() * len(index)
        total_correct += (logits.detach().argmax(1) == y).sum()
        seen += len(index)
        if advance is not None:
            advance(len(index))
    return float(total_loss) / seen, int(total_correct) / seen


def fit(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    *,
    seed: int,
    advance: Callable[[int], None] | None = None,
    compile: bool = False,
    snapshots: Snapshots | None = None,
) -> list[Epoch]:
    """Train any classifier in place.

    Args:
        model: pixels in [0, 1] in, logits out, on the device of the split.
        split: at least two images.
        recipe: how to train.
        seed: of the order, the augmentation, the random starts of adversarial training and the dropout masks. The
            global random state is left as it was.
        advance: called with the number of images of each step, for a progress bar.
        compile: whether to run whole batches through ``torch.compile``: for long trainings on a GPU, as the first step
            takes up to minutes. Rounding differs and nothing else: one seed gives the same random numbers. What torch
            has compiled before in this process is forgotten, and compiled again where it is used again.
        snapshots: where to begin from, and to write to after every epoch but the last; None to begin at the beginning
            and to write nothing. What was done before is told to ``advance`` at once.

    Returns:
        One entry an epoch, of those before the snapshot too.

    Raises:
        TrainingError: the loss, a parameter or a buffer is no longer finite.
        ModelContractError: code of the model raises, whatever it is; or what the model returns in training are no
            logits, or nothing in it can be trained.
        ConfigurationError: ``compile`` without what it needs.
        UnitError: memory runs out.
    """
    if len(split.labels) < 2:
        raise TrainingError("training needs at least two images")
    device = split.images.device
    n_classes = int(split.labels.max()) + 1
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelContractError("the model cannot be trained: it has no parameter that requires a gradient")
    # Such as the mask of an attention layer, which holds infinities from the beginning.
    never_finite = _not_finite(model)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        # The same arithmetic as parameter by parameter, in fewer calls; torch's default on a GPU only.
        foreach=True,
    )
    n, size = len(split.labels), recipe.batch_size
    steps_per_epoch = n // size + (n % size >= 2)
    scheduler = _scheduler(optimizer, recipe, recipe.epochs * steps_per_epoch)
    generator = torch.Generator(device).manual_seed(seed)
    history: list[Epoch] = []
    state = TrainingState(model, optimizer, scheduler, generator)
    quick = _compiled(model, device) if compile else model
    with (
        GlobalRandomness(seed),  # of the dropout masks
        # One seed must give the same weights twice, so cuDNN may not choose algorithms by timing them.
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True),
    ):
        with _code_of_the_model("in its own train(), which is called as that of torch.nn.Module is"):
            model.train()
        if snapshots is not None:
            history = [Epoch(**epoch) for epoch in snapshots.begin(state)]
            if advance is not None and history:
                advance(len(history) * ((n // size) * size + (n % size if n % size >= 2 else 0)))
        for epoch in range(len(history) + 1, recipe.epochs + 1):
            started = time.perf_counter()
            loss, accuracy = _one_epoch(
                model, quick, split, recipe, optimizer, scheduler, generator, epoch - 1, advance, n_classes
            )
            if not loss < float("inf"):
                raise TrainingError(f"the loss is {loss} after epoch {epoch}; {_lower(recipe)}")
            # The loss is that before the last step, and does not know where that one led.
            if broken := _not_finite(model) - never_finite:
                raise TrainingError(
                    f"{len(broken)} parameters and buffers hold NaN or infinities after epoch {epoch}, {min(broken)} "
                    f"among them; {_lower(recipe)}"
                )
            learning_rate = float(optimizer.param_groups[0]["lr"])
            history.append(Epoch(epoch, loss, accuracy, learning_rate, time.perf_counter() - started))
            if snapshots is not None and epoch < recipe.epochs:
                snapshots.take(state, [asdict(entry) for entry in history])
        with _code_of_the_model("in its own eval(), which is called as that of torch.nn.Module is"):
            model.eval()
    return history


def _lower(recipe: Recipe) -> str:
    return f"lower recipe.learning_rate ({recipe.learning_rate:g})"


def training_code(model: nn.Module, recipe: Recipe) -> str:
    """The version of the code that the weights of a training depend on, that of the model's own classes included.

    Args:
        model: that is trained.
        recipe: how; only adversarial training depends on the code that perturbs the images.
    """
    modules = ("training", "adversarial_training") if recipe.adversarial else ("training",)
    return code_version(*modules, parts=[*{type(module) for module in model.modules()}, *parts_of(model)])


def train(
    model: nn.Module,
    dataset: Dataset,
    recipe: Recipe,
    *,
    seed: int,
    out: str | Path,
    label: str | None = None,
    advance: Callable[[int], None] | None = None,
    compile: bool = False,
) -> Checkpoint:
    """Train a model and write its checkpoint, with how it was trained beside it.

    After every epoch a snapshot is written beside the checkpoint, ending in ``.partial.safetensors``. Where a training
    was cut off, the same call goes on after its last whole epoch, to the same weights, bit for bit, on the same machine
    as without the interruption. In the end the snapshot is removed.

    Args:
        model: from :func:`robustfdd.build_model`, or any classifier; trained in place, on the device it is on. Of a
            classifier that is not of this package the checkpoint holds the weights only.
        dataset: moved to that device if it is elsewhere.
        recipe: how to train.
        seed: of the order, the augmentation, the random starts of adversarial training and the dropout masks.
        out: the checkpoint, ending in ``.safetensors``; ``.json`` of the same name tells its history.
        label: what reports call the method; the name of the dropout when None.
        advance: called with the number of images of each step, for a progress bar.
        compile: see :func:`fit`; the checkpoint is that of the model itself.

    Raises:
        TrainingError: the loss, a parameter, a buffer or a logit of a test image is no longer finite. Nothing is
            written, and what was at ``out`` before stays.
        ModelContractError: the model does not keep the contract, as before an attack, or see :func:`fit`.
        CheckpointError: it holds what a checkpoint cannot.
        DatasetError: the model was built for other data.
        ConfigurationError: ``compile`` without what it needs.
        UnitError: memory runs out.
    """
    out = Path(out)
    if isinstance(model, ResNet18):
        check_same_data(model.config, dataset, label or model.config.dropout)
    # A place that cannot be written to is better known before training than after it.
    check_writable(out)
    device = device_of(model)
    data = dataset.to(device)
    # What no attack could be run on need not be trained.
    tried = to_pixels(data.train.images[:TRIED])
    with _code_of_the_model("before training"):
        check_classifier(model, tried, data.n_classes, random=is_random(model, tried))
        check_savable(model)
    provenance = {
        "recipe": recipe.model_dump(),
        "seed": seed,
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256,
        "versions": versions(),
        "code": training_code(model, recipe),
    }
    snapshots = Snapshots(out, _key(model, provenance, device, compile=compile))
    try:
        history = fit(model, data.train, recipe, seed=seed, advance=advance, compile=compile, snapshots=snapshots)
    except TrainingError:  # it would come to the same end from any of its epochs
        snapshots.remove()
        raise
    epochs = [asdict(epoch) for epoch in history]
    checkpoint = _write(model, data, out, provenance, label, epochs, snapshots.seconds, snapshots.resumed_after)
    snapshots.remove()
    return checkpoint


def _key(model: nn.Module, provenance: Mapping[str, Any], device: torch.device, *, compile: bool) -> str:
    """What the weights of a training depend on; ``model`` as it is before."""
    return training_key(
        # The code that counts is named by itself.
        {**provenance, "versions": {k: v for k, v in provenance["versions"].items() if k != "robustfdd source"}},
        asdict(model.config) if isinstance(model, ResNet18) else repr(model),
        weights_digest(model),
        device.type,
        compile,
    )


def adopt_weights(model: nn.Module, trained: Path, dataset: Dataset, *, out: Path, label: str) -> Checkpoint:
    """Write a model with the weights of another's checkpoint: for a layer that is put into a trained network.

    Args:
        model: of the same parameters and buffers as the other; on the device it is to be tested on.
        trained: the other's checkpoint, with its history beside it.
        dataset: what the other was trained on.
        out: the checkpoint to write, ending in ``.safetensors``; ``.json`` of the same name tells its history.
        label: what reports call the method.
    """
    source, history = read_checkpoint(trained), read_json(trained.with_suffix(".json"))
    model.load_state_dict(load_model(trained).state_dict())
    model.eval()
    provenance = {**source.provenance, "weights_of": trained.name}
    data = dataset.to(device_of(model))
    return _write(model, data, out, provenance, label, history["epochs"], history["seconds"], history["resumed_after"])


def _write(
    model: nn.Module,
    data: Dataset,
    out: Path,
    provenance: dict[str, Any],
    label: str | None,
    epochs: list[dict[str, Any]],
    seconds: float,
    resumed_after: list[int],
) -> Checkpoint:
    """The checkpoint of a trained model, and beside it how it was trained and how good it is."""
    seed = provenance["seed"]
    correct = _correct(model, data.test, seed)
    checkpoint = save_model(model, out, provenance)
    write_json(
        out.with_suffix(".json"),
        {
            "method": label or (model.config.dropout if isinstance(model, ResNet18) else type(model).__name__),
            "seed": seed,
            "checkpoint": out.name,
            "sha256": checkpoint.sha256,
            "weights_sha256": weights_digest(model),
            "clean_accuracy": float(correct.double().mean()),
            "n_test": len(correct),
            "seconds": seconds,
            "resumed_after": resumed_after,
            "parameters": sum(p.numel() for p in model.parameters()),
            "epochs": epochs,
        },
    )
    return checkpoint


def _correct(model: nn.Module, split: Split, seed: int) -> Tensor:
    """Whether a trained model is right on each image of a split; boolean, shape (N,).

    Raises:
        TrainingError: a logit is not finite, though every weight is: products of them overflow.
        ModelContractError: code of the model raises.
    """
    parts = []
    # The seed is for a model that is random in evaluation.
    with GlobalRandomness(seed), frozen(model), torch.no_grad():
        for part in batches(len(split), _EVALUATED):
            x, y = to_pixels(split.images[part]), split.labels[part]
            with _code_of_the_model(f"in evaluation on a batch of shape {tuple(x.shape)}"):
                logits = model(x)
            if not bool(torch.isfinite(logits).all()):
                raise TrainingError(
                    "the trained model returns NaN or infinite logits for test images; lower recipe.learning_rate"
                )
            parts.append(logits.argmax(1) == y)
    return torch.cat(parts)
