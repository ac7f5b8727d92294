"""Selections of a prefix with control: its shared piece, and those of values of its attributes.

Source: Clive, Cao and Rei, "Control Prefixes for Parameter-Efficient Text Generation", 2022 (arXiv
2110.08329).

Shapes: H key/value heads, P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from foreword.arguments import check_text, did_you_mean
from foreword.arithmetic.base import Composable, P, changed, check_contents, plain
from foreword.arithmetic.record import composed
from foreword.description import Piece, PrefixMeta
from foreword.errors import Notice, PrefixError

SHOWN = 8
"""Values of an attribute that a notice names at most."""


class UnseenValue(Notice):
    """No piece was trained for a value of an attribute, so the shared piece stands alone for it."""


def selected(prefix: P, values: Mapping[str, str], what: str = "the prefix") -> P:
    """The shared piece of a prefix with control and the pieces of some values; see `Prefix.select`.

    Args:
        prefix: The prefix.
        values: By attribute its value.
        what: What errors and warnings call the prefix.
    """
    if prefix.meta.combination != "control":
        if values:
            raise PrefixError(
                f"{what} has no attributes to select by; only a prefix that was trained with attributes "
                "has",
                " (TrainSettings.attributes)",
                command=" (foreword train --attributes)",
            )
        return prefix
    check_contents(prefix)
    chosen = numbers_of(prefix.meta, values, what)
    names = [prefix.meta.pieces[number].name.partition("=") for number in chosen]
    of = {"prefix": prefix.digest, "values": {attribute: value for attribute, _, value in names}}
    kept = pieces_at(prefix.meta, chosen)
    meta = composed(prefix.meta, "select", [of], None, pieces=kept, combination="attention")
    start = prefix.start
    if start is not None:
        start = plain(start, tensors_at(start, prefix.meta, chosen))
    return changed(prefix, **tensors_at(prefix, prefix.meta, chosen), meta=meta, start=start)


def numbers_of(
    meta: PrefixMeta, values: Mapping[str, str], what: str = "the prefix"
) -> tuple[int, ...]:
    """The numbers of the pieces that values of attributes select beside the shared one, in order.

    Args:
        meta: Meta of a prefix with control.
        values: By attribute its value.
        what: What errors and warnings call the prefix.

    Raises:
        PrefixError: The prefix has no such attribute.

    Warns:
        UnseenValue: An attribute has no piece for its value.
    """
    known, wanted = meta.attributes, set()
    for attribute, value in values.items():
        check_text("an attribute", attribute, PrefixError)
        check_text(f"the value of {attribute!a}", value, PrefixError)
        if attribute not in known:
            raise PrefixError(
                f"{what} has no attribute {attribute!a}; it has {', '.join(map(ascii, known))}"
                f"{did_you_mean(attribute, known)}"
            )
        if value not in known[attribute]:
            said = unseen(what, attribute, known[attribute], value)
            warnings.warn(said, UnseenValue, stacklevel=4)
        wanted.add(f"{attribute}={value}")
    return tuple(i for i, piece in enumerate(meta.pieces) if i and piece.name in wanted)


def unseen(what: str, attribute: str, known: Sequence[str], value: str) -> str:
    """What to say of a value that no piece was trained for, however many and long the known ones are."""
    short = [ascii(one if len(one) <= 40 else f"{one[:40]}...") for one in known[:SHOWN]]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return (
        f"{what} was trained for {attribute} = {', '.join(short)}{more}, and not for {value!a}: its "
        "shared part stands alone for it"
    )


def part_at(prefix: P, chosen: Sequence[int]) -> P:
    """As `selected`, by the numbers of pieces, without a record and a start, and with gradients."""
    meta = dataclasses.replace(
        prefix.meta, pieces=pieces_at(prefix.meta, chosen), combination="attention"
    )
    return changed(prefix, **tensors_at(prefix, prefix.meta, chosen), meta=meta, start=None)


def pieces_at(meta: PrefixMeta, chosen: Sequence[int]) -> tuple[Piece, ...]:
    """The shared piece and the chosen ones; none if all are at full strength, as of a plain prefix."""
    pieces = tuple(meta.pieces[number] for number in (0, *chosen))
    return () if all(piece.strength == 1 for piece in pieces) else pieces


def places_at(meta: PrefixMeta, chosen: Sequence[int]) -> list[tuple[int, int]]:
    """First and end of the virtual tokens of the shared piece and the chosen ones."""
    spans = [*pairwise(accumulate((piece.length for piece in meta.pieces), initial=0))]
    return [spans[number] for number in (0, *chosen)]


def tensors_at(
    prefix: Composable, meta: PrefixMeta, chosen: Sequence[int]
) -> dict[str, tuple[Tensor, ...]]:
    """Keys (H, P, D) and values (H, P, E) of the shared piece and the chosen ones.

    Args:
        prefix: What they are of.
        meta: What says which pieces it has.
        chosen: Numbers of pieces.
    """
    places = places_at(meta, chosen)

    def of(whole_HPd: Tensor) -> Tensor:
        return torch.cat([whole_HPd[:, first:end] for first, end in places], dim=1)

    return {"keys": tuple(map(of, prefix.keys)), "values": tuple(map(of, prefix.values))}
