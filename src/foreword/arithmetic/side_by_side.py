"""Prefixes side by side: their virtual tokens one after the other.

Shapes: H key/value heads, P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.arguments import expect, shown
from foreword.arithmetic.agreement import check_agreement, check_attention
from foreword.arithmetic.base import Composable, P, changed, check_contents, pieces_of, plain
from foreword.arithmetic.mixin import Arithmetic
from foreword.arithmetic.record import composed
from foreword.description import Combination, Piece
from foreword.errors import PrefixError


def concat(
    *prefixes: P,
    names: Sequence[str] | None = None,
    combination: Combination = "attention",
) -> P:
    """Prefixes side by side: their virtual tokens one after the other, keys and values as they are.

    Each becomes a piece of the result, at the strength that it has; of one with pieces, those do. In a
    mixture of logits that strength is its weight, and each prefix is one piece.

    Args:
        *prefixes: At least one prefix, without a head.
        names: A name for each prefix, which then is one piece; by default those that pieces have.
        combination: What the pieces are together; see `PrefixMeta`.

    Returns:
        A prefix with one piece for each; of one prefix and no names, that one. Its templates are those
        of the first prefix, in a mixture of the first that takes part, whose weight is not 0.

    Raises:
        PrefixError: The prefixes were not made for one backbone, tokenizer and policy, or have heads; or
            they lie at positions 0 to P-1 each (policy ``offset``) and would all be in front of the
            text, where `foreword.cascade` moves them apart.

    Examples:
        >>> both = foreword.concat(formal, polite.strength(0.5))  # doctest: +SKIP
        >>> [piece.strength for piece in both.meta.pieces]  # doctest: +SKIP
        [1.0, 0.5]
    """
    if len(prefixes) == 1 and names is None and combination == "attention":
        expect("prefix 1", prefixes[0], Arithmetic, "a Prefix", PrefixError)
        return prefixes[0]
    what = "one file of a mixture of logits" if combination == "logits" else "concat"
    check_side_by_side(what, prefixes)
    if combination == "attention":
        check_one_softmax(what, prefixes)
    if combination == "attention" and prefixes[0].meta.positions == "offset" and prefixes[1:]:
        raise PrefixError(
            "concat: under the position policy 'offset' each prefix lies at positions from 0 on, so "
            "that they would overlap. Put them behind one another with ",
            "foreword.cascade(backbone, ...)",
            command="--mode cascade",
        )
    return joined("concat", prefixes, [one.digest for one in prefixes], names, combination)


def check_side_by_side(what: str, prefixes: Sequence[Composable]) -> None:
    """Check that prefixes can stand in front of one text.

    Raises:
        PrefixError: There is none, or one does not go with the first.
    """
    if not prefixes:
        raise PrefixError(f"{what} needs at least one prefix; found none")
    for number, one in enumerate(prefixes, 1):
        expect(f"prefix {number}", one, Arithmetic, "a Prefix", PrefixError)
        if one.head is not None:
            raise PrefixError(
                f"{what}: prefix {number} carries a head, and one text has one; ",
                "drop it with prefix.with_head(None)",
                command="use prefixes that write text, or --mode sum",
            )
        check_attention(what, one)
        check_contents(one)
        check_agreement(what, prefixes[0], one)
        if one.dtype != prefixes[0].dtype:
            raise PrefixError(
                f"{what} needs prefixes of one dtype; prefix 1 has {prefixes[0].dtype}, prefix "
                f"{number} {one.dtype}. Round one with prefix.to(dtype)"
            )


def check_one_softmax(what: str, prefixes: Sequence[Composable]) -> None:
    """Check that prefixes share the text's softmax, if they are several.

    Raises:
        PrefixError: They are gated: side by side they would share one softmax of their own, and be
            averaged, where each was trained to be added.
    """
    if len(prefixes) > 1 and prefixes[0].meta.softmax == "own":
        raise PrefixError(
            f"{what}: gated prefixes have a softmax of their own each, and side by side they would "
            "share one, which averages what they add. ",
            "Mix what they predict (combination 'logits'), or add what they learned (a + b)",
            command="Mix what they predict (--mode logits), or add what they learned (--mode sum)",
        )


def joined(
    mode: str,
    prefixes: Sequence[P],
    digests: Sequence[str],
    names: Sequence[str] | None = None,
    combination: Combination = "attention",
) -> P:
    """Prefixes that go together, with their tensors one after the other; see `concat`.

    Args:
        mode: What the record of the composition calls it.
        prefixes: The prefixes.
        digests: By prefix that of its parent.
        names: As in `concat`.
        combination: As in `concat`.
    """
    first = prefixes[0]
    of = [{"prefix": digest} for digest in digests]
    pieces = _named(prefixes, names, combination)
    leading = first
    if combination == "logits":  # as in a Mixture
        takes_part = (one for one, piece in zip(prefixes, pieces, strict=True) if piece.strength)
        leading = next(takes_part, first)
    meta = composed(leading.meta, mode, of, None, pieces=pieces, combination=combination)
    starts = [one.start for one in prefixes if one.start is not None]
    start = None
    if len(starts) == len(prefixes):
        start = plain(starts[0], _side_by_side(starts))
    return changed(first, **_side_by_side(prefixes), meta=meta, start=start)


def _named(
    prefixes: Sequence[Composable], names: Sequence[str] | None, combination: Combination
) -> tuple[Piece, ...]:
    """The pieces of prefixes side by side: what they have, or one for each."""
    if names is None and combination == "attention":
        return tuple(piece for one in prefixes for piece in pieces_of(one))
    if names is None:
        names = ["" if len(pieces_of(one)) > 1 else pieces_of(one)[0].name for one in prefixes]
    given = isinstance(names, Sequence) and not isinstance(names, str)
    if not given or len(names) != len(prefixes):
        raise PrefixError(
            f"names must be one for each of {len(prefixes)} prefixes; found {shown(names)}"
        )
    return tuple(_as_one(name, one) for name, one in zip(names, prefixes, strict=True))


def _as_one(name: str, prefix: Composable) -> Piece:
    """All of a prefix as one piece."""
    pieces = pieces_of(prefix)
    strengths = [piece.strength for piece in pieces]
    if len(pieces) > 1 and set(strengths) != {1.0}:
        raise PrefixError(
            f"the prefix that becomes the piece {shown(name)} has pieces of strengths {strengths}, and "
            "as one piece they would all have one; give it at full strength"
        )
    return Piece(name, prefix.length, strengths[0])


def _side_by_side(prefixes: Sequence[Composable]) -> dict[str, tuple[Tensor, ...]]:
    """Per site the keys and the values of prefixes, one after the other."""
    keys = zip(*(one.keys for one in prefixes), strict=True)
    values = zip(*(one.values for one in prefixes), strict=True)
    return {
        "keys": tuple(torch.cat(every_HPD, dim=1) for every_HPD in keys),
        "values": tuple(torch.cat(every_HPE, dim=1) for every_HPE in values),
    }
