"""`Arithmetic`: what can be computed of prefixes, as operators and methods of `Prefix`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Self

from foreword.arguments import expect
from foreword.arithmetic.base import Composable, changed, is_number, number_of, pieces_of
from foreword.arithmetic.slices import cut_out, range_of
from foreword.arithmetic.sums import interpolated, plus, scaled
from foreword.description import Piece
from foreword.errors import PrefixError

if TYPE_CHECKING:
    Base = Composable
else:
    Base = object  # whose properties would be taken for defaults of the dataclass's fields


class Arithmetic(Base):
    """What can be computed of prefixes; each result is a new value, and nothing is trained.

    Sums are of what was learned: ``a + b`` is start + (a - start) + (b - start), ``a - b`` is start +
    (a - start) - (b - start), ``0.7 * a`` is start + 0.7 (a - start), on keys, values and head alike.
    So both need the same start, in their field `start`. ``1 * a`` is ``a`` itself. A slice, as in
    ``a[:8]``, ``a[2:8]`` or ``a[3]``, is of virtual tokens, whose keys and values stay as they are:
    under the position policy ``offset`` they stand where they stood.

    Results carry the templates of the first prefix, their parents' digests, and in
    ``recipe["composition"]`` how they were made.

    Raises:
        PrefixError: The prefixes were not made for one backbone, tokenizer and policy, or differ in
            length, or it is not known where one started, or a number is not finite.

    Examples:
        >>> style = 0.7 * formal + (polite - rude) / 2  # doctest: +SKIP
        >>> short = style[:8].strength(0.5)  # doctest: +SKIP
    """

    __iter__ = None
    """A prefix has slices, but it is no sequence of prefixes."""

    def __add__(self, other: Self) -> Self:
        return plus(self, other, 1.0) if isinstance(other, Arithmetic) else NotImplemented

    def __sub__(self, other: Self) -> Self:
        return plus(self, other, -1.0) if isinstance(other, Arithmetic) else NotImplemented

    def __mul__(self, weight: float) -> Self:
        return scaled(self, number_of("a weight", weight)) if is_number(weight) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Self:
        if not is_number(divisor):
            return NotImplemented
        number = number_of("a divisor", divisor)
        if number == 0:
            raise PrefixError("a prefix cannot be divided by 0; its start is 0 * prefix")
        return scaled(self, number_of("a weight", 1 / number))

    def __neg__(self) -> Self:
        return scaled(self, -1.0)

    def __getitem__(self, place: slice | int) -> Self:
        first, end = range_of(place, self.length)
        return self if (first, end) == (0, self.length) else cut_out(self, first, end)

    def interpolate(self, other: Self, t: float) -> Self:
        """(1 - t) times this prefix plus t times another, on keys, values and head; no start is needed.

        Args:
            other: Another prefix of the same length, made for the same backbone and policies.
            t: Any finite number: at 0 the result has exactly this prefix's tensors, at 1 the other's.

        Returns:
            A prefix of this one's dtype. It has a start where both have the same.

        Raises:
            PrefixError: The prefixes do not go together, or `t` is not finite.
        """
        expect("other", other, Arithmetic, "a Prefix", PrefixError)
        return interpolated(self, other, number_of("t", t))

    def strength(self, strength: float) -> Self:
        """The same tensors, attended to at a strength.

        Every attention output is then text + strength * (joint - text), where ``joint`` is what this
        prefix at full strength gives and ``text`` what the base model does: 0 is exactly the base model,
        1 exactly the prefix. Strengths multiply; of a mixture of logits they are the pieces' weights.

        Args:
            strength: Any finite number, those below 0 and above 1 included.

        Returns:
            A prefix that shares this one's tensors; one without pieces at full strength is itself.

        Raises:
            PrefixError: The number is not finite.
        """
        number = number_of("strength", strength)
        pieces = tuple(
            dataclasses.replace(piece, strength=piece.strength * number)
            for piece in pieces_of(self)
        )
        if pieces == pieces_of(self):
            return self
        if self.meta.combination == "attention" and pieces == (Piece("", self.length),):
            pieces = ()
        return changed(self, meta=dataclasses.replace(self.meta, pieces=pieces))

    def split(self) -> tuple[Self, ...]:
        """The pieces of a combined prefix as plain prefixes at full strength; without pieces, itself.

        Names and strengths are those of ``meta.pieces``, in the same order. A head stays with each.
        """
        found, first = [], 0
        for piece in self.meta.pieces:
            end = first + piece.length
            found.append(cut_out(self, first, end, pieces=(), combination="attention"))
            first = end
        return tuple(found) or (self,)
