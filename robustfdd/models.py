"""ResNet-18 for small images, with a slot for a dropout layer and the normalisation inside; saving and loading.

The network is that of He, Zhang, Ren & Sun (CVPR 2016) with the stem used for images of 28 to 32 pixels: a 3x3
convolution of stride 1 and no max-pooling. Its blocks are torchvision's. The last stage has ``8 * width`` channels: 512
at the usual width of 64, as in Ke et al. (AAAI 2020).
"""

from __future__ import annotations

import json
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from robustfdd import files
from robustfdd.checksums import json_checksum
from robustfdd.classifier import tensor_digest
from robustfdd.code_version import PACKAGE, Part
from robustfdd.datasets import Dataset, load_dataset
from robustfdd.dropouts import DROPOUTS, build_dropout
from robustfdd.errors import CheckpointError, ConfigurationError, DatasetError
from robustfdd.layout import in_fast_layout
from robustfdd.randomness import GlobalRandomness
from robustfdd.records import write_atomically
from robustfdd.specs import Normalization, Placement, Scalar

#: Raised with every change that an older reader would misread.
CHECKPOINT_FORMAT = 2
N_STAGES = 4


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the network again.

    Attributes:
        dataset: the name of the data set it is for.
        classes: the names of the classes, in the order of the logits.
        image_shape: (C, H, W).
        mean: subtracted from every pixel, in [0, 1].
        std: every pixel is divided by it; an epsilon in normalised units times it is one in pixel units.
        normalization: ``"z-score"`` or ``"zero-one"``, where mean is 0 and std 1.
        width: channels of the first stage; the last has ``8 * width``.
        dropout: a name of ``robustfdd list``.
        placement: ``"last"``: on the pooled features or the last feature maps, whichever the dropout works on;
            ``"stages"``: after each of the four stages.
        options: keyword arguments of the dropout module.
    """

    dataset: str
    classes: tuple[str, ...]
    image_shape: tuple[int, ...]
    mean: float
    std: float
    normalization: Normalization
    width: int
    dropout: str
    placement: Placement
    options: Mapping[str, Scalar] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ModelConfig:
        """The configuration from what :func:`dataclasses.asdict` and JSON made of it."""
        expected = {f.name for f in fields(cls)}
        if set(content) != expected:
            raise ValueError(f"expected the keys {sorted(expected)}, not {sorted(content)}")
        values = {**content, "classes": tuple(content["classes"]), "image_shape": tuple(content["image_shape"])}
        return cls(**values)


class Normalize(nn.Module):
    """Subtracts one mean and divides by one standard deviation, the same for all channels.

    With one scale for all channels an Lp ball in normalised units is an Lp ball in pixel units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise pixels in [0, 1], any shape."""
        return (x - self.mean) / self.std


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem; pixels in [0, 1] of shape (N, C, H, W) in, logits of shape (N, K) out.

    Attributes:
        config: what it was built from.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        spec = DROPOUTS.get(config.dropout)
        if spec is None:
            build_dropout(config.dropout)  # raises, naming the allowed ones
            raise AssertionError("an unknown dropout was built")
        if config.placement not in spec.placements:
            raise ConfigurationError(
                f"dropout {config.dropout!r} has no placement {config.placement!r}; "
                f"allowed: {', '.join(spec.placements)}"
            )
        width = config.width
        self.normalize = Normalize(config.mean, config.std)
        self.stem = nn.Sequential(
            nn.Conv2d(config.image_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        for index in range(N_STAGES):
            channels = width * 2**index
            stages[f"stage{index + 1}"] = _stage(channels if index == 0 else channels // 2, channels, index)
            if config.placement == "stages":
                stages[f"dropout{index + 1}"] = build_dropout(config.dropout, n_units=channels, **config.options)
        self.stages = nn.Sequential(stages)

        at_last = config.placement == "last"
        self.map_dropout = _slot(config, at_last and spec.site == "maps")
        self.feature_dropout = _slot(config, at_last and spec.site == "features")
        self.classifier = nn.Linear(width * 2 ** (N_STAGES - 1), len(config.classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_maps(self, x: Tensor) -> Tensor:
        """The last feature maps, before any dropout on them; shape (N, 8 * width, H', W')."""
        maps: Tensor = self.stages(self.stem(self.normalize(x)))
        return maps

    def features(self, x: Tensor) -> Tensor:
        """The pooled features, before any dropout on them; shape (N, 8 * width)."""
        # Under autocast the maps come in half precision, too coarse to take averages and principal components in.
        maps = self.feature_maps(x).to(self.classifier.weight.dtype)
        pooled: Tensor = self.map_dropout(maps).mean((2, 3))
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """Logits of pixels in [0, 1]."""
        logits: Tensor = self.classifier(self.feature_dropout(self.features(x)))
        return logits


def parts_of(network: nn.Module | str) -> tuple[Part, ...]:
    """What the code of a network is made of, as :func:`robustfdd.code_version.code_version` takes it.

    Of anybody's model these are the classes of its submodules that belong to this package or are derived from one that
    does. What else it computes shows in what it answers (:func:`robustfdd.identity.function_digest`).

    Args:
        network: a model, or the name of the dropout of a network of this package.
    """
    if isinstance(network, str):
        spec = DROPOUTS.get(network)
        return (ResNet18, *([spec.build] if spec is not None else []))
    ours = {type(module): None for module in network.modules() if _is_ours(type(module))}
    return (*ours, *(parts_of(network.config.dropout) if isinstance(network, ResNet18) else ()))


def _is_ours(cls: type) -> bool:
    return any(base.__module__.partition(".")[0] == PACKAGE for base in cls.__mro__)


def _slot(config: ModelConfig, filled: bool) -> nn.Module:
    n_units = config.width * 2 ** (N_STAGES - 1)
    return build_dropout(config.dropout, n_units=n_units, **config.options) if filled else nn.Identity()


def _stage(n_in: int, n_out: int, index: int) -> nn.Sequential:
    stride = 1 if index == 0 else 2
    shortcut = None
    if stride != 1 or n_in != n_out:
        shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
    return nn.Sequential(BasicBlock(n_in, n_out, stride, shortcut), BasicBlock(n_out, n_out))


def build_model(
    dataset: Dataset | str,
    dropout: str,
    *,
    width: int = 64,
    normalization: Normalization = "z-score",
    placement: Placement = "last",
    seed: int = 0,
    **options: Scalar,
) -> ResNet18:
    """A freshly initialised ResNet-18 for a data set, with a dropout in its slot.

    Args:
        dataset: a data set or the name of one (``robustfdd list``); it gives classes, image shape and normalisation.
        dropout: the name of a dropout (``robustfdd list``).
        width: channels of the first stage; 64 is the usual ResNet-18.
        normalization: ``"z-score"``: the one mean and one standard deviation of the data set; ``"zero-one"``: none.
        placement: ``"last"`` or ``"stages"``.
        seed: of the initial weights; the global random state is not touched.
        **options: of the dropout module, e.g. ``rescale="inverted"``.

    Raises:
        ConfigurationError: the dropout, its placement, an option or the width is wrong.
        DatasetError: the data set cannot be loaded.
    """
    if width < 1:
        raise ConfigurationError(f"width must be at least 1, not {width}")
    if normalization not in ("z-score", "zero-one"):
        raise ConfigurationError(f"unknown normalization {normalization!r}; allowed: z-score, zero-one")
    data = load_dataset(dataset) if isinstance(dataset, str) else dataset
    z_score = normalization == "z-score"
    config = ModelConfig(
        dataset=data.name,
        classes=tuple(data.classes),
        image_shape=tuple(data.image_shape),
        mean=data.mean if z_score else 0.0,
        std=data.std if z_score else 1.0,
        normalization=normalization,
        width=width,
        dropout=dropout,
        placement=placement,
        # Defaults are spelled out, so that a checkpoint means the same when a default changes.
        options=DROPOUTS[dropout].settings(options) if dropout in DROPOUTS else options,
    )
    with GlobalRandomness(seed):
        # Channels-last convolutions are the faster ones on CPUs and GPUs alike.
        return in_fast_layout(ResNet18(config))


@dataclass(frozen=True)
class Checkpoint:
    """A trained model on disk.

    Attributes:
        path: the safetensors file.
        sha256: of the file.
        config: what the network is built from; None for a model of a class of somebody else's.
        provenance: how it was trained: recipe, seed, data hash and versions.
    """

    path: Path
    sha256: str
    config: ModelConfig | None
    provenance: Mapping[str, Any]


def check_savable(model: nn.Module) -> None:
    """Make sure that a checkpoint can hold what a model has, before the work whose result it is to hold.

    Raises:
        CheckpointError: an entry of its state dict is no tensor, or one whose numbers do not lie one after the other.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            kind = f"a tensor of {value.layout}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"
            raise CheckpointError(
                f"the model's {name!r} is {kind}, and a checkpoint (safetensors) holds plain, dense tensors alone"
            )


