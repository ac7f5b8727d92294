"""Inputs or rows, one after the other; an error says which of them it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from foreword.errors import DataError

T = TypeVar("T")
U = TypeVar("U")


def of_each(given: Iterable[T], read: Callable[[T], U], what: str = "input") -> list[U]:
    """What is read of each, in order.

    Args:
        given: Inputs, or rows.
        read: What to do with one.
        what: What one is called.

    Raises:
        DataError: One cannot be read; the message says which, counted from 1.
    """
    found = []
    for number, one in enumerate(given, 1):
        try:
            found.append(read(one))
        except DataError as error:
            raise DataError(f"{what} {number}: {error}") from error
    return found
