"""Errors that a user can act on, and errors that stop one unit of work.

A :class:`RobustFDDError` is a mistake in what was asked for: its message names the file, the key and what is
allowed, and the command line prints it alone, without a traceback, and exits with code 2. A :class:`UnitError` is a
fault of one training run or one attack on one model: that unit has no record, and the report says so.
"""

from __future__ import annotations


class RobustFDDError(Exception):
    """A mistake in the input; the message says where it is and what is allowed."""


class ConfigurationError(RobustFDDError):
    """A study file, attack file or option is wrong."""


class DatasetError(RobustFDDError):
    """A data set is unknown, missing, corrupt or not what the model expects."""


class CheckpointError(RobustFDDError):
    """A checkpoint is missing, corrupt or of another data set."""


class ModelContractError(RobustFDDError):
    """A model does not take pixels in [0, 1] and return one finite logit per class."""


class RunDirectoryError(RobustFDDError):
    """A run directory is missing, damaged or belongs to another study."""


class OutOfSpaceError(RobustFDDError):
    """There is no room for a file: the disk is full, or a quota is used up."""


class RunLockedError(RobustFDDError):
    """Another process works in the run directory."""


class UnitError(Exception):
    """One unit of a study could not be completed; the others are not touched by it."""


class TrainingError(UnitError):
    """Training broke down: the loss is no longer finite."""


class EngineError(UnitError):
    """An attack broke its budget, its box or its arithmetic."""


class UndefinedGradientError(EngineError):
    """The gradient of too many images was NaN or infinite, so that the attack could not move them."""


class WorkerDiedError(UnitError):
    """The process that worked on a unit ended in the middle of it: killed, crashed or out of memory."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


#: Words by which torch and the libraries below it say that memory ran out, where they raise a plain RuntimeError.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
    "allocation_failed",  # as cuDNN 9 spells it
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device and by whatever library."""
    # By name, since this module does not import torch.
    said = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or said