def save_model(model: nn.Module, path: Path, provenance: Mapping[str, Any]) -> Checkpoint:
    """Write a model as safetensors, atomically; the same weights and provenance give the same bytes.

    Args:
        model: a network of this package, which :func:`load_model` gives back; of any other model the weights.
        path: the file, ending in ``.safetensors``.
        provenance: what JSON can hold; kept in the file's header.
    """
    config = model.config if isinstance(model, ResNet18) else None
    # Copies, because a file may not hold one piece of memory under two names.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    header = {
        "format": CHECKPOINT_FORMAT,
        "config": asdict(config) if config else None,
        "provenance": dict(provenance),
        "weights_sha256": tensor_digest(dict(sorted(tensors.items()))),
    }
    header = json.loads(json.dumps(header, sort_keys=True))
    # In one entry, because safetensors writes several in any order.
    metadata = {"robustfdd": json.dumps({**header, "checksum": json_checksum(header)})}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    return Checkpoint(path, file_sha256(path), config, dict(provenance))


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What a checkpoint says of itself; its weights are verified and not kept.

    Raises:
        CheckpointError: the file is missing, damaged, or was not written by :func:`save_model`.
    """
    return _read(Path(path))[0]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The weights of a checkpoint, on the CPU.

    Raises:
        CheckpointError: as for :func:`read_checkpoint`.
    """
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[Checkpoint, dict[str, Tensor]]:
    """A checkpoint and its weights, held against the digests in its header."""
    try:
        files.check(path, files.WEIGHTS)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in sorted(file.keys())}
        header = json.loads(metadata["robustfdd"])
        if header["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"{path}: checkpoint format {header['format']!r}; this version reads {CHECKPOINT_FORMAT}"
            )
        whole = header.pop("checksum") == json_checksum(header) and header["weights_sha256"] == tensor_digest(weights)
        if not whole:
            raise CheckpointError(
                f"{path}: damaged, or changed by hand: its content is not that of its digest; restore it from a copy, "
                "or train it again"
            )
        config = None if header["config"] is None else ModelConfig.from_json(header["config"])
        return Checkpoint(path, file_sha256(path), config, header.get("provenance", {})), weights
    except KeyError as error:
        raise CheckpointError(f"{path}: a safetensors file, but no checkpoint of robustfdd (no {error})") from error
    except CheckpointError:
        raise
    except Exception as error:  # what is in a damaged file makes its readers raise errors of any kind
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({error})") from error


