"""Somebody else's model: a function named on the command line, and a file of weights."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from robustfdd import files
from robustfdd.errors import CheckpointError, ConfigurationError
from robustfdd.models import read_weights


def load_factory(reference: str, weights: Path | None) -> nn.Module:
    """Somebody's model from ``package.module:factory``, with its weights.

    Raises:
        ConfigurationError: the factory cannot be imported or called, or does not make a torch module.
        CheckpointError: the weights are missing, damaged or do not fit.
    """
    module_name, _, attribute = reference.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        model = factory() if not isinstance(factory, nn.Module) else factory
    except (Exception, SystemExit) as error:  # whatever a user's module raises, the answer is the same
        raise ConfigurationError(f"--model {reference}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"--model {reference}: gives a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load_weights(model, weights)
    return model.eval()


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        files.check(path, files.WEIGHTS)
    except FileNotFoundError:
        raise CheckpointError(f"--weights {path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"--weights {path}: cannot be read ({error.strerror})") from error
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                ours = "robustfdd" in (file.metadata() or {})  # then there is a digest to hold it against
            state: dict[str, Any] = read_weights(path) if ours else load_file(path)
        else:
            with files.opened(path, files.WEIGHTS) as stream:
                state = torch.load(stream, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
        model.load_state_dict(state)
    except Exception as error:  # torch, pickle and safetensors each have their own errors for a bad file
        # torch explains at length, and names every key of a state dict that does not fit.
        reason = textwrap.shorten(str(error), 400) or "it may be empty"
        raise CheckpointError(
            f"--weights {path}: cannot be loaded as a state dict of the model, bare or under 'state_dict' "
            f"({type(error).__name__}: {reason})"
        ) from error
