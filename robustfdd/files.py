"""Reading files of others: regular files alone, of at most the size that a file of its kind can have.

A pipe waits for a writer that never comes, a device never ends, and a file can be larger than the memory. So whoever
reads a file asks for it here, with the limit of its kind, before anything of it is read. What is refused is refused
with an :class:`OSError`, whose ``strerror`` says why, as that of a file that may not be read does.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30

#: The largest file of each kind that is read, in bytes: a hundred times what anybody was seen to need, or more.
SPECIFICATION = 128 * _KIB  # a study or an attack file
PUBLISHED = 16 * _MIB  # figures of a publication
JSON = 32 * _MIB  # a manifest, a failure, the history of a training
NOTE = 64 * _KIB  # who holds a run directory
JOURNAL = 64 * _MIB
TABLE = _GIB  # results, and the table of an analysis
WEIGHTS = 32 * _GIB  # a checkpoint, a snapshot, somebody's weights
CODE = 4 * _MIB  # a plug-in
IMAGE = 256 * _MIB  # one image of a folder
ARCHIVE = 4 * _GIB  # a file of a published data set

_BLOCK = _MIB
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
}


def check(path: Path, limit: int) -> None:
    """Make sure that a file can be read to its end: for readers that open it by its name.

    Args:
        path: the file; links are followed.
        limit: the largest size in bytes.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is something else than a regular file, or larger.
    """
    _check(path.stat(), path, limit)


def _check(found: os.stat_result, path: Path, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(number, f"{kind}, not a regular file", str(path))
    if found.st_size > limit:
        raise _too_large(path, limit)


def _too_large(path: Path, limit: int) -> OSError:
    return OSError(errno.EINVAL, f"larger than {size_in_words(limit)}, the most that a file of its kind has", str(path))


def size_in_words(n_bytes: int) -> str:
    """A size as messages have it: ``"256 KiB"``."""
    for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:g} {name}"
    return f"{n_bytes} bytes"


def opened(path: Path, limit: int) -> BinaryIO:
    """A file opened for reading, buffered, in bytes; to be used as a context.

    Args:
        path: the file; links are followed.
        limit: the largest size in bytes.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, is something else than a regular file, or larger.
    """
    check(path, limit)  # before it is opened, since that alone makes some devices do something
    # What took its place meanwhile is not waited for.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    try:
        _check(os.fstat(descriptor), path, limit)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a file; see :func:`opened`."""
    blocks: list[bytes] = []
    size = 0
    with opened(path, limit) as stream:
        while block := stream.read(_BLOCK):
            size += len(block)
            if size > limit:  # one that grows, or of a file system whose files have no size
                raise _too_large(path, limit)
            blocks.append(block)
    return b"".join(blocks)


def read_text(path: Path, limit: int, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    r"""The text of a file, with every line end as ``"\n"``; see :func:`opened`.

    Raises:
        UnicodeDecodeError: it is not in the encoding.
    """
    text = read_bytes(path, limit).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def sha256(path: Path, limit: int) -> str:
    """The SHA-256 of a file, in hexadecimal; see :func:`opened`."""
    digest = hashlib.sha256()
    with opened(path, limit) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