def own_config(checkpoint: Checkpoint) -> ModelConfig:
    """What the network of a checkpoint is built from.

    Raises:
        CheckpointError: it holds the weights of somebody else's class, which only that class can be built from.
    """
    if checkpoint.config is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds weights of a model that is not of this package; build the model and load them "
            "with safetensors.torch.load_file, or on the command line --model package.module:factory --weights"
        )
    return checkpoint.config


def load_model(path: str | Path, device: str | torch.device = "cpu") -> ResNet18:
    """A trained model, in evaluation mode.

    Args:
        path: a file written by :func:`robustfdd.train` or :func:`save_model`.
        device: where to put it.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or its weights do not fit the network.
    """
    checkpoint, weights = _read(Path(path))
    config = own_config(checkpoint)
    try:
        # Without memory first: a header can ask for a network of any size, and the file has the weights of one.
        with torch.device("meta"):
            described = {name: tensor.shape for name, tensor in ResNet18(config).state_dict().items()}
        if described != {name: tensor.shape for name, tensor in weights.items()}:
            raise CheckpointError(f"{path}: its weights do not fit the network it describes")
        with GlobalRandomness(0):  # the weights are overwritten; the caller's random state must not be used for them
            model = ResNet18(config)
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, OverflowError, ConfigurationError) as error:
        raise CheckpointError(f"{path}: its weights do not fit the network it describes ({error})") from error
    return in_fast_layout(model.to(device)).eval()


def check_same_data(config: ModelConfig, dataset: Dataset, path: str | Path) -> None:
    """Refuse a model on a data set of other classes or image shape than it was trained for.

    Raises:
        DatasetError: naming both.
    """
    # Names of folders come in Unicode's composed form; checkpoints of earlier versions have them as they were found.
    names = [[unicodedata.normalize("NFC", name) for name in classes] for classes in (config.classes, dataset.classes)]
    if names[0] != names[1] or config.image_shape != tuple(dataset.image_shape):
        raise DatasetError(
            f"{path}: trained for {config.dataset!r} ({len(config.classes)} classes, images "
            f"{'x'.join(map(str, config.image_shape))}), not for {dataset.name!r} ({dataset.n_classes} classes, images "
            f"{'x'.join(map(str, dataset.image_shape))}); the names and the order of the classes must agree too"
        )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a checkpoint's file, in hexadecimal."""
    return files.sha256(path, files.WEIGHTS)
