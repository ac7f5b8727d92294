"""Attributes of rows: columns, and the values that rows have in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.arguments import did_you_mean
from foreword.data.each import of_each
from foreword.data.values import class_of, in_column, is_missing
from foreword.description import MAX_LABEL, MAX_PIECES, is_label
from foreword.errors import DataError

Row = Mapping[str, Any]
Values = dict[str, tuple[str, ...]]
"""By attribute its values, in alphabetical order."""

_SIGNS = frozenset("[],=")
"""What separates attributes and their values in an expression."""


def values_in(names: Sequence[str], rows: Sequence[Row]) -> Values:
    """The values that rows have of attributes.

    Args:
        names: Columns, in the order that their virtual tokens will have.
        rows: Training rows.

    Raises:
        DataError: No row has a value in a column, one is none that names a piece or that an expression
            can select, or there are too many.
    """
    found = {name: tuple(sorted({*_column(name, rows)})) for name in names}
    for name, values in found.items():
        if not values:
            known = dict.fromkeys(str(column) for row in rows for column in row)
            said = "" if name in known else did_you_mean(name, known)
            raise DataError(
                f"no row has a value of the attribute {name!r}; the columns are: "
                f"{', '.join(known) or 'none'}{said}"
            )
    total = sum(map(len, found.values()))
    if total >= MAX_PIECES:
        most = max(found, key=lambda name: len(found[name]))
        raise DataError(
            f"the attributes have {total} values in all, {len(found[most])} of them of {most!r}; a "
            f"prefix has room for {MAX_PIECES - 1}. Leave an attribute out, or write rare values as one"
        )
    return found


def value_of(row: Row, name: str) -> str | None:
    """A row's value of an attribute; None where it has none, or a blank one.

    Raises:
        DataError: It is no text, whole number or truth value, or cannot name a piece.
    """
    if is_missing(row.get(name)):
        return None
    value = in_column(row, name, class_of)
    if not value.strip():
        return None
    if not is_label(f"{name}={value}"):
        raise DataError(
            f"column {name!r}: an attribute and its value have at most {MAX_LABEL - 1} printable "
            f"characters together; found {value[:40]!a}"
        )
    return value


def _column(name: str, rows: Sequence[Row]) -> list[str]:
    values = of_each(rows, lambda row: _selectable(name, value_of(row, name)), "row")
    return [value for value in values if value is not None]


def _selectable(name: str, value: str | None) -> str | None:
    """A value, once it is found that an expression can select it: ``prefix[name=value]``.

    Raises:
        DataError: It cannot.
    """
    if value is None or (value == value.strip(" ") and not _SIGNS.intersection(value)):
        return value
    raise DataError(
        f"column {name!r}: the value of an attribute has none of [ ] , = and no spaces at its ends, so "
        f"that an expression can select it; found {value[:40]!a}. Rename it in the rows"
    )
