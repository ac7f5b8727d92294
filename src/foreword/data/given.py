"""Rows as Python code holds them: lists, data frames, sets of the datasets library, streams."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from foreword.data.strict_json import refuse_repeats
from foreword.errors import DataError

Row = Mapping[str, Any]


@runtime_checkable
class Frame(Protocol):
    """A table as pandas has it."""

    columns: Any
    iloc: Any

    def to_dict(self, orient: Any) -> Any:
        """The table's rows, where `orient` is ``records``."""


@runtime_checkable
class Formatted(Protocol):
    """A set of the datasets library, in memory or streamed."""

    features: Any

    def with_format(self, type: Any) -> Any:
        """The same set with values of another kind, where None stands for Python's own."""


Data = str | os.PathLike[str] | Iterable[Row] | Frame | Formatted
"""Where rows are read, or the rows: mappings, a pandas frame, a set of the datasets library."""

TRAIN = "train"
"""The split that is taken of several, unless one is named."""


class Rows(list[Row]):
    """Rows that were read, and where.

    Attributes:
        source: The path, or the name of the set.
    """

    def __init__(self, rows: Iterable[Row], source: str) -> None:
        super().__init__(rows)
        self.source = source


def name_of(data: Data) -> str:
    """Where rows were read, or nothing for rows that were given."""
    if isinstance(data, Rows):
        return data.source
    return os.fspath(data) if isinstance(data, str | os.PathLike) else ""


def given_rows(data: Any) -> list[Row]:
    """Rows that are given, whatever holds them.

    Raises:
        DataError: It holds no rows; the message says what was found.
    """
    if isinstance(data, Frame):
        return _of_frame(data)
    if isinstance(data, Formatted):
        return _of_set(data)
    if isinstance(data, Mapping):
        return given_rows(_split(data))
    if isinstance(data, bytes) or not isinstance(data, Iterable):
        raise DataError(
            f"found {_kind(data)}, expected rows: a list of mappings, a data frame, a data set, or "
            "where to read them"
        )
    rows = list(data)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {number} is {_kind(row)}, expected a mapping from columns to values"
            )
    return rows


def is_rows(given: Any) -> bool:
    """Whether it holds rows or says where they are, and is no text, no row, and no list of these."""
    if isinstance(given, Mapping):
        return bool(given) and all(isinstance(part, Formatted) for part in given.values())
    return isinstance(given, os.PathLike | Frame | Formatted)


def _of_set(data: Any) -> list[Row]:
    """Python's own values, not tensors; what a transform of the user's makes stays."""
    form = getattr(data, "format", None)
    has_transform = isinstance(form, Mapping) and form.get("type") == "custom"
    return list(data if has_transform else data.with_format(None))


def _of_frame(frame: Frame) -> list[Row]:
    names = [str(name) for name in frame.columns]
    refuse_repeats(names, "the data frame")
    rows = frame.to_dict("records")
    return [
        {name: _plain(value) for name, value in zip(names, row.values(), strict=True)}
        for row in rows
    ]


def _plain(value: Any) -> Any:
    """Lists that a frame holds as arrays."""
    import numpy as np

    return value.tolist() if isinstance(value, np.ndarray) else value


def _split(sets: Mapping[Any, Any]) -> Any:
    """The one set of several that is meant.

    Raises:
        DataError: None is, or they are no sets.
    """
    if not is_rows(sets):
        raise DataError(
            "found a dict, expected rows: a list of mappings; put a single row into a list, and give "
            "columns as a data frame"
        )
    if len(sets) == 1 or TRAIN in sets:
        return sets.get(TRAIN, next(iter(sets.values())))
    raise DataError(
        f"the data set has the splits {', '.join(map(str, sets))} and none called {TRAIN!r}; give one "
        f"of them, such as data[{next(iter(sets))!r}]"
    )


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
