"""Feature maps brought back to the input by deconvolution (Zeiler & Fergus 2014).

It is the gradient of a map's summed response, but that each ReLU passes the positive part of what comes back to it,
whatever the sign of its input was. Made by Captum, an optional dependency.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from robustfdd.analysis.base import AnalysisUnavailableError
from robustfdd.models import ResNet18


class SeparateBlock(nn.Module):
    """torchvision's BasicBlock with a ReLU module for each of its two uses, and none in place.

    Captum hooks modules and keeps one gradient for each. Of a module that is used twice, that is the right one only as
    long as autograd finishes the one use before it begins the other.
    """

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        self.shortcut = block.downsample if block.downsample is not None else nn.Identity()
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """What the original gives, to the bit."""
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu2(out + self.shortcut(x))
        return result


class ChannelSums(nn.Module):
    """A copy of a network that returns the sum of each of its last feature maps, shape (N, C).

    Every ReLU is used once and not in place; the values are those of the original, to the bit.
    """

    def __init__(self, model: ResNet18) -> None:
        super().__init__()
        self.network = copy.deepcopy(model).eval().requires_grad_(False)
        for stage in self.network.stages:
            for name, block in list(stage.named_children()):
                if isinstance(block, BasicBlock):
                    setattr(stage, name, SeparateBlock(block))

    def forward(self, x: Tensor) -> Tensor:
        """The sums over the positions of each map."""
        return self.network.feature_maps(x).sum((2, 3))


def deconvolve(network: nn.Module, images: Tensor, channels: Tensor) -> Tensor:
    """The deconvolution of one output for each image.

    Args:
        network: (N, C, H, W) in, (N, K) out; each of its ReLUs a module of its own, not in place.
        images: shape (N, C, H, W).
        channels: which output, shape (N,).

    Returns:
        Shape of the images.

    Raises:
        AnalysisUnavailableError: Captum is not installed.
    """
    attribute = _captum(network)
    with warnings.catch_warnings(), torch.enable_grad():
        # Captum tells in every call that it sets hooks and removes them again.
        warnings.filterwarnings("ignore", "Setting (forward, )?backward hooks", UserWarning)
        return attribute(images.detach().clone().requires_grad_(), channels).detach()


def _captum(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    try:
        from captum.attr import Deconvolution  # noqa: PLC0415 - an optional dependency, and slow to import
    except ImportError as error:
        raise AnalysisUnavailableError("needs Captum: pip install 'robustfdd[captum]'") from error
    method = Deconvolution(network)

    def attribute(images: Tensor, channels: Tensor) -> Tensor:
        result: Tensor = method.attribute(images, target=channels)
        return result

    return attribute
