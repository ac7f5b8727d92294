"""Slices of a prefix's virtual tokens.

Shapes: H key/value heads, P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foreword.arguments import shown
from foreword.arithmetic.agreement import check_attention
from foreword.arithmetic.base import Composable, P, changed, check_contents, plain
from foreword.arithmetic.record import begun, composed, cut
from foreword.description import Piece
from foreword.errors import PrefixError


def range_of(place: object, length: int) -> tuple[int, int]:
    """The virtual tokens that an index means, from the first to before the last.

    Raises:
        PrefixError: They are none, or not in a row.
    """
    if isinstance(place, slice):
        try:
            first, end, step = place.indices(length)
        except (TypeError, ValueError) as error:
            raise PrefixError(f"a slice is of whole numbers, as in prefix[2:8]: {error}") from error
        if step != 1:
            raise PrefixError(f"a slice has steps of 1, as in prefix[2:8]; found {place.step}")
        if first >= end:
            raise PrefixError(
                f"a slice needs at least one of the prefix's {length} virtual tokens; found none in "
                f"{first}:{end}"
            )
        return first, end
    if isinstance(place, bool) or not hasattr(place, "__index__"):
        raise PrefixError(f"a prefix is cut as in prefix[2:8] or prefix[3]; found {shown(place)}")
    number = operator.index(place)
    if not -length <= number < length:
        raise PrefixError(f"the prefix has virtual tokens 0 to {length - 1}; there is no {number}")
    first = number % length
    return first, first + 1


def cut_out(prefix: P, first: int, end: int, **changes: Any) -> P:
    """The virtual tokens from `first` to before `end`, keys and values as they are.

    Args:
        prefix: The prefix.
        first: The first one's number.
        end: The number after the last one's.
        **changes: Fields of the meta; by default its pieces are cut along.
    """
    check_contents(prefix)
    if not changes:
        check_attention("a slice", prefix)
        changes = {"pieces": _cut_pieces(prefix.meta.pieces, first, end)}
    if first and prefix.meta.positions == "offset" and prefix.meta.combination == "attention":
        raise PrefixError(
            "a slice that leaves out the first virtual tokens would stand where the text does: under "
            "the position policy 'offset' text begins at as many positions as there are tokens. "
            "Cut the end off (prefix[:8])",
            ", or move the prefix first, with backbone.moved(prefix, 'free')",
            command="",
        )
    of = [{"prefix": prefix.digest, "tokens": [first, end]}]
    record = cut(begun(prefix.meta, prefix.length), first, end)
    meta = composed(prefix.meta, "slice", of, record, **changes)
    start = (
        None
        if prefix.start is None
        else plain(prefix.start, _cut_tensors(prefix.start, first, end))
    )
    return changed(prefix, **_cut_tensors(prefix, first, end), meta=meta, start=start)


def _cut_tensors(prefix: Composable, first: int, end: int) -> dict[str, tuple[Tensor, ...]]:
    """Keys and values of some virtual tokens."""
    return {
        "keys": tuple(key_HPD[:, first:end] for key_HPD in prefix.keys),
        "values": tuple(value_HPE[:, first:end] for value_HPE in prefix.values),
    }


def _cut_pieces(pieces: Sequence[Piece], first: int, end: int) -> tuple[Piece, ...]:
    """What pieces have of some virtual tokens."""
    found, begin = [], 0
    for piece in pieces:
        left, right = max(begin, first), min(begin + piece.length, end)
        if left < right:
            found.append(dataclasses.replace(piece, length=right - left))
        begin += piece.length
    return tuple(found)
