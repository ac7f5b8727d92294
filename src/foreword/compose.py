"""Prefixes composed by an expression: loaded by name, cut or selected, and put together in a mode."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from foreword.arguments import expect, shown
from foreword.arithmetic import concat
from foreword.arithmetic.record import COMPOSITION
from foreword.arithmetic.selection import selected
from foreword.backbone import Backbone
from foreword.backbone.cascade import cascade
from foreword.data.given import Data
from foreword.description import MAX_LABEL, Piece
from foreword.errors import ExpressionError, ForewordError, PrefixError
from foreword.expressions import MODES, Expression, Mode, Operand, Term, looked_up, parse
from foreword.mixture import Mixture
from foreword.prefix import Prefix, check_prefix
from foreword.store import PrefixStore
from foreword.train.begun import with_start


def needs_backbone(expression: Expression, mode: Mode) -> bool:
    """Whether prefixes that come from files need their backbone to be composed.

    A file does not hold where training started, which weights of a sum are about; and positions are
    moved by the rotation that is measured on the backbone.
    """
    return mode in ("sum", "cascade") and expression.operand is None


def compose(
    expression: str | Expression,
    load: Callable[[str], Prefix],
    *,
    mode: Mode = "sum",
    backbone: Backbone | None = None,
    rows: Data | None = None,
    store: PrefixStore | None = None,
) -> Prefix:
    """The prefix that an expression means.

    An expression that is one operand of weight 1 is that operand in every mode: a name means the prefix
    as it is stored.

    Args:
        expression: As in ``0.7*formal + e2e - toxic``; see `foreword.expressions`.
        load: Gives the prefix of a name, such as `PrefixStore.load`; called once for each name.
        mode: ``sum``: of what the operands learned, times their weights. ``concat``: the operands side
            by side in front of the text, in the order of the expression, with their weights as
            strengths. ``cascade``: the same with their positions moved, so that each comes before the
            next. ``logits``: a mixture of what they predict, with their weights.
        backbone: The backbone of the operands, for `needs_backbone`; a sum needs none where each operand
            knows its start.
        rows: Training rows, for operands that started from demonstrations.
        store: Where prefixes are looked up that operands started from; by default the user's store.

    Returns:
        A prefix whose parents are those that were loaded, by digest, and which has the expression in its
        ``recipe["composition"]``.

    Raises:
        ExpressionError: The expression is wrong, or an operand has no such tokens or attributes.
        NameUnknown: There is no prefix of a name.
        PrefixError: Operands do not go together, or the mode is unknown; the message names them.
        MismatchError: One is of another backbone.

    Examples:
        >>> made = compose("pos + 0.5*(pos - neg)", PrefixStore().load, backbone=b)  # doctest: +SKIP
        >>> made.meta.recipe["composition"]["expression"]  # doctest: +SKIP
        '1.5*pos - 0.5*neg'
    """
    if mode not in MODES:
        raise PrefixError(f"mode must be one of {', '.join(MODES)}; found {shown(mode)}")
    if not isinstance(expression, Expression):
        expression = parse(expression)
    expected = "what gives the prefix of a name, as PrefixStore().load does"
    expect("load", load, Callable, expected, PrefixError)
    stored = {name: _loaded(name, load) for name in expression.names}
    parents = tuple(dict.fromkeys(one.digest for one in stored.values()))
    if backbone is not None and mode == "sum" and needs_backbone(expression, mode):
        stored = {name: _started(name, one, backbone, rows, store) for name, one in stored.items()}
    parts = [(term, _part(stored[term.operand.name], term.operand)) for term in expression.terms]
    if expression.operand is not None:
        made, record = parts[0][1], {}
        if made is stored[expression.names[0]]:
            return made
    else:
        check_selected(parts)
        made = _COMPOSED[mode](_of_one_dtype(parts), backbone)
        record = _record(mode, expression, stored)
    return _recorded(made, {**record, "expression": str(expression)}, parents)


def mixture_of(
    expression: str | Expression, load: Callable[[str], Prefix], *, strength: float = 1.0
) -> Mixture:
    """The mixture of logits that an expression means, of prefixes as they are.

    Unlike the file that mode ``logits`` of `compose` makes, its prefixes may have policies and strengths
    of their own.

    Args:
        expression: As for `compose`; its weights are those of the mixture.
        load: As for `compose`.
        strength: What all weights are multiplied by.

    Raises:
        ExpressionError: The expression is wrong, or an operand has no such tokens or attributes.
        NameUnknown: There is no prefix of a name.
        DataError: There are too many prefixes for one mixture.

    Examples:
        >>> mixture = mixture_of("1.5*formal - 0.5*toxic", PrefixStore().load)  # doctest: +SKIP
    """
    if not isinstance(expression, Expression):
        expression = parse(expression)
    stored = {name: _loaded(name, load) for name in expression.names}
    parts = [(term, _part(stored[term.operand.name], term.operand)) for term in expression.terms]
    check_selected(parts)
    return Mixture(tuple((term.weight * strength, prefix) for term, prefix in parts))


def operands(expression: str | Expression, load: Callable[[str], Prefix]) -> dict[str, Prefix]:
    """What the operands of an expression are by themselves, at full strength.

    Args:
        expression: As for `compose`.
        load: As for `compose`.

    Returns:
        By what the expression says, such as ``long[:8]``, the prefix that it takes.

    Raises:
        ExpressionError: The expression is wrong, or an operand has no such tokens or attributes.
        NameUnknown: There is no prefix of a name.

    Examples:
        >>> list(operands("0.7*formal - toxic[:8]", PrefixStore().load))  # doctest: +SKIP
        ['formal', 'toxic[:8]']
    """
    if not isinstance(expression, Expression):
        expression = parse(expression)
    stored = {name: _loaded(name, load) for name in expression.names}
    every = [term.operand for term in expression.terms]
    return {str(one): _part(stored[one.name], one) for one in every}


def _unless_plain(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The pieces; none if all are at full strength, as a plain prefix is."""
    return () if all(piece.strength == 1 for piece in pieces) else pieces


