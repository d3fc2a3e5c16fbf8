"""Somebody else's model: a function named on the command line, and a file of weights."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustfdd import files
from robustfdd.errors import CheckpointError, ConfigurationError
from robustfdd.models import read_weights
from robustfdd.text import reason, shortened, shown

#: Of a list of keys, so many are named.
_NAMED = 4
_A_PROGRAM = (
    "it is a TorchScript program and no state dict; have the factory return torch.jit.load(...) of it, and leave "
    "--weights out"
)
_WEB_PAGES = (b"<!doctype", b"<html", b"<?xml")


def load_factory(reference: str, weights: Path | None, device: str | torch.device = "cpu") -> nn.Module:
    """Somebody's model from ``package.module:factory``, with its weights.

    Python looks for the module in the working directory first. Afterwards the working directory stays the last place
    that modules are looked for in, since code of the model may import others only when it runs; by then an installed
    package of the same name comes first, lest a file of the user's be taken for a part of a library.

    The mode of the model (training or evaluation) is that in which the factory leaves it.

    Args:
        reference: the module, a colon and the name of a function without arguments, a class or a model in it.
        weights: a file of :func:`torch.save` or of safetensors; none when None.
        device: where to put the model.

    Raises:
        ConfigurationError: the factory cannot be imported or called, or does not make a torch module, or the module
            cannot be put on the device.
        CheckpointError: the weights are missing, damaged or do not fit.
    """
    module_name, _, attribute = reference.partition(":")
    with _working_directory_first():
        try:
            module = importlib.import_module(module_name)
            if not hasattr(module, attribute):
                # Another module of that name may have come first, and then its file says so.
                raise AttributeError(
                    f"{getattr(module, '__file__', None) or module_name} has no attribute {attribute!r}"
                )
            factory = getattr(module, attribute)
            model = factory() if not isinstance(factory, nn.Module) else factory
        except (Exception, SystemExit) as error:  # whatever a user's module raises, the answer is the same
            raise ConfigurationError(f"--model {reference}: {reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"--model {reference}: gives a {type(model).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load_weights(model, weights)
    try:
        model.to(device)
    except Exception as error:  # as above
        raise ConfigurationError(f"--model {reference}: cannot be put on device {device} ({reason(error)})") from error
    return model


@contextmanager
def _working_directory_first() -> Iterator[None]:
    """Have the working directory the first place where modules are looked for, and the last one after it."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have changed the list
            sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _load_weights(model: nn.Module, path: Path) -> None:
    """Read a file of weights and put them into a model.

    Raises:
        CheckpointError: with the cause.
    """
    own = list(model.state_dict())
    state = _state_dict(path, _content(path), f"such as that of the model, with {_some(own) or 'no keys at all'}")
    try:
        model.load_state_dict(state)
    except Exception as error:  # a model may have its own code for it
        why = _misfit(model, state) or f"the model does not take it ({reason(error)})"
        raise CheckpointError(f"--weights {path}: {why}") from error


def _content(path: Path) -> object:
    """What a file holds.

    Raises:
        CheckpointError: it is missing, not readable or damaged.
    """
    try:
        with files.opened(path, files.WEIGHTS) as file:
            head = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"--weights {path}: no such file") from None
    except IsADirectoryError:
        raise CheckpointError(f"--weights {path}: it is a folder") from None
    except OSError as error:
        raise CheckpointError(f"--weights {path}: cannot be read ({error.strerror})") from error
    named_safetensors = path.suffix == ".safetensors"
    try:
        if named_safetensors:
            with safe_open(path, framework="pt") as opened:
                ours = "robustfdd" in (opened.metadata() or {})  # then there is a digest to hold it against
            return read_weights(path) if ours else load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong becomes the one message
            with files.opened(path, files.WEIGHTS) as stream:
                content = torch.load(stream, map_location="cpu", weights_only=True)
            if isinstance(content, torch.jit.ScriptModule):  # older versions of torch load one all the same
                raise CheckpointError(f"{path}: {_A_PROGRAM}")
            return content
    except CheckpointError as error:
        raise CheckpointError(f"--weights {error}") from error
    except Exception as error:  # torch, pickle and safetensors each have their own errors for a bad file
        why = _unreadable(head, named_safetensors, error)
        raise CheckpointError(f"--weights {path}: {why} ({_in_short(error)})") from error


