"""What rows select of a prefix with control, by the values that they have."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foreword.arithmetic.selection import UnseenValue, numbers_of
from foreword.attention.selected import Selection
from foreword.data.attributes import value_of
from foreword.data.each import of_each
from foreword.data.encode import Encoded, Report
from foreword.data.template import Input
from foreword.description import PrefixMeta
from foreword.prefix import Prefix


def chosen_by(meta: PrefixMeta, row: Input) -> Selection:
    """Numbers of the pieces that a row selects of a prefix; none of one without control, or for a text.

    Raises:
        DataError: A value cannot be read.

    Warns:
        UnseenValue: The prefix has no piece for a value.
    """
    return numbers_of(meta, values_of(meta, row))


def values_of(meta: PrefixMeta, row: Input) -> dict[str, str]:
    """The values that a row has of a prefix's attributes; none without control, or of a text.

    Raises:
        DataError: A value cannot be read.
    """
    if isinstance(row, str):
        return {}
    values = {name: value_of(row, name) for name in meta.attributes}
    return {name: value for name, value in values.items() if value is not None}


def selecting(
    meta: PrefixMeta, rows: Sequence[Mapping[str, Any]], encoded: Sequence[Encoded], report: Report
) -> tuple[list[Encoded], Report]:
    """Encoded rows with what each selects of a prefix, and the report on them as it is.

    Raises:
        DataError: A row's value cannot be read.
    """
    chosen = of_each(rows, lambda row: chosen_by(meta, row), "row")
    pairs = zip(encoded, chosen, strict=True)
    return [replace(one, pieces=pieces) if pieces else one for one, pieces in pairs], report


def tell_of_none(prefix: Prefix, rows: Sequence[Mapping[str, Any]]) -> None:
    """Say where rows could select pieces of a prefix, and not one of them does.

    Raises:
        DataError: A row's value cannot be read.

    Warns:
        UnseenValue: None has a value of an attribute.
    """
    names = [*prefix.meta.attributes]
    found = of_each(rows, lambda row: [value_of(row, name) for name in names], "row")
    if names and all(value is None for values in found for value in values):
        warnings.warn(
            f"no row has a value of the attributes {', '.join(map(repr, names))}, so the prefix's "
            "shared part stands alone; columns are called as in training",
            UnseenValue,
            stacklevel=3,
        )


def selections_of(prefix: object, inputs: Sequence[Input]) -> list[Selection] | None:
    """What each input selects of a prefix with control; None where there is nothing to select.

    Args:
        prefix: A prefix, or what else texts are written under.
        inputs: Texts and rows.

    Raises:
        DataError: An input's value cannot be read.
    """
    if not isinstance(prefix, Prefix) or prefix.meta.combination != "control":
        return None
    return of_each(inputs, lambda one: chosen_by(prefix.meta, one))