@contextmanager
def _named(what: object) -> Iterator[None]:
    """In a block, errors say what they are about."""
    try:
        yield
    except ForewordError as error:
        raise error.about(what) from error


def _loaded(name: str, load: Callable[[str], Prefix]) -> Prefix:
    with looked_up(name):
        found = load(name)
    check_prefix(found, f"what was loaded for {name!r}")
    return found


def _started(
    name: str,
    prefix: Prefix,
    backbone: Backbone,
    rows: Data | None,
    store: PrefixStore | None,
) -> Prefix:
    """A prefix that knows its start."""
    if prefix.start is not None:
        return prefix
    with _named(name):
        return with_start(backbone, prefix, rows, store)


def _part(prefix: Prefix, operand: Operand) -> Prefix:
    """What an operand takes of the prefix of its name."""
    if operand.selection:
        return selected(prefix, dict(operand.selection), operand.name)
    if operand.span is None:
        return prefix
    first, end = operand.span
    if max(first + 1, end or 0) > prefix.length:
        raise ExpressionError(
            f"{operand}: {operand.name} has {prefix.length} virtual tokens, counted from 0; take those "
            "that it has"
        )
    with _named(operand):
        return prefix[first:end]


Parts = Sequence[tuple[Term, Prefix]]
"""Terms of an expression, and what their operands are."""


def check_selected(parts: Parts) -> None:
    """Check that no part is a prefix with control as a whole.

    Raises:
        ExpressionError: One is; the message says how to select of it.
    """
    for term, prefix in parts:
        if prefix.meta.combination == "control":
            pairs = [piece.name for piece in prefix.meta.pieces[1:]]
            raise ExpressionError(
                f"{term.operand} has a piece for each of {', '.join(map(ascii, pairs))}, and is "
                f"composed with some of them: write {term.operand}[{pairs[0]}]"
            )


def _of_one_dtype(parts: Parts) -> Parts:
    """The parts in the narrowest dtype that holds what each of them has."""
    dtype = functools.reduce(torch.promote_types, (prefix.dtype for _, prefix in parts))
    return [(term, prefix.to(dtype)) for term, prefix in parts]