def _unreadable(head: bytes, named_safetensors: bool, error: Exception) -> str:
    """Why a file cannot be read, in our words.

    Args:
        head: the first bytes of the file.
        named_safetensors: whether its name says that it holds safetensors.
        error: what the library raised.
    """
    said = str(error)
    # The length of its header, which is less than 4 GiB, and the header, which is JSON.
    by_safetensors = head[4:9] == b"\0\0\0\0{"
    by_torch = head.startswith((b"PK\x03\x04", b"\x80")) and not by_safetensors
    refused = re.search(r"GLOBAL (\S+)", said)
    causes = [
        (not head, "the file is empty"),
        (head.lstrip().lower().startswith(_WEB_PAGES), "it is a web page, so the download went wrong"),
        (
            head.startswith(b"version https://git-lfs"),
            "it is a pointer of Git LFS and not the weights themselves; `git lfs pull` fetches them",
        ),
        (by_torch and named_safetensors, "its name says safetensors, but it is a file of torch.save; name it .pt"),
        (by_safetensors and not named_safetensors, "it is a file of safetensors; name it .safetensors"),
        (
            "TorchScript" in said,
            _A_PROGRAM,
        ),
        (
            refused is not None,
            f"it holds more than tensors: a pickle that calls {shortened(refused[1]) if refused else ''}, which is not "
            "run; save the weights alone, with torch.save(model.state_dict(), ...)",
        ),
        (named_safetensors, "it is truncated, damaged, or not written by safetensors"),
        (by_torch, "it is truncated, damaged, or not written by torch.save"),
        (True, "it is a file of neither torch.save nor safetensors"),
    ]
    return next(cause for applies, cause in causes if applies)


def _in_short(error: Exception) -> str:
    """What a library says of a bad file; of torch, which explains at length how to read it all the same, the gist."""
    said = reason(error)
    gist = said.partition("WeightsUnpickler error: ")[2] or said
    return re.split(r"\. Please use|\. In PyTorch 2\.6| Check the documentation", gist)[0]


def _state_dict(path: Path, content: object, model: str) -> Mapping[str, Any]:
    """The state dict in the content of a file: the whole of it, or what is under ``state_dict``.

    Args:
        path: the file, for the message.
        content: of the file.
        model: what a state dict of the model looks like, for the message.

    Raises:
        CheckpointError: there is none.
    """
    expected = f"expected is a state dict, bare or under 'state_dict', {model}"
    if not isinstance(content, Mapping):
        raise CheckpointError(f"--weights {path}: it holds one object of type {type(content).__name__}; {expected}")
    inner = content.get("state_dict")
    state = inner if isinstance(inner, Mapping) else content
    # Beside tensors a module may keep anything, under a name that ends so.
    others = [key for key, value in state.items() if not isinstance(value, Tensor) and not _is_extra(key)]
    if not others:
        return state
    under = " under 'state_dict'" if state is inner else ""
    held = ", ".join(f"{shown(key)} (of type {type(state[key]).__name__})" for key in others[:_NAMED])
    raise CheckpointError(
        f"--weights {path}: it holds{under} what is not a tensor: {_and_more(held, others)}; {expected}"
    )


def _is_extra(key: object) -> bool:
    return isinstance(key, str) and key.endswith("_extra_state")


def _misfit(model: nn.Module, state: Mapping[str, Any]) -> str | None:
    """How the keys and shapes of a state dict differ from a model's; None where they do not."""
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    shaped = [
        key
        for key, value in own.items()
        if key in state and isinstance(value, Tensor) and not is_lazy(value) and value.shape != state[key].shape
    ]
    differences = []
    if missing:
        differences.append(f"missing are {len(missing)} of the model's {len(own)} keys: {_some(missing)}")
    if unknown:
        differences.append(f"unknown to the model are {len(unknown)} of the file's {len(state)} keys: {_some(unknown)}")
    if shaped:
        sizes = ", ".join(f"{shown(key)} {[*state[key].shape]} for {[*own[key].shape]}" for key in shaped[:_NAMED])
        differences.append(f"of another shape than the model's: {_and_more(sizes, shaped)}")
    return f"it does not fit the model; {'; '.join(differences)}" if differences else None


def _some(keys: Sequence[object]) -> str:
    return _and_more(", ".join(shown(key) for key in keys[:_NAMED]), keys)


def _and_more(named: str, of: Sequence[object]) -> str:
    return f"{named} and {len(of) - _NAMED} more" if len(of) > _NAMED else named
