"""Values of rows as text, in one way: what is written, and what is refused."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any

import numpy as np

from foreword.errors import DataError

EXPECTED = "expected text, a number, a truth value or a date"


def text_of(value: Any) -> str:
    """A value of a row as text.

    Text stays as it is. A whole number is written in digits, any other in the fewest digits that give it
    again (``0.1``, ``1.0``, ``1e-07``), a decimal with all of its places; a truth value as ``True`` or
    ``False``; a date, a time or both as ISO 8601 with a space between. numpy's and pandas' values are
    written as Python's are.

    Raises:
        DataError: There is no value, or it is of another kind.
    """
    if is_missing(value):
        raise DataError(
            f"there is no value (found {value!r}); {EXPECTED}. Drop the row or fill it in"
        )
    if isinstance(value, Enum):
        return text_of(value.value)
    if isinstance(value, str | bool | np.bool_ | date | time):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return format(value, "f")
    if isinstance(value, numbers.Real) and abs(value) != float("inf"):
        return str(value)
    several = ""
    if isinstance(value, list | tuple):
        several = ". Only the target may name a column of lists: several references of one input"
    raise DataError(f"found {_kind(value)}, {EXPECTED}; write it as text first{several}")


def class_of(value: Any) -> str:
    """A value of a row as the name of a class: text, a whole number or a truth value.

    Raises:
        DataError: It is none of these. A number with a fraction is measured, not named.
    """
    text = text_of(value)
    is_whole = isinstance(value, numbers.Integral | bool | np.bool_)
    if isinstance(value, numbers.Number) and not is_whole:
        raise DataError(
            f"found the number {text}, expected a class: text, a whole number or a truth value; write "
            "it as one of these if it is a name"
        )
    return text


def in_column(row: Mapping[str, Any], name: str, read: Callable[[Any], str]) -> str:
    """What is read of a row's value.

    Raises:
        DataError: It cannot be read; the message names the column.
    """
    try:
        return read(row[name])
    except DataError as error:
        raise DataError(f"column {name!r}: {error}") from error


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, or pandas' NA and NaT."""
    if value is None or type(value).__name__ == "NAType":
        return True
    return isinstance(value, numbers.Number | date | np.datetime64) and bool(value != value)


def _kind(value: Any) -> str:
    """A value in a few words."""
    name = type(value).__name__
    shown = repr(value)
    what = f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
    if isinstance(value, bytes | bytearray):
        what = "bytes"
    return f"{what}, {shown if len(shown) <= 40 else shown[:37] + '...'}"
