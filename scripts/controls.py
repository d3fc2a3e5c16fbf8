"""Known cases that an audit is held against: defences that were broken, networks that are robust, and plain ones.

A rule that says whether a number can be believed is itself to be tested. Here are classifiers of which the answer is
known from the literature. Each is small, is trained in well under a minute on a processor core for the data set
``fashion-mnist-mini`` at width 8, and keeps its weights in a folder.

The number under audit is the robust accuracy under plain PGD. For a *negative* control it is too high, for the reason
that its ``flaw`` gives; for a *positive* one (adversarial training) it is high and right; for a *plain* network it is
low and right. Those that are ``held_out`` took no part in choosing the thresholds of the audit.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustfdd.datasets import Dataset, Split
from robustfdd.datasets.base import to_pixels
from robustfdd.errors import ConfigurationError
from robustfdd.layout import image_layout
from robustfdd.models import Normalize, ResNet18, build_model, read_weights, save_model
from robustfdd.randomness import GlobalRandomness
from robustfdd.specs import AdversarialTraining, Placement, Recipe
from robustfdd.training import fit

Kind = Literal["negative", "positive", "plain"]
#: An untrained classifier for a data set, of a seed and a width.
Network: TypeAlias = Callable[[Dataset, int, int], nn.Module]
#: Trains a classifier in place: the classifier, the data, the recipe and the seed.
Fit: TypeAlias = Callable[[nn.Module, Dataset, Recipe, int], None]

#: Of all controls, but for what makes each of them what it is.
RECIPE = Recipe(epochs=4, batch_size=64, learning_rate=0.1)
#: For a network without batch norm.
_GENTLE = RECIPE.changed({"learning_rate": 0.03})
#: The radius of adversarial training, in pixel units, in L-infinity.
EPS = 0.03
#: Raised with every change of the code here that changes trained weights; older ones are then not taken.
VERSION = 1


# --- defences that wrap a trained classifier -------------------------------------------------------------------------


class ScaledLogits(nn.Module):
    """A classifier whose logits are multiplied by a constant.

    Source: Carlini & Wagner 2016, "Defensive Distillation is Not Robust to Adversarial Examples": it is what
    distillation comes down to. No prediction changes; but the softmax becomes 1 to machine precision, and the gradient
    of the cross-entropy 0.

    Args:
        model: a classifier.
        factor: above 0.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        if not 0 < factor < math.inf:
            raise ConfigurationError(f"factor must be a finite number above 0, not {factor!r}")
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        logits: Tensor = self.model(x)
        return logits * self.factor


class QuantisedInput(nn.Module):
    """A classifier of images that are rounded to a few levels first.

    Source: reduction of the colour depth in Xu, Evans & Qi 2018, "Feature Squeezing" (NDSS); He et al. 2017 broke it.
    The derivative of rounding is 0 wherever it exists, and so is every gradient with respect to the image, whatever
    the classifier behind does. An attack that takes the rounding for the identity in the backward pass goes around it
    (BPDA: Athalye, Carlini & Wagner 2018, "Obfuscated Gradients Give a False Sense of Security", ICML).

    Args:
        model: a classifier.
        levels: of every pixel, evenly over [0, 1]; at least 2.
    """

    def __init__(self, model: nn.Module, levels: int) -> None:
        super().__init__()
        if levels < 2:
            raise ConfigurationError(f"levels must be at least 2, not {levels!r}")
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        logits: Tensor = self.model(torch.round(x * (self.levels - 1)) / (self.levels - 1))
        return logits


