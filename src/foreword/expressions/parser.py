"""Expressions as text: a tokeniser, and recursive descent over what it finds."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple, NoReturn

from foreword.arguments import expect
from foreword.description import MAX_LABEL, is_label
from foreword.errors import ExpressionError
from foreword.expressions.expression import (
    DECIMALS,
    MAX_CHARACTERS,
    MAX_INDEX,
    MAX_NESTING,
    MAX_TERMS,
    MAX_WEIGHT,
    Expression,
    Operand,
    Selection,
    Span,
    Term,
    is_expression,
)
from foreword.store import NAME, OPERATOR

_TOKEN = re.compile(
    r"(?P<word>[A-Za-z0-9][A-Za-z0-9._-]*)|(?P<bracket>\[[^\[\]]*\])|(?P<sign>[-+*()])"
)
_NUMBER = re.compile(rf"[0-9]{{1,3}}(\.[0-9]{{1,{DECIMALS}}})?")
_INDEX = re.compile(r"[0-9]{1,4}")
_EXCERPT = 24
"""Characters on either side of a mistake that its error shows."""

_REMEDIES = {
    "/": "there is no division: write 0.5*a for half of a",
    "[": "a bracket ends with ']', as in a[:8]",
    "]": "a bracket begins with '[', as in a[:8]",
    ".": "a number begins with a digit, as in 0.5*a",
    "\N{MINUS SIGN}": "a minus is the '-' of ASCII",
    "\N{EN DASH}": "a minus is the '-' of ASCII",
    "\N{MULTIPLICATION SIGN}": "write '*'",
}
"""By character that begins nothing, what to write."""


def parse(text: str) -> Expression:
    """Read an expression.

    Parentheses are multiplied out, and what is added to one operand is gathered. A weight that comes
    out as 0 stays, so that its operand is still looked at.

    Args:
        text: At most `MAX_CHARACTERS`; see the grammar in the module's docstring.

    Raises:
        ExpressionError: It is not an expression, or exceeds a bound; the message says where.

    Examples:
        >>> str(parse("pos + 0.5*(pos - neg)"))
        '1.5*pos - 0.5*neg'
        >>> parse("task[sentiment=positive]").terms[0].operand.selection
        (('sentiment', 'positive'),)
    """
    expect("an expression", text, str, "text, such as '0.7*a + b'", ExpressionError)
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError(
            f"an expression has at most {MAX_CHARACTERS} characters; found {len(text)}. Compose a part "
            "of it first, and use that by its name"
        )
    return _Parser(text).parse()


def as_expression(text: str) -> Expression | None:
    """The expression that a text is meant as; None for a name, be it a right one or not.

    Raises:
        ExpressionError: It has an operator or a bracket, and is no expression.
    """
    if not is_expression(text):
        return None
    try:
        return parse(text)
    except ExpressionError:
        if OPERATOR.search(text):
            raise
        return None


class _Token(NamedTuple):
    """A part of the text: ``word``, ``bracket``, ``sign`` or ``end``, and the column where it begins."""

    kind: str
    text: str
    column: int


class _Parser:
    """One parse of one text, by recursive descent; a parenthesis is a level of recursion.

    Args:
        text: The expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokens()
        self.place = 0
        self.found: dict[Operand, Fraction] = {}

    def parse(self) -> Expression:
        """The expression that the text is."""
        self._sum(Fraction(1), 0)
        if self._now.kind != "end":
            self._refuse_behind_term()
        made = Expression(tuple(Term(self._weight(one), one) for one in self.found))
        if len(str(made)) > MAX_CHARACTERS:
            raise ExpressionError(
                f"the expression without its parentheses has {len(str(made))} characters, at most "
                f"{MAX_CHARACTERS} are allowed; use shorter names, or weights of fewer decimals"
            )
        return made

    def _tokens(self) -> list[_Token]:
        found: list[_Token] = []
        place = 0
        while True:
            place += len(self.text[place:]) - len(self.text[place:].lstrip(" "))
            if place == len(self.text):
                return [*found, _Token("end", "", place)]
            match = _TOKEN.match(self.text, place)
            if match is None:
                remedy = _REMEDIES.get(self.text[place], "write it as in 0.7*a + b[:8] - c")
                self._refuse(_Token("sign", self.text[place], place), "a name or a sign", remedy)
            found.append(_Token(match.lastgroup or "", match[0], place))
            place = match.end()

    @property
    def _now(self) -> _Token:
        return self.tokens[self.place]

    def _is(self, sign: str) -> bool:
        return self._now.kind == "sign" and self._now.text == sign

    def _take(self) -> _Token:
        self.place += 1
        return self.tokens[self.place - 1]

    def _sum(self, weight: Fraction, nesting: int) -> None:
        """Add what a sum holds, each part of it times a weight."""
        self._term(weight, nesting)
        while self._is("+") or self._is("-"):
            sign = -1 if self._take().text == "-" else 1
            self._term(sign * weight, nesting)

    def _term(self, weight: Fraction, nesting: int) -> None:
        while self._is("-") or self._is_number():
            token = self._take()
            if token.text == "-":
                weight = -weight
            else:
                weight *= self._number(token)
                self.place += 1  # the "*" behind it
        token = self._take()
        if token.kind == "word":
            self._add(self._operand(token), weight, token)
        elif token.text == "(":
            self._group(weight, nesting + 1, token)
        else:
            self._refuse(token, "a name, a number with '*', '-' or '('", "write it as in 0.7*a - b")

    def _is_number(self) -> bool:
        behind = self.tokens[self.place + 1 : self.place + 2]
        return self._now.kind == "word" and [token.text for token in behind] == ["*"]

    def _number(self, token: _Token) -> Fraction:
        if not _NUMBER.fullmatch(token.text):
            remedy = "a weight stands in front of what it weighs, as in 0.7*a"
            self._refuse(
                token, f"a number with at most {DECIMALS} decimals in front of '*'", remedy
            )
        found = Fraction(token.text)
        if found > MAX_WEIGHT:
            self._refuse(token, f"a weight of at most {MAX_WEIGHT}", "take a smaller one")
        return found

    def _group(self, weight: Fraction, nesting: int, opened: _Token) -> None:
        if nesting > MAX_NESTING:
            remedy = "multiply some of them out"
            self._refuse(opened, f"at most {MAX_NESTING} parentheses inside one another", remedy)
        self._sum(weight, nesting)
        if not self._is(")"):
            self._refuse_behind_term(f"')' for the '(' in column {opened.column + 1}, ")
        self.place += 1

    def _operand(self, word: _Token) -> Operand:
        if not NAME.fullmatch(word.text):
            self._refuse(word, "a name of at most 128 characters", "use the name of a prefix")
        if self._now.kind != "bracket":
            return Operand(word.text)
        bracket = self._take()
        if "=" in bracket.text:
            return Operand(word.text, selection=self._selection(bracket))
        return Operand(word.text, span=self._span(bracket))

    def _span(self, bracket: _Token) -> Span | None:
        parts = [part.strip(" ") for part in bracket.text[1:-1].split(":")]
        is_one = len(parts) == 1 and _INDEX.fullmatch(parts[0])
        if not is_one and (len(parts) != 2 or any(p and not _INDEX.fullmatch(p) for p in parts)):
            self._refuse(
                bracket,
                f"virtual tokens, counted from 0 to {MAX_INDEX}, or values of attributes",
                "write [:8], [2:8], [8:] or [3], or [sentiment=positive]",
            )
        first = int(parts[0] or 0)
        end = first + 1 if is_one else int(parts[1]) if parts[1] else None
        if end is not None and end <= first:
            self._refuse(bracket, "at least one virtual token", "let the second index be larger")
        return None if (first, end) == (0, None) else (first, end)

    def _selection(self, bracket: _Token) -> Selection:
        found: dict[str, str] = {}
        column = bracket.column + 1
        for text in bracket.text[1:-1].split(","):
            token = _Token("pair", text.strip(" "), column + len(text) - len(text.lstrip(" ")))
            attribute, value = self._pair(token)
            if attribute in found:
                self._refuse(token, f"one value of {attribute!a}", "leave the other out")
            found[attribute] = value
            column += len(text) + 1
        return tuple(sorted(found.items()))

    def _pair(self, token: _Token) -> tuple[str, str]:
        parts = [part.strip(" ") for part in token.text.split("=")]
        if len(parts) != 2 or not all(map(is_label, ("=".join(parts), *parts))):
            self._refuse(
                token,
                f"an attribute and its value, of at most {MAX_LABEL} printable characters",
                "write it as in [sentiment=positive,length=short]",
            )
        return parts[0], parts[1]

    def _add(self, operand: Operand, weight: Fraction, token: _Token) -> None:
        if operand not in self.found and len(self.found) == MAX_TERMS:
            remedy = "compose a part of them first, and use that by its name"
            self._refuse(token, f"at most {MAX_TERMS} different operands", remedy)
        self.found[operand] = self.found.get(operand, Fraction(0)) + weight

    def _weight(self, operand: Operand) -> float:
        weight = round(self.found[operand], DECIMALS)
        if abs(weight) > MAX_WEIGHT:
            raise ExpressionError(
                f"the weights of {str(operand)!a} come to more than {MAX_WEIGHT} in size; take "
                "smaller ones"
            )
        return float(weight)

    def _refuse_behind_term(self, closing: str = "") -> NoReturn:
        """Refuse what stands where a sum goes on or ends."""
        before, remedy = self.tokens[self.place - 1], "put '+' or '-' between two operands"
        if self._is("*"):
            remedy = "a weight stands in front of what it weighs, as in 0.5*(a - b)"
        elif self._now.kind == "bracket":
            remedy = "one bracket stands behind a name"
        elif _NUMBER.fullmatch(before.text):
            remedy = f"a number weighs with '*', as in {before.text}*a"
        elif before.text.endswith("-"):
            remedy = f"the '-' belongs to the name {before.text!a}: put spaces on both of its sides"
        elif self._is(")"):
            remedy = "leave it out, or open it with '('"
        self._refuse(self._now, f"{closing}'+', '-' or the end", remedy)

    def _refuse(self, token: _Token, expected: str, remedy: str) -> NoReturn:
        """Refuse a token: where it is, what was expected and what to do."""
        found = ascii(token.text) if token.text else "nothing"
        if token.kind == "end":
            found = "the end"
        first = max(0, token.column - _EXCERPT)
        around = ascii(self.text[first : token.column + _EXCERPT])
        raise ExpressionError(
            f"the expression is wrong in column {token.column + 1} ({around}): expected {expected}; "
            f"found {found}. {remedy[0].upper()}{remedy[1:]}"
        )
