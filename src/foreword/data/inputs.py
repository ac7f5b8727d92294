"""Inputs to answer: texts and rows, however they are given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.data.each import of_each
from foreword.data.given import Data, is_rows
from foreword.data.sources import rows_of
from foreword.data.template import Input
from foreword.errors import DataError

Inputs = Input | Iterable[Input] | Data
"""A text, a row, several of both, or rows as `Data` has them; a text is an input and no source."""


def inputs_of(given: Inputs) -> list[Input]:
    """The inputs, one after the other.

    A text alone is one input and not its letters, a row alone is one and not its columns' names. A path
    is a file of rows, as in training, or of one text per line (.txt).

    Raises:
        DataError: One is neither text nor a row, or rows cannot be read.
    """
    if isinstance(given, os.PathLike) and is_lines(given):
        return list(read_lines(given))
    if is_rows(given):
        return list(rows_of(given))  # type: ignore[arg-type]
    if isinstance(given, str | Mapping):
        return [given]
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise DataError(f"inputs are texts or rows; found {type(given).__name__}")
    return of_each(given, _input)


def texts_of(given: Inputs, pair: Sequence[str] = ()) -> list[Input]:
    """The inputs, all of them texts, or rows with the columns of a pair of texts where any are named.

    Raises:
        DataError: One is not.
    """
    return of_each(inputs_of(given), lambda one: _text(one, pair))


def is_lines(file: str | os.PathLike[str]) -> bool:
    """Whether a file holds one text per line, by its name."""
    return os.fspath(file).lower().endswith(".txt")


def read_lines(file: str | os.PathLike[str]) -> list[str]:
    """The texts of a file, one per line; empty lines are passed over.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return lines_of(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read inputs from {os.fspath(file)}: {error}") from error


def lines_of(content: bytes) -> list[str]:
    """The lines of a file that are not empty, which end where a file's lines do and nowhere else.

    Not splitlines(), which would also split at characters that a line may hold, as U+2028.

    Raises:
        UnicodeDecodeError: They are not UTF-8.
    """
    lines = [line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n")]
    return [line for line in lines if line.strip()]


def _input(one: Any) -> Input:
    if not isinstance(one, str | Mapping):
        raise DataError(f"expected text or a row, found {type(one).__name__}")
    return one


def _text(one: Input, pair: Sequence[str]) -> Input:
    if isinstance(one, str) or (pair and set(pair) <= set(one)):
        return one
    also = f"; a pair of texts is a row with {' and '.join(pair)}" if pair else ""
    raise DataError(f"expected text, found {type(one).__name__}{also}")
