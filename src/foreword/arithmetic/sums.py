"""Sums of what was learned, and interpolation.

Shapes: H key/value heads, P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.arithmetic.agreement import (
    check_agreement,
    check_heads,
    check_length,
    check_pieces_alike,
)
from foreword.arithmetic.base import Composable, P, changed, check_contents
from foreword.arithmetic.record import begun, composed, merged, terms
from foreword.description import PrefixMeta
from foreword.errors import PrefixError

NO_START = (
    "{} is of what was learned, and it is not known where the {} prefix started. Recompute it with "
    "foreword.with_start(backbone, prefix), or use a.interpolate(b, t), which needs no start"
)


def plus(one: P, other: P, weight: float) -> P:
    """One prefix plus a weight times what another learned."""
    what = "a sum" if weight > 0 else "a difference"
    _check_alike(what, one, other)
    for place, each in (("first", one), ("second", other)):
        if each.start is None:
            raise PrefixError(NO_START.format(what, place))
    start = _same_start(one, other)
    if start is None:
        raise PrefixError(
            f"{what} is of what was learned since one start, and the two prefixes started from "
            "different keys and values. Train both with the same init and length, or ",
            "use a.interpolate(b, t), which needs no start",
            command="compose them in another mode: --mode concat, cascade or logits",
        )
    of = merged([*terms(one.meta, one.digest), *terms(other.meta, other.digest, weight)])
    meta = composed(one.meta, "sum", of, begun(one.meta, one.length))
    every = zip(one.tensors, other.tensors, _rounded_start(start, other), strict=True)
    made = [_combined(a, [(1.0, a), (weight, b), (-weight, s)]) for a, b, s in every]
    return _rebuilt(one, made, meta, start, what)


def scaled(prefix: P, weight: float) -> P:
    """The prefix's start plus a weight times what it learned since."""
    if weight == 1:
        return prefix
    what = "a multiple"
    _check_alike(what, prefix, prefix)
    if prefix.start is None:
        raise PrefixError(NO_START.format(what, "given"))
    of = terms(prefix.meta, prefix.digest, weight)
    meta = composed(prefix.meta, "sum", of, begun(prefix.meta, prefix.length))
    pairs = zip(prefix.tensors, _rounded_start(prefix.start, prefix), strict=True)
    made = [_combined(a, [(weight, a), (1 - weight, s)]) for a, s in pairs]
    return _rebuilt(prefix, made, meta, prefix.start, what)


def interpolated(one: P, other: P, t: float) -> P:
    """(1 - t) times one prefix plus t times another."""
    what = "interpolation"
    _check_alike(what, one, other)
    start = _same_start(one, other)
    of = [{"prefix": one.digest, "weight": 1 - t}, {"prefix": other.digest, "weight": t}]
    record = None if start is None else begun(one.meta, one.length)
    meta = composed(one.meta, what, of, record)
    pairs = zip(one.tensors, other.tensors, strict=True)
    made = [_combined(a, [(1 - t, a), (t, b)]) for a, b in pairs]
    return _rebuilt(one, made, meta, start, what)


def _combined(like: Tensor, weighted: Sequence[tuple[float, Tensor]]) -> Tensor:
    """The weighted sum of tensors, on the device and in the dtype of the first."""
    needed = [(weight, tensor) for weight, tensor in weighted if weight]
    if len(needed) == 1 and needed[0][0] == 1:
        return needed[0][1].detach().to(like)
    total = torch.zeros(like.shape, dtype=torch.float64)
    for weight, tensor in needed:
        total += weight * tensor.detach().double().cpu()
    return total.to(like)


def _rebuilt(like: P, tensors: Sequence[Tensor], meta: PrefixMeta, start: P | None, what: str) -> P:
    """A prefix of these tensors, in the order of `tensors`.

    Raises:
        PrefixError: A number became larger than the dtype holds.
    """
    count = len(like.sites)
    keys, values = tuple(tensors[:count]), tuple(tensors[count : 2 * count])
    head = None if like.head is None else like.head.made_of(*tensors[2 * count :])
    made = changed(like, keys=keys, values=values, head=head, meta=meta, start=start)
    broken = made.first_not_finite()
    if broken is not None:
        raise PrefixError(
            f"{what} leaves what {like.dtype} holds, at {broken}; use smaller weights, or "
            "prefix.to(torch.float32)"
        )
    return made


def _tensors_of_start(start: Composable, prefix: Composable) -> tuple[Tensor, ...]:
    """The start's tensors, one for each of the prefix's; a head starts at zero if it had none."""
    own: tuple[Tensor, ...] = ()
    if prefix.head is not None:
        same = start.head is not None and start.head.labels == prefix.head.labels
        head = start.head if same else None
        own = head.tensors if head else tuple(map(torch.zeros_like, prefix.head.tensors))
    return (*start.keys, *start.values, *own)


def _rounded_start(start: Composable, prefix: Composable) -> tuple[Tensor, ...]:
    """The same, rounded as the prefix was, so that one which learned nothing learned exactly nothing."""
    return tuple(tensor.to(prefix.dtype) for tensor in _tensors_of_start(start, prefix))


def _same_start(one: P, other: P) -> P | None:
    """The start of two prefixes; None where they differ, or one is not known."""
    if one.start is None or other.start is None:
        return None
    if one.start is other.start:
        return one.start
    starts = _tensors_of_start(one.start, one), _tensors_of_start(other.start, other)
    pairs = zip(*starts, strict=True)
    return one.start if all(_equal(a, b) for a, b in pairs) else None


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers."""
    return torch.equal(one.detach().cpu().float(), other.detach().cpu().float())


def _check_alike(what: str, one: Composable, other: Composable) -> None:
    """Check that the tensors of two prefixes can be added, number by number."""
    for each in (one, other):
        check_contents(each)
    check_agreement(what, one, other)
    check_length(what, one, other)
    check_pieces_alike(what, one, other)
    check_heads(what, one, other)
