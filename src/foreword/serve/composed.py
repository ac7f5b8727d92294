"""`Compositions`: what a request's model stands for, be it one prefix or an expression of several."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from foreword.arithmetic.selection import unseen
from foreword.compose import compose
from foreword.described import Described
from foreword.engine import Weighted
from foreword.engine.checks import opened_prefixes
from foreword.engine.request import branches_for
from foreword.errors import DataError, ExpressionError, StoreError
from foreword.expressions import Mode, Operand, as_expression
from foreword.mixture import is_mixture
from foreword.prefix import Prefix
from foreword.serve.failures import Failure, no_model
from foreword.serve.registry import Registry

KEPT = 64
"""Prefixes that were made for requests are kept, the last used ones, so many at most."""

KEPT_BYTES = 2**28
"""And so many bytes of them, unless the last one alone has more."""


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


class Compositions:
    """Turns what a request calls its model into prefixes. May be asked from several threads.

    Args:
        registry: Where prefixes come from.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._made: OrderedDict[tuple[str, ...], Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, model: str, mode: Mode | None = None, strength: float = 1.0) -> Model:
        """The prefixes of a model at a strength.

        Args:
            model: A prefix's name, or an expression of several.
            mode: How those of an expression are put together; None: ``logits``.
            strength: Of one prefix how far attention goes from the backbone to it; of a mixture what all
                weights are multiplied by.

        Raises:
            Failure: The expression is wrong, or asks for what is not done for a request; or there is no
                such prefix.
            StoreError: A prefix cannot be read.
        """
        try:
            expression = as_expression(model)
        except ExpressionError as error:
            raise Failure(400, f"model: {error}", "model") from error
        if expression is None:
            return self._one(Operand(model), strength, model)
        if expression.operand is not None:
            return self._one(expression.operand, strength, model)
        if mode in ("sum", "cascade"):
            raise Failure(
                400,
                f"mode: {mode!r} needs what the backbone computes for it, which is not done for a "
                "request; save the composition with `foreword compose`, and ask for its name",
                "mode",
            )
        notices: list[str] = []
        parts = {o: self._part(o, notices) for o in (term.operand for term in expression.terms)}
        if mode == "concat":
            by_name = {term.operand.name: term.operand for term in expression.terms}
            load = {name: self._whole(operand) for name, operand in by_name.items()}.__getitem__
            digests = (load(name).digest for name in by_name)
            made = self._kept(
                (str(expression), *digests), partial(compose, expression, load, mode=mode)
            )
            return Model((_strong(made, strength, model),), tuple(notices))
        mixed = tuple(
            Weighted(parts[term.operand], term.weight * strength, str(term.operand))
            for term in expression.terms
        )
        try:
            branches_for(opened_prefixes(mixed))
        except DataError as error:
            raise Failure(400, f"model: {error}", "model") from error
        return Model(mixed, tuple(notices))

    def _stored(self, name: str) -> Described:
        try:
            return self.registry.get(name)
        except StoreError:
            if name in self.registry:
                raise
            raise no_model(name) from None

    def _one(self, operand: Operand, strength: float, name: str) -> Model:
        notices: list[str] = []
        return Model((_strong(self._part(operand, notices), strength, name),), tuple(notices))

    def _part(self, operand: Operand, notices: list[str]) -> Described:
        """What an operand takes of the prefix of its name."""
        found = self._stored(operand.name)
        is_control = found.meta.combination == "control"
        if operand.span is None and not operand.selection and not is_control:
            return found
        whole = self._whole(operand)
        if is_control:
            operand = _seen(operand, whole, notices)
        make: Callable[[], Prefix] = partial(compose, str(operand), lambda _: whole)
        if operand.span is None and not operand.selection:
            make = partial(whole.select, {})
        return self._kept((str(operand), whole.digest), make)

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
        return sum(one.nbytes for one in self._made.values())

    def _kept(self, key: tuple[str, ...], make: Callable[[], Prefix]) -> Prefix:
        """What was made for a key, with its digest, which is computed once."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = make()
        _ = made.digest
        with self._lock:
            self._made[key] = made
            while len(self._made) > KEPT or (len(self._made) > 1 and self._bytes > KEPT_BYTES):
                self._made.popitem(last=False)
        return made


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
    return dataclasses.replace(operand, selection=tuple(kept))
