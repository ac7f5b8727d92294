"""The header of a safetensors file, read with care: it is data from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

from foreword.description import MAX_DEPTH, nesting
from foreword.errors import CorruptFile, TruncatedFile
from foreword.files import NOT_FETCHED, POINTER, is_pointer

MAX_HEADER = 16 * 2**20
"""Largest header that is read, in bytes."""


def raw_header(file: BinaryIO, size: int) -> bytes:
    """The bytes of a safetensors file's header, once their claimed number is found to be possible.

    Raises:
        TruncatedFile: The file ends before the header does.
        CorruptFile: The header is too large to be one.
    """
    if size < 8:
        raise TruncatedFile(f"expected at least 8 bytes, found {size}")
    begin = file.read(min(size, len(POINTER)))
    if is_pointer(begin):
        raise CorruptFile(NOT_FETCHED)
    file.seek(8)
    claimed = int.from_bytes(begin[:8], "little")
    if claimed > MAX_HEADER:
        raise CorruptFile(f"its header claims {claimed} bytes; at most {MAX_HEADER} are allowed")
    if 8 + claimed > size:
        raise TruncatedFile(f"its header claims {claimed} bytes, {size - 8} follow")
    return file.read(claimed)


def parsed(what: str, text: bytes | str) -> dict[str, Any]:
    """A JSON object; names that stand twice, NaN and infinity are refused.

    Raises:
        CorruptFile: It is none; the message calls it `what`.
    """
    if isinstance(text, bytes) and is_pointer(text):
        raise CorruptFile(NOT_FETCHED)
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        found = json.loads(
            decoded, object_pairs_hook=_without_repeats, parse_constant=_without_constants
        )
    except ValueError as error:
        raise CorruptFile(f"its {what} is not JSON: {error}") from error
    except RecursionError as error:
        raise CorruptFile(f"its {what} nests too deeply") from error
    if nesting(found) > MAX_DEPTH + 2:  # a recipe lies two levels deep in its description
        raise CorruptFile(f"its {what} nests too deeply")
    if not isinstance(found, dict):
        raise CorruptFile(f"its {what} is a JSON {type(found).__name__}, expected an object")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _without_constants(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def spelled(header: Mapping[str, Any]) -> bytes:
    """A header's bytes: compact JSON, filled up with spaces to a multiple of 8."""
    compact = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return compact + b" " * (-len(compact) % 8)