class RandomResize(nn.Module):
    """A classifier of images that are put, enlarged by chance, at a place by chance in a larger black frame.

    Source: Xie, Wang, Zhang, Ren & Yuille 2018, "Mitigating Adversarial Effects Through Randomization" (ICLR): from 299
    pixels to 299 .. 330 by the nearest pixel, in a frame of 331. Athalye, Carlini & Wagner 2018 broke it by averaging
    gradients over draws (EOT): a single gradient belongs to a draw that does not come again.

    Size and place are drawn for every image by itself and in both modes, from the global generator.

    Args:
        model: a classifier of images of any size.
        ratio: the side of the frame over that of the image, above 1.
    """

    def __init__(self, model: nn.Module, ratio: float = 331 / 299) -> None:
        super().__init__()
        if not 1 < ratio < math.inf:
            raise ConfigurationError(f"ratio must be a finite number above 1, not {ratio!r}")
        self.model, self.ratio = model, ratio

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of square images of shape (N, C, H, H)."""
        n, _, side, _ = x.shape
        frame = max(side + 1, round(self.ratio * side))
        size = torch.randint(side, frame, (n, 1), device=x.device)
        pixel = torch.arange(frame, device=x.device)
        source, inside = [], []
        for _ in range(2):  # rows, columns
            first = (torch.rand((n, 1), device=x.device) * (frame - size + 1)).long()
            at = (pixel - first) * side // size  # nearest neighbour, as torch's interpolate has it
            inside.append((pixel >= first) & (pixel < first + size))
            source.append(at.clamp(0, side - 1))
        image = torch.arange(n, device=x.device)[:, None, None]
        placed = x.permute(0, 2, 3, 1)[image, source[0][:, :, None], source[1][:, None, :]]
        placed = placed * (inside[0][:, :, None] & inside[1][:, None, :])[..., None]
        logits: Tensor = self.model(placed.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last))
        return logits


class RandomNoise(nn.Module):
    """A classifier of images with Gaussian noise.

    Source: a layer of Liu, Cheng, Zhang & Hsieh 2018, "Towards Robust Neural Networks via Random Self-ensemble" (ECCV),
    at the input. As with every random defence, a single gradient is that of a draw that does not come again; averaged
    over draws (Athalye, Carlini & Wagner 2018) it finds what it hid.

    The noise is drawn for every image by itself and in both modes, from the global generator.

    Args:
        model: a classifier.
        sigma: standard deviation of the noise, in pixel units, above 0.
    """

    def __init__(self, model: nn.Module, sigma: float) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ConfigurationError(f"sigma must be a finite number above 0, not {sigma!r}")
        self.model, self.sigma = model, sigma

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        logits: Tensor = self.model(x + self.sigma * torch.randn_like(x))
        return logits


# --- activations that a classifier is trained with -------------------------------------------------------------------


class SaturatingActivation(nn.Module):
    """A sigmoid so steep that nearly every unit is at one of its ends, where the derivative is 0 in floating point.

    Source: Nayebi & Ganguli 2017, "Biologically inspired protection of deep networks from adversarial attacks", who
    reach saturation by a penalty. Brendel & Bethge 2017, "Comment on ...", broke it: the gradients vanish in single
    precision, and nothing else is different. Nothing could be learned through it either; so in training mode the
    values are the same, but the derivative is that of a gentle one, as in the binary networks of Hubara et al. 2016.

    Args:
        gain: what the input is multiplied by, above 0.
        gentle: the gain of the sigmoid that gives the derivative in training.
    """

    def __init__(self, gain: float, gentle: float = 2.0) -> None:
        super().__init__()
        self.gain, self.gentle = gain, gentle

    def forward(self, x: Tensor) -> Tensor:
        """Values in [0, 1], shape of x."""
        steep = torch.sigmoid(self.gain * x)
        if not self.training:
            return steep
        soft = torch.sigmoid(self.gentle * x)
        return soft + (steep - soft).detach()


class KWinnersTakeAll(nn.Module):
    """Of all activations of an image in a layer the largest are kept, and the others become 0.

    Source: Xiao, Zhong & Zheng 2020, "Enhancing Adversarial Defense by k-Winners-Take-All" (ICLR), which takes the
    place of every ReLU. The output jumps wherever the set of winners changes, and the gradient points nowhere. Broken
    by Tramer, Carlini, Brendel & Madry 2020, "On Adaptive Attacks to Adversarial Example Defenses" (NeurIPS).

    Args:
        fraction: of the activations that are kept, in (0, 1].
    """

    def __init__(self, fraction: float) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            raise ConfigurationError(f"fraction must be in (0, 1], not {fraction!r}")
        self.fraction = fraction

    def forward(self, x: Tensor) -> Tensor:
        """The winners at their places and 0 elsewhere, shape of x, (N, ...)."""
        flat = x.flatten(1)
        k = max(1, round(self.fraction * flat.shape[1]))
        least = flat.topk(k, dim=1, sorted=False).values.amin(1)
        return torch.where(x >= least.view(-1, *(1,) * (x.ndim - 1)), x, torch.zeros_like(x))


def replace_activations(model: nn.Module, activation: Callable[[], nn.Module]) -> nn.Module:
    """Put another activation in the place of every ReLU of a classifier, in place.

    Args:
        model: a classifier.
        activation: makes one.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, activation())
    return model


