"""Several references of one input in one row: a list in a target column is a row for each entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from foreword.data.each import of_each
from foreword.data.template import Task, columns
from foreword.data.values import text_of
from foreword.errors import DataError

Row = Mapping[str, Any]


def one_each(rows: Sequence[Row], task: Task) -> list[Row]:
    """The rows with one reference each, checked.

    A row whose target column holds a list stands once for each entry, in order. Conversations stay.

    Raises:
        DataError: A row lacks a column or has a value that is no text, its list is empty or has a blank
            entry, or two lists stand in one target; the message names the row.
    """
    if task.chat:
        task.check(rows)
        return [*rows]
    task.check_columns(rows)
    return [*chain.from_iterable(of_each(rows, lambda row: _spread(row, task), "row"))]


def _spread(row: Row, task: Task) -> list[Row]:
    """A row for each of its references."""
    names = _lists(row, task)
    if len(names) > 1:
        raise DataError(
            f"the columns {' and '.join(map(repr, names))} of the target {task.target!r} hold lists, "
            "and which entries belong together is not said; give one column with whole references, or "
            "each reference a row of its own"
        )
    if not names:
        task.check_values(row)
        return [row]
    (name,) = names
    spread = [{**row, name: entry} for entry in _entries(name, row[name])]
    task.check_values(spread[0])
    return [*spread]


def _lists(row: Row, task: Task) -> list[str]:
    """The columns of the target that hold lists, and that no input is made of."""
    named = dict.fromkeys(columns(task.target or ""))
    return [n for n in named if isinstance(row[n], list | tuple) and n not in task.asked]


def _entries(name: str, references: Sequence[Any]) -> list[str]:
    """The references of a list as text.

    Raises:
        DataError: There are none, or one is blank or no text.
    """
    if not references:
        raise DataError(
            f"column {name!r}: the list of references is empty, expected at least one; drop the row or "
            "fill it in"
        )
    return [_entry(name, number, one) for number, one in enumerate(references, 1)]


def _entry(name: str, number: int, reference: Any) -> str:
    where = f"column {name!r}, reference {number}"
    if isinstance(reference, list | tuple):
        raise DataError(f"{where}: found a list in the list, expected text or a number")
    try:
        text = text_of(reference)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if not text.strip():
        raise DataError(f"{where}: {text!r} is blank, expected text or a number; leave it out")
    return text
