"""In which order the numbers of a batch of images lie in memory.

Channels-last is the faster order for convolutions. Not every model can take it: code that looks at images through
``view`` asks for torch's usual order, and some layers (a three-dimensional convolution of a batch of pictures) take no
other. So nobody is asked to: images come in the order that the model's own weights have.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

T = TypeVar("T", bound=nn.Module)


#: Strided convolutions of one pixel with fewer channels than this are kept in torch's usual order. In channels-last,
#: oneDNN (in torch 2.9 to 2.15 at least) writes past the end of its memory in their weight gradient, on processors
#: without AVX-512.
_FEWEST_CHANNELS = 8


def in_fast_layout(model: T) -> T:
    """The model with its convolutions in channels-last order, in place, where that is safe; the values are the same."""
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and module.kernel_size == (1, 1)
            and max(module.stride) > 1
            and module.in_channels < _FEWEST_CHANNELS
        ):
            return model
    return model.to(memory_format=torch.channels_last)


def image_layout(model: nn.Module) -> torch.memory_format:
    """The layout in which a model is given its images: that of the weights of its two-dimensional convolutions.

    Returns:
        ``torch.channels_last`` if a parameter of the model is so and not in torch's usual order, as after
        ``model.to(memory_format=torch.channels_last)``, which :func:`robustfdd.build_model` does; else
        ``torch.contiguous_format``.
    """
    for parameter in model.parameters():
        # A kernel of one position, or of one channel, is in both orders.
        if (
            not is_lazy(parameter)
            and parameter.layout == torch.strided
            and parameter.ndim == 4
            and not parameter.is_contiguous()
            and parameter.is_contiguous(memory_format=torch.channels_last)
        ):
            return torch.channels_last
    return torch.contiguous_format