def _summed(parts: Parts, backbone: Backbone | None) -> Prefix:
    first, *others = [(term.operand, _scaled(term, prefix)) for term, prefix in parts]
    made = first[1]
    for operand, prefix in others:
        with _named(f"{first[0]} and {operand}"):
            made = operator.add(made, prefix)
    return made


def _scaled(term: Term, prefix: Prefix) -> Prefix:
    with _named(term.operand):
        return term.weight * prefix


def _side_by_side(parts: Parts, backbone: Backbone | None) -> Prefix:
    prefixes, names = _at_strengths(parts)
    with _named(_all_of(parts)):
        return concat(*prefixes, names=names)


def _behind_one_another(parts: Parts, backbone: Backbone | None) -> Prefix:
    if backbone is None:
        raise PrefixError(
            "mode cascade moves positions by what is measured on the backbone, and there is none; give "
            "backbone=..., or use mode concat"
        )
    prefixes, names = _at_strengths(parts)
    with _named(_all_of(parts)):
        return cascade(backbone, *prefixes, names=names)


def _mixed(parts: Parts, backbone: Backbone | None) -> Prefix:
    prefixes, names = [], []
    for term, prefix in parts:
        for name, weight, piece in _mixable(term, prefix):
            prefixes.append(piece.strength(weight))
            names.append(name)
    with _named(_all_of(parts)):
        return concat(*prefixes, names=names, combination="logits")


_COMPOSED: dict[Mode, Callable[[Parts, Backbone | None], Prefix]] = {
    "sum": _summed,
    "concat": _side_by_side,
    "cascade": _behind_one_another,
    "logits": _mixed,
}


def _at_strengths(parts: Parts) -> tuple[list[Prefix], list[str] | None]:
    """The parts with their weights as strengths, and names for them if each is one piece."""
    prefixes = [prefix.strength(term.weight) for term, prefix in parts]
    if any(len(prefix.meta.pieces) > 1 for prefix in prefixes):
        return prefixes, None
    return prefixes, [_piece_name(term.operand) for term, _ in parts]


def _mixable(term: Term, prefix: Prefix) -> list[tuple[str, float, Prefix]]:
    """What a term adds to a mixture of logits: by piece its name, its weight, and a plain prefix.

    A mixture in a mixture is its pieces: logarithms of what they predict are added up in both.
    """
    pieces = prefix.meta.pieces
    if prefix.meta.combination == "logits":
        named = zip(pieces, prefix.split(), strict=True)
        return [(piece.name, term.weight * piece.strength, part) for piece, part in named]
    if _unless_plain(pieces):
        raise PrefixError(
            f"{term.operand}: pieces of strengths {[piece.strength for piece in pieces]} cannot be "
            "mixed by logits, where each prefix is at full strength; mix what they are made of"
        )
    whole = prefix.with_meta(pieces=()) if prefix.meta.combination == "attention" else prefix
    return [(_piece_name(term.operand), term.weight, whole)]


def _piece_name(operand: Operand) -> str:
    """What a piece is called: the operand, without its bracket if there is no room for it."""
    written = str(operand)
    return written if len(written) <= MAX_LABEL else operand.name


def _all_of(parts: Parts) -> str:
    return ", ".join(str(term.operand) for term, _ in parts)


def _record(mode: Mode, expression: Expression, stored: Mapping[str, Prefix]) -> dict[str, Any]:
    """How an expression was composed: a sum's own record has the weights that come out."""
    if mode == "sum":
        return {"mode": mode}
    return {"mode": mode, "of": [_origin(term, stored) for term in expression.terms]}


def _origin(term: Term, stored: Mapping[str, Prefix]) -> dict[str, Any]:
    """What the record of a composition says of a term."""
    digest = stored[term.operand.name].digest
    return {"prefix": digest, "operand": str(term.operand), "weight": term.weight}


def _recorded(made: Prefix, changes: Mapping[str, Any], parents: tuple[str, ...]) -> Prefix:
    """The prefix with its parents, and with more in its record."""
    record = {**made.meta.recipe[COMPOSITION], **changes}
    return made.with_meta(recipe={**made.meta.recipe, COMPOSITION: record}, parents=parents)