# --- networks and trainings ------------------------------------------------------------------------------------------


def _resnet(dropout: str = "none", placement: Placement = "last") -> Network:
    def network(dataset: Dataset, seed: int, width: int) -> nn.Module:
        return build_model(dataset, dropout, width=width, normalization="zero-one", placement=placement, seed=seed)

    return network


def _resnet_with(activation: Callable[[], nn.Module]) -> Network:
    def network(dataset: Dataset, seed: int, width: int) -> nn.Module:
        return replace_activations(_resnet()(dataset, seed, width), activation)

    return network


def _saturating(dataset: Dataset, seed: int, width: int) -> nn.Module:
    model = build_model(dataset, "none", width=width, normalization="zero-one", seed=seed)
    # The pooled features are positive; batch norm puts the step where it tells images apart.
    model.feature_dropout = nn.Sequential(nn.BatchNorm1d(model.classifier.in_features), SaturatingActivation(GAIN))
    return model


class SmallCNN(nn.Module):
    """Two convolutions, each with max-pooling, and two linear layers; no batch norm and no shortcuts.

    Args:
        image_shape: (C, H, W), sides of at least 4.
        n_classes: K.
        width: the convolutions have 2 and 4 times as many channels, the hidden layer 16 times as many units.
        mean: subtracted from every pixel.
        std: every pixel is divided by it.
    """

    def __init__(self, image_shape: tuple[int, ...], n_classes: int, width: int, mean: float, std: float) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        self.normalize = Normalize(mean, std)
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.classifier = nn.Sequential(
            nn.Linear(4 * width * (height // 4) * (breadth // 4), 16 * width),
            nn.ReLU(),
            nn.Linear(16 * width, n_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits of shape (N, K) of images of shape (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(self.normalize(x)).flatten(1))
        return logits


def _small_cnn(dataset: Dataset, seed: int, width: int) -> nn.Module:
    with GlobalRandomness(seed):
        return SmallCNN(tuple(dataset.image_shape), dataset.n_classes, width, dataset.mean, dataset.std)


def _plainly(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int) -> None:
    fit(model, dataset.train, recipe, seed=seed)


def fit_to_probabilities(model: nn.Module, split: Split, targets: Tensor, recipe: Recipe, *, seed: int) -> None:
    """Train a classifier in place on probabilities in the place of labels.

    Args:
        model: pixels in [0, 1] in, logits out.
        split: the images.
        targets: class probabilities of each, shape (N, K).
        recipe: epochs, batch size, learning rate and its cosine, momentum and weight decay.
        seed: of the order.
    """
    n = len(split)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    generator = torch.Generator(split.images.device).manual_seed(seed)
    steps = recipe.epochs * (n // recipe.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps))
    with GlobalRandomness(seed):
        model.train()
        for _ in range(recipe.epochs):
            order = torch.randperm(n, generator=generator, device=split.images.device)
            for index in order.split(recipe.batch_size):
                if len(index) < recipe.batch_size:
                    continue
                x = to_pixels(split.images[index]).contiguous(memory_format=image_layout(model))
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(x), targets[index]).backward()
                optimizer.step()
                scheduler.step()
        model.eval()


class _Cooled(nn.Module):
    """A classifier whose logits are divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits / self.temperature


def distil(model: nn.Module, split: Split, recipe: Recipe, *, temperature: float, seed: int) -> None:
    """Train a classifier in place by defensive distillation.

    Source: Papernot, McDaniel, Wu, Jha & Swami 2016, "Distillation as a Defense to Adversarial Perturbations" (IEEE
    S&P). A teacher of the same architecture is trained on the labels, with its logits divided by the temperature;
    the student on the teacher's probabilities at that temperature, with its own logits divided by it too. It is used
    without the division: its logits are then so large that the gradient of the cross-entropy vanishes. Broken by
    Carlini & Wagner 2016 and 2017 through losses on the logits themselves.

    Args:
        model: the student, untrained; the teacher begins with the same weights.
        split: images and labels.
        recipe: of both.
        temperature: the source tries 1 to 100.
        seed: of both.
    """
    teacher = _Cooled(copy.deepcopy(model), temperature)
    fit(teacher, split, recipe, seed=seed)
    with torch.no_grad():
        targets = torch.cat([teacher(to_pixels(images)).softmax(1) for images in split.images.split(256)])
    fit_to_probabilities(_Cooled(model, temperature), split, targets, recipe, seed=seed)
    model.eval()


def smoothed(labels: Tensor, n_classes: int, smoothing: float) -> Tensor:
    """Class probabilities (1 - s) on the label and s spread evenly over all classes; shape (N, K).

    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture" (CVPR), section 7.

    Args:
        labels: int64, shape (N,).
        n_classes: K.
        smoothing: s, in [0, 1].
    """
    return (1 - smoothing) * F.one_hot(labels, n_classes).float() + smoothing / n_classes


@dataclass(frozen=True)
class Training:
    """How the weights of a control come about; controls of the same training share them.

    Attributes:
        name: of its files.
        network: what is trained.
        recipe: how.
        settings: what else was chosen.
        fit: does it.
    """

    name: str
    network: Network = field(default_factory=_resnet)
    recipe: Recipe = RECIPE
    settings: Mapping[str, float] = field(default_factory=dict)
    fit: Fit = _plainly

    def trained(self, dataset: Dataset, seed: int, width: int, cache: Path | None) -> nn.Module:
        """The trained classifier, in evaluation mode: from the folder if it is there, else trained and put there."""
        model = self.network(dataset, seed, width)
        path = cache / f"{self._file(dataset, seed, width)}.safetensors" if cache else None
        if path is not None and path.is_file():
            model.load_state_dict(read_weights(path))
            return model.eval()
        with GlobalRandomness(seed):
            self.fit(model, dataset, self.recipe, seed)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_model(model, path, self._depends_on(dataset, seed, width))
        return model.eval()

    def _depends_on(self, dataset: Dataset, seed: int, width: int) -> dict[str, Any]:
        return {
            "training": self.name,
            "version": VERSION,
            "dataset_sha256": dataset.sha256,
            "seed": seed,
            "width": width,
            "recipe": self.recipe.model_dump(),
            "settings": dict(self.settings),
        }

    def _file(self, dataset: Dataset, seed: int, width: int) -> str:
        key = json.dumps(self._depends_on(dataset, seed, width), sort_keys=True)
        return f"{self.name}--width{width}--seed{seed}--{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _identity(model: nn.Module, dataset: Dataset, seed: int, width: int) -> nn.Module:  # noqa: ARG001
    return model


def _wrapped(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[nn.Module, Dataset, int, int], nn.Module]:
    return lambda model, dataset, seed, width: wrap(model)  # noqa: ARG005


@dataclass(frozen=True)
class Control:
    """A classifier of which it is known whether plain PGD overstates its robustness.

    Attributes:
        name: lower case, with hyphens.
        title: for tables.
        kind: ``"negative"``: it does; ``"positive"``: robust, and it does not; ``"plain"``: not robust, and it does
            not.
        training: how its weights come about.
        flaw: for a negative one, why the number is too high.
        defend: what is done to the trained classifier; gets data set, seed and width too.
        eot_samples: passes averaged for one gradient of the attack under audit. 0 for the negative ones that are random
            too: whoever proposed them averaged nothing, which is the mistake that is to be found.
        held_out: whether it took no part in choosing thresholds.
    """

    name: str
    title: str
    kind: Kind
    training: Training
    flaw: str = ""
    defend: Callable[[nn.Module, Dataset, int, int], nn.Module] = _identity
    eot_samples: int = 0
    held_out: bool = False

    def build(self, dataset: Dataset, seed: int, width: int, *, cache: Path | None = None) -> nn.Module:
        """The control, trained, in evaluation mode, on the device of the data set.

        Args:
            dataset: what it is trained on.
            seed: of weights and training.
            width: of the network.
            cache: a folder that keeps trained weights; they are trained anew each time when None.
        """
        model = self.training.trained(dataset, seed, width, cache)
        return self.defend(model, dataset, seed, width).to(dataset.test.images.device).eval()


# --- the list --------------------------------------------------------------------------------------------------------


def _pruned(model: nn.Module, dataset: Dataset, seed: int, width: int) -> nn.Module:
    pruning = build_model(dataset, "sap", width=width, normalization="zero-one", placement="stages", seed=seed)
    pruning.load_state_dict(model.state_dict())
    return pruning


#: Of the steep sigmoid.
GAIN = 1e5
#: Of defensive distillation; the source's for MNIST.
TEMPERATURE = 100.0
#: Of label smoothing.
SMOOTHING = 0.5
#: Of k-winners-take-all; the source trains with 0.08 to 0.2.
FRACTION = 0.2
#: Of the noise on the input.
SIGMA = 0.1


def _smooth(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int) -> None:
    targets = smoothed(dataset.train.labels, dataset.n_classes, SMOOTHING)
    fit_to_probabilities(model, dataset.train, targets, recipe, seed=seed)


def _distil(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int) -> None:
    assert isinstance(model, ResNet18)
    # The temperature divides the gradients too. The last layer begins that much larger, so that training begins as
    # without a temperature, and a few epochs are enough.
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(TEMPERATURE)
    distil(model, dataset.train, recipe, temperature=TEMPERATURE, seed=seed)


def _with_noise(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int) -> None:
    fit(RandomNoise(model, SIGMA), dataset.train, recipe, seed=seed)


def _with_resizing(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int) -> None:
    fit(RandomResize(model), dataset.train, recipe, seed=seed)


_FAST = RECIPE.changed({"adversarial": AdversarialTraining(attack="fast", eps=EPS)})
_PGD = RECIPE.changed({"adversarial": AdversarialTraining(attack="pgd", eps=EPS, steps=2, relative_step=0.5)})
_NONE = Training("none")

_NO_AVERAGE = "random, and attacked without averaging the gradient over draws (EOT)"

_ALL = (
    Control("none", "No dropout", "plain", _NONE),
    Control("original", "Original dropout", "plain", Training("original", _resnet("original"))),
    Control(
        "spatial", "Spatial dropout on all stages", "plain", Training("spatial-stages", _resnet("spatial", "stages"))
    ),
    Control("small-cnn", "Small CNN", "plain", Training("small-cnn", _small_cnn, _GENTLE), held_out=True),
    Control("pgd-at", "Adversarial training, PGD", "positive", Training("pgd-at", recipe=_PGD)),
    Control("fast-at", "Adversarial training, fast", "positive", Training("fast-at", recipe=_FAST), held_out=True),
    Control(
        "scaled-logits",
        "Logits times 100",
        "negative",
        _NONE,
        "the gradient of the cross-entropy vanishes in floating point",
        _wrapped(lambda model: ScaledLogits(model, 100)),
    ),
    Control(
        "distilled",
        "Defensive distillation",
        "negative",
        Training("distilled", settings={"temperature": TEMPERATURE, "first": TEMPERATURE}, fit=_distil),
        "the gradient of the cross-entropy vanishes in floating point",
    ),
    Control(
        "saturating",
        "Saturating features",
        "negative",
        Training("saturating", _saturating, settings={"gain": GAIN}),
        "the features are at the ends of a steep sigmoid, where no gradient passes in floating point",
    ),
    Control(
        "quantised-8",
        "Input of 8 levels",
        "negative",
        _NONE,
        "the gradient of rounding is 0",
        _wrapped(lambda model: QuantisedInput(model, 8)),
    ),
    Control(
        "quantised-4",
        "Input of 4 levels",
        "negative",
        _NONE,
        "the gradient of rounding is 0",
        _wrapped(lambda model: QuantisedInput(model, 4)),
        held_out=True,
    ),
    Control("sap", "SAP", "negative", _NONE, _NO_AVERAGE, _pruned),
    Control("sap-averaged", "SAP, gradients averaged", "plain", _NONE, defend=_pruned, eot_samples=16, held_out=True),
    Control(
        "random-resize",
        "Random resizing and padding",
        "negative",
        Training("random-resize", fit=_with_resizing),
        _NO_AVERAGE,
        _wrapped(RandomResize),
    ),
    Control(
        "random-noise",
        "Noise on the input",
        "negative",
        Training("random-noise", settings={"sigma": SIGMA}, fit=_with_noise),
        _NO_AVERAGE,
        _wrapped(lambda model: RandomNoise(model, SIGMA)),
        held_out=True,
    ),
    Control(
        "k-wta",
        "k-winners-take-all",
        "negative",
        Training(
            "k-wta",
            _resnet_with(lambda: KWinnersTakeAll(FRACTION)),
            settings={"fraction": FRACTION},
        ),
        "the output jumps with the set of winners, and the gradient points nowhere",
        held_out=True,
    ),
    Control(
        "label-smoothing",
        "Label smoothing",
        "negative",
        Training("label-smoothing", settings={"smoothing": SMOOTHING}, fit=_smooth),
        "the loss is flat around the images that it was trained on",
        held_out=True,
    ),
)
#: All controls by name.
CONTROLS: Mapping[str, Control] = MappingProxyType({control.name: control for control in _ALL})
