"""Checksums of what a run directory holds: of tables and of JSON by their content, however they lie in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

import pyarrow as pa


def json_checksum(content: Mapping[str, object]) -> str:
    """``sha256:`` and the SHA-256 of a JSON object: of keys, their order and values, not of layout.

    Raises:
        ValueError: it holds NaN or an infinity, which are no JSON.
        TypeError: it holds what JSON cannot.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def table_digest(table: pa.Table, *about: str) -> str:
    """The SHA-256 of a table: of the names, types and values of its columns, in their order, and of nulls.

    How the values are split into chunks does not matter, nor what the entries of lists are called, which differs
    between versions of Arrow.

    Args:
        table: columns of numbers, booleans and strings, and of lists of them.
        *about: what else the digest covers.

    Raises:
        TypeError: a column is of a type that has no digest.
    """
    head = [about, table.num_rows, column_types(table.schema)]
    digest = hashlib.sha256(json.dumps(head).encode())
    for column in table.columns:
        for chunk in _content(column.combine_chunks()):
            digest.update(chunk)
    return digest.hexdigest()


def column_types(schema: pa.Schema) -> list[tuple[str, str]]:
    """Names and types of columns, without what differs between versions of Arrow."""
    return [(column.name, _type_name(column.type)) for column in schema]


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list<{_type_name(kind.value_type)}>"
    return "string" if pa.types.is_large_string(kind) else str(kind)


def _content(values: pa.Array) -> Iterator[bytes]:
    """The bytes of an array: which entries are not null, and those; of lists the lengths, and what is in them."""
    yield values.is_valid().to_numpy(zero_copy_only=False).tobytes()
    values = values.drop_null()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        yield values.value_lengths().cast(pa.int64()).to_numpy().tobytes()
        yield from _content(values.flatten())
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type):
        yield values.to_numpy(zero_copy_only=False).tobytes()
    else:
        yield json.dumps(values.to_pylist()).encode()
