"""Strengths: how far attention goes from what it is without some virtual tokens to what it is with them.

An output at strength s is ``without + s * (with - without)``: at 0 what the model gives without these
virtual tokens, at 1 what it gives with them, on a straight line between and beyond. Where a row has
several strengths, this holds of each while the others stay, so the output is linear in every one of
them. With strengths between 0 and 1 it is the mean over a random choice of which are there, each with
its strength as the probability.

In terms of attention mass: where virtual tokens hold the share m of a query's softmax, at strength s
they hold s * m of it, and the text the rest.

Shapes: B batch, H heads, Q queries, J columns that are attended to, P of a prefix and the call's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple, cast

import torch
from torch import Tensor

MAX_STRENGTHS = 4
"""Strengths that a row may have at most, 0 and 1 aside: each doubles what attention computes."""

Absent = tuple[int, ...]
"""Which of a row's strengths' virtual tokens are away, by their place among the strengths."""


class Strength(NamedTuple):
    """A strength of each row, and what it is the strength of.

    Attributes:
        value_B111: The strengths, float32; 1 for a row without any.
        columns_B11J: Its virtual tokens, boolean.
    """

    value_B111: Tensor
    columns_B11J: Tensor


def blended(strengths: Sequence[Strength], compute: Callable[[Absent], Tensor]) -> Tensor:
    """What attention gives under some strengths, float32 at least.

    Args:
        strengths: Any number of them.
        compute: What it gives without the virtual tokens of some, (B, any, any, any).
    """

    def at(place: int, absent: Absent) -> Tensor:
        if place == len(strengths):
            found = compute(absent)
            return found.to(torch.promote_types(found.dtype, torch.float32))
        without, whole = at(place + 1, (*absent, place)), at(place + 1, absent)
        return torch.lerp(without, whole, strengths[place].value_B111.to(whole))

    return at(0, ())


def blended_outputs(
    strengths: Sequence[Strength], compute: Callable[[Absent], tuple[Tensor, Tensor | None]]
) -> tuple[Tensor, Tensor | None]:
    """`blended` for outputs and attention weights, if there are any, in their own dtypes."""
    known: dict[Absent, tuple[Tensor, Tensor | None]] = {}

    def at(absent: Absent) -> tuple[Tensor, Tensor | None]:
        if absent not in known:
            known[absent] = compute(absent)
        return known[absent]

    whole, shown = at(())
    out = blended(strengths, lambda absent: at(absent)[0]).to(whole.dtype)
    if shown is None:
        return out, None
    weights = blended(strengths, lambda absent: cast("Tensor", at(absent)[1]))
    return out, weights.to(shown.dtype)


def absent_columns(strengths: Sequence[Strength], absent: Absent) -> Tensor | None:
    """Columns that are away, boolean (B, 1, 1, J), or None where all are there."""
    found = [strengths[place].columns_B11J for place in absent]
    return reduce(torch.logical_or, found) if found else None


def blended_softmax(scores: Tensor, strengths: Sequence[Strength]) -> Tensor:
    """The weights of one softmax under some strengths, float32 at least.

    What they give is linear in the weights, so blending these is blending the outputs, and the products
    with keys and values are not made twice.

    Args:
        scores: Of all columns, masked already, (B, H, Q, J).
        strengths: At least one.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)

    def weights(absent: Absent) -> Tensor:
        hidden = absent_columns(strengths, absent)
        seen = (
            scores if hidden is None else scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
        )
        return torch.softmax(seen, dim=-1, dtype=wide)

    return blended(strengths, weights)
