"""What an expression of prefixes is: a weighted sum of operands, each once, within bounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from foreword.arguments import shown
from foreword.errors import ExpressionError, NameUnknown
from foreword.store import NAME

MAX_CHARACTERS = 512
"""Longest expression, as it is given and as it is written out."""
MAX_TERMS = 16
"""Most operands that differ."""
MAX_NESTING = 8
"""Most parentheses inside one another."""
MAX_WEIGHT = 100
"""Largest size of a weight, as it is given and as it comes out."""
DECIMALS = 12
"""Most decimals of a weight; products are rounded to as many."""
MAX_INDEX = 9999
"""Largest index of a virtual token."""

Mode = Literal["sum", "concat", "cascade", "logits"]
"""How the operands are put together; see `foreword.compose`."""
MODES: tuple[Mode, ...] = get_args(Mode)

Span = tuple[int, int | None]
"""The first virtual token, and the one behind the last; None: up to the end."""

Selection = tuple[tuple[str, str], ...]
"""Attributes and their values, in alphabetical order of the attributes."""


@dataclass(frozen=True)
class Operand:
    """A prefix of an expression, or a part of one.

    Attributes:
        name: Its name in the store.
        span: Which of its virtual tokens; None: all of them.
        selection: The values of attributes that are selected of a prefix with control; empty: none.
    """

    name: str
    span: Span | None = None
    selection: Selection = ()

    def __str__(self) -> str:
        """As it is written in an expression."""
        if self.selection:
            pairs = ",".join(f"{attribute}={value}" for attribute, value in self.selection)
            return f"{self.name}[{pairs}]"
        if self.span is None:
            return self.name
        first, end = self.span
        return f"{self.name}[{first or ''}:{'' if end is None else end}]"


@dataclass(frozen=True)
class Term:
    """An operand and its weight.

    Attributes:
        weight: Finite, at most `MAX_WEIGHT` in size, with at most `DECIMALS` decimals.
        operand: What it weighs.
    """

    weight: float
    operand: Operand


@dataclass(frozen=True)
class Expression:
    """A weighted sum of operands, each of which stands in it once. Made by `parse`.

    ``str()`` writes it out in one way alone, which `parse` reads as an equal expression.

    Attributes:
        terms: At least one, in the order in which the operands first appear.
    """

    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        given = self.terms if isinstance(self.terms, tuple) else ()
        if not given or not all(isinstance(term, Term) for term in given):
            raise ExpressionError(
                f"an expression has terms, at least one; found {shown(self.terms)}. Use parse(text)"
            )

    def __str__(self) -> str:
        """The expression without parentheses."""
        first, *others = self.terms
        written = ("-" if first.weight < 0 else "") + _weighed(first)
        for term in others:
            written += f" {'-' if term.weight < 0 else '+'} {_weighed(term)}"
        return written

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it takes from the store, each once."""
        return tuple(dict.fromkeys(term.operand.name for term in self.terms))

    @property
    def operand(self) -> Operand | None:
        """The operand, if the expression is nothing but one of weight 1; else None.

        Such an expression means the same in every mode.
        """
        first, *others = self.terms
        return first.operand if first.weight == 1 and not others else None

    @property
    def name(self) -> str | None:
        """The name, if the expression is nothing but one; else None."""
        only = self.operand
        return only.name if only is not None and only == Operand(only.name) else None


def is_expression(text: str) -> bool:
    """Whether a text is more than a name of the store, so that only `parse` can tell what it means."""
    return NAME.fullmatch(text) is None


@contextmanager
def looked_up(name: str) -> Iterator[None]:
    """In a block that looks a name up, an unknown one with a minus in it is said to be one name."""
    try:
        yield
    except NameUnknown as error:
        if "-" not in name:
            raise
        said = str(error) if str(error).endswith("?") else f"{error}."
        raise NameUnknown(
            f"{said} A '-' belongs to the name that it stands in; a minus has spaces on both sides, as "
            "in a - b"
        ) from error


def _weighed(term: Term) -> str:
    """A term without its sign."""
    size = abs(term.weight)
    return str(term.operand) if size == 1 else f"{_decimal(size)}*{term.operand}"


def _decimal(size: float) -> str:
    """A number in as few digits as name it, without an exponent."""
    return format(Decimal(repr(size)).normalize(), "f")
