"""Inputs to answer: texts and rows, however they are given, and which of them an error is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from foreword.data.given import Data, is_rows
from foreword.data.sources import rows_of
from foreword.data.template import Input
from foreword.errors import DataError

T = TypeVar("T")
U = TypeVar("U")

Inputs = Input | Iterable[Input] | Data
"""A text, a row, several of both, or rows as `Data` has them; a text is an input and no source."""


def inputs_of(given: Inputs) -> list[Input]:
    """The inputs, one after the other.

    Raises:
        DataError: One is neither text nor a row, or rows cannot be read.
    """
    if is_rows(given):
        return list(rows_of(given))  # type: ignore[arg-type]
    if isinstance(given, str | Mapping):
        return [given]
    if not isinstance(given, Iterable):
        raise DataError(f"inputs are texts or rows; found {type(given).__name__}")
    return of_each(given, _input)


def texts_of(given: Inputs) -> list[str]:
    """The inputs, all of them texts.

    Raises:
        DataError: One is not.
    """
    return of_each(inputs_of(given), _text)


def of_each(inputs: Iterable[T], read: Callable[[T], U]) -> list[U]:
    """What is read of each input, in order.

    Raises:
        DataError: One cannot be read; the message says which.
    """
    found = []
    for number, one in enumerate(inputs, 1):
        try:
            found.append(read(one))
        except DataError as error:
            raise DataError(f"input {number}: {error}") from error
    return found


def _input(one: Any) -> Input:
    if not isinstance(one, str | Mapping):
        raise DataError(f"expected text or a row, found {type(one).__name__}")
    return one


def _text(one: Any) -> str:
    if not isinstance(one, str):
        raise DataError(f"expected text, found {type(one).__name__}")
    return one
