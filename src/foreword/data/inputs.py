"""Inputs to answer: which of them an error is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from foreword.errors import DataError

T = TypeVar("T")
U = TypeVar("U")


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
