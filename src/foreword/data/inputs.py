"""What is to be answered, however it is given: one input, many, or a file of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foreword.data.sources import read_rows
from foreword.data.template import Input
from foreword.errors import DataError

Inputs = Input | Path | Iterable[Input]
"""Texts or rows; one text or row alone; or the path of a file that holds them."""


def inputs_of(given: Inputs) -> list[Input]:
    """The inputs, each a text or a row.

    A text alone is one input and not its letters, a row alone is one and not its columns' names. A file
    holds rows as in training, or one text per line (.txt), where empty lines are passed over.

    Raises:
        DataError: One is neither text nor row, or the file cannot be read.
    """
    if isinstance(given, str | Mapping):
        return [given]
    if isinstance(given, Path):
        return _lines(given) if given.suffix.lower() == ".txt" else list(read_rows(str(given)))
    found = list(_records(given))
    for number, one in enumerate(found, 1):
        if not isinstance(one, str | Mapping):
            raise DataError(
                f"input {number} must be a text, or a row of columns by name; found "
                f"{type(one).__name__}"
            )
    return found


def texts_of(given: str | Path | Iterable[str]) -> list[str]:
    """Inputs that are texts.

    Raises:
        DataError: One is none.
    """
    found: list[str] = []
    for number, one in enumerate(inputs_of(given), 1):
        if not isinstance(one, str):
            raise DataError(f"input {number} must be a text; found {type(one).__name__}")
        found.append(one)
    return found


def _records(given: Any) -> Iterable[Any]:
    """What the inputs are iterated over; a pandas DataFrame's are its rows, not its columns' names."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(given, pandas.DataFrame):
        records: list[Any] = given.to_dict("records")
        return records
    if isinstance(given, bytes | bytearray) or not isinstance(given, Iterable):
        raise DataError(
            "inputs must be a text, a row, a Path, or several texts or rows; found "
            f"{type(given).__name__}"
        )
    return given


def _lines(path: Path) -> list[Input]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read inputs from {path}: {error}") from error
    return [line for line in lines if line.strip()]
