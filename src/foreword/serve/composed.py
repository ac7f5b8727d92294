"""`Compositions`: what a request's model stands for, be it one prefix or an expression of several."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace

from foreword.arithmetic.selection import unseen
from foreword.backbone import Backbone
from foreword.compose import check_selected, compose
from foreword.described import Described
from foreword.description import MAX_LABEL
from foreword.engine import Weighted
from foreword.engine.checks import opened_prefixes
from foreword.engine.request import branches_for
from foreword.engine.threads import give_up_pool
from foreword.errors import DataError, ExpressionError, StoreError
from foreword.expressions import Expression, Mode, Operand, Term, as_expression
from foreword.mixture import is_mixture
from foreword.prefix import Prefix
from foreword.prompts import values_in
from foreword.serve.failures import Failure, no_model
from foreword.serve.registry import Registry

KEPT = 64
"""Prefixes that were made for requests are kept, the last used ones, so many at most."""

KEPT_BYTES = 2**28
"""And so many bytes of them, unless the last one alone has more."""

Key = tuple[Hashable, ...]
"""What a prefix that was made is kept by."""


@dataclass(frozen=True)
class Model:
    """What a request runs under.

    Attributes:
        prefixes: As an engine's request has them; none for the backbone alone.
        notices: What the client should know.
        routed: The prefix's name, where a router chose it.
    """

    prefixes: tuple[Weighted, ...] = ()
    notices: tuple[str, ...] = ()
    routed: str | None = None


@dataclass(frozen=True)
class Wanted:
    """An expression as one prefix, which is not made yet.

    Attributes:
        model: As the request spells it.
        expression: The same, parsed.
        mode: How it is put together.
        stored: By name the prefixes that it is made of.
        seen: By operand that selects values what is left of it without those that training did not see.
        strength: Of the prefix that comes out.
        notices: What the client should know.
    """

    model: str
    expression: Expression
    mode: Mode
    stored: Mapping[str, Prefix]
    seen: Mapping[Operand, Operand]
    strength: float
    notices: tuple[str, ...]

    @property
    def key(self) -> Key:
        """What it is kept by."""
        terms = [(one.weight, self.seen.get(one.operand, one.operand)) for one in self._terms]
        return self.mode, *terms, *(one.digest for one in self.stored.values())

    @property
    def _terms(self) -> tuple[Term, ...]:
        return self.expression.terms

    def parts(self, stored: Mapping[str, Prefix] | None = None) -> dict[str, Prefix]:
        """By operand, as it is written and in their order, what it takes of its prefix.

        Args:
            stored: In the place of its own, the same prefixes with their starts.
        """
        stored, found = stored or self.stored, {}
        for operand in (term.operand for term in self._terms):
            part = stored[operand.name]
            if operand != Operand(operand.name):
                part = _taken(self.seen.get(operand, operand), part)
            found[str(operand)] = part
        return found

    def made(self, parts: Mapping[str, Prefix], backbone: Backbone | None = None) -> Prefix:
        """The prefix.

        Args:
            parts: What `parts` gives; with starts for a sum.
            backbone: The backbone, for a cascade; only the thread that runs it may call this then.
        """
        named = {_name(one, place): part for place, (one, part) in enumerate(parts.items())}
        terms = tuple(
            replace(term, operand=Operand(name))
            for term, name in zip(self._terms, named, strict=True)
        )
        made = compose(Expression(terms), named.__getitem__, mode=self.mode, backbone=backbone)
        return replace(made, start=None)

    def met(self, made: Prefix) -> Model:
        """What the request runs under."""
        return Model((_strong(made, self.strength, self.model),), self.notices)


class Compositions:
    """Turns what a request calls its model into prefixes. May be asked from several threads.

    Args:
        registry: Where prefixes come from.
        computes: Whether the engine's backbone can be asked for what a sum and a cascade need.
    """

    def __init__(self, registry: Registry, *, computes: bool = False) -> None:
        self.registry = registry
        self.computes = computes
        self._made: OrderedDict[Key, Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self,
        model: str,
        mode: Mode | None = None,
        strength: float = 1.0,
        given: str | None = None,
    ) -> Model | Wanted:
        """The prefixes of a model at a strength.

        Args:
            model: A prefix's name, or an expression of several.
            mode: How those of an expression are put together; None: ``logits``.
            strength: Of one prefix how far attention goes from the backbone to it; of a mixture what all
                weights are multiplied by.
            given: The input, which may name values of a prefix's attributes; None where it is no row.

        Returns:
            What the request runs under; or, of a sum and a cascade that are not kept, what is to be made
            with the backbone.

        Raises:
            Failure: The expression is wrong, or asks for what is not done for a request; or there is no
                such prefix.
            DataError: The input is no row of the prefix's.
            StoreError: A prefix cannot be read.
        """
        try:
            expression = as_expression(model)
        except ExpressionError as error:
            raise Failure(400, f"model: {error}", "model") from error
        if expression is None:
            return self._one(Operand(model), strength, model, given)
        if expression.operand is not None:
            return self._one(expression.operand, strength, model, given)
        if mode is None or mode == "logits":
            return self._mixture(expression, strength)
        if mode != "concat" and not self.computes:
            raise Failure(
                400,
                f"mode: {mode!r} needs what the backbone computes for it, which this engine does not do "
                "for a request; save the composition with `foreword compose`, and ask for its name",
                "mode",
            )
        wanted = self._wanted(model, expression, mode, strength)
        made = self.kept(wanted.key)
        if made is None and mode != "concat":
            return wanted
        return wanted.met(made or self.keep(wanted.key, wanted.made(wanted.parts())))

    def _mixture(self, expression: Expression, strength: float) -> Model:
        notices: list[str] = []
        mixed = tuple(
            Weighted(self._part(term.operand, notices), term.weight * strength, str(term.operand))
            for term in expression.terms
        )
        try:
            branches_for(opened_prefixes(mixed))
        except DataError as error:
            raise Failure(400, f"model: {error}", "model") from error
        return Model(mixed, tuple(notices))

    def _wanted(self, model: str, expression: Expression, mode: Mode, strength: float) -> Wanted:
        notices: list[str] = []
        operands = [term.operand for term in expression.terms]
        stored = {one.name: self._whole(one) for one in operands}
        plain = [one for one in expression.terms if one.operand == Operand(one.operand.name)]
        check_selected([(one, stored[one.operand.name]) for one in plain])
        seen = {one: _seen(one, stored[one.name], notices) for one in operands if one.selection}
        return Wanted(model, expression, mode, stored, seen, strength, tuple(notices))

    def _stored(self, name: str) -> Described:
        try:
            return self.registry.get(name)
        except StoreError:
            if name in self.registry:
                raise
            raise no_model(name) from None

    def _one(self, operand: Operand, strength: float, name: str, given: str | None) -> Model:
        notices: list[str] = []
        part = self._part(operand, notices, given)
        return Model((_strong(part, strength, name),), tuple(notices))

    def _part(self, operand: Operand, notices: list[str], given: str | None = None) -> Described:
        """What an operand takes of its prefix; a name alone what the values of an input select."""
        found = self._stored(operand.name)
        if given is not None and operand == Operand(operand.name):
            values = values_in(found, given)
            operand = replace(operand, selection=tuple(sorted(values.items())))
        is_control = found.meta.combination == "control"
        if operand.span is None and not operand.selection and not is_control:
            return found
        whole = self._whole(operand)
        if is_control:
            operand = _seen(operand, whole, notices)
        key: Key = operand, whole.digest
        return self.kept(key) or self.keep(key, _taken(operand, whole))

    def _whole(self, operand: Operand) -> Prefix:
        """The prefix of an operand's name with its tensors."""
        found = self._stored(operand.name)
        if not isinstance(found, Prefix):
            raise Failure(
                400,
                f"model: {operand} has to be made of stored prefixes, and this server's workers read "
                "those as they are; save it with `foreword compose`, and ask for its name",
                "model",
            )
        return found

    @property
    def _bytes(self) -> int:
        with_starts = (one for made in self._made.values() for one in (made, made.start))
        return sum(one.nbytes for one in with_starts if one is not None)

    def kept(self, key: Key) -> Prefix | None:
        """What was made for a key, if it is still there."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
            return self._made.get(key)

    def keep(self, key: Key, made: Prefix) -> Prefix:
        """Keep what was made for a key, with its digest, which is computed once."""
        _ = made.digest
        give_up_pool()
        with self._lock:
            self._made[key] = made
            while len(self._made) > KEPT or (len(self._made) > 1 and self._bytes > KEPT_BYTES):
                self._made.popitem(last=False)
        return made


def _name(written: str, place: int) -> str:
    """What a part of an expression is called, where it is composed as if it were a prefix's name."""
    return written if len(written) <= MAX_LABEL else f"part {place + 1}"


def _taken(operand: Operand, whole: Prefix) -> Prefix:
    """What an operand takes of the prefix of its name; of one with control at least its shared part."""
    if operand.span is None and not operand.selection:
        return whole.select({})
    return compose(Expression((Term(1.0, operand),)), lambda _: whole)


def _strong(prefix: Described, strength: float, name: str) -> Weighted:
    """A prefix at a strength; of a mixture all weights are that much larger."""
    if is_mixture(prefix):
        return Weighted(prefix, strength, name)
    return Weighted(prefix, name=name, strength=strength)


def _seen(operand: Operand, prefix: Prefix, notices: list[str]) -> Operand:
    """The operand without the values that training did not see, for which the shared part stands."""
    known, kept = prefix.meta.attributes, []
    for attribute, value in operand.selection:
        if attribute in known and value not in known[attribute]:
            notice = unseen(operand.name, attribute, known[attribute], value)
            if notice not in notices:
                notices.append(notice)
        else:
            kept.append((attribute, value))
    return replace(operand, selection=tuple(kept))
