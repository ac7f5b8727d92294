"""Expressions of prefixes: what each text means, that it is written out as what it was, and bounds."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.errors import DataError, ExpressionError
from foreword.expressions import Expression, Operand, Term, is_expression, parse
from foreword.expressions.expression import (
    DECIMALS,
    MAX_CHARACTERS,
    MAX_NESTING,
    MAX_TERMS,
    MAX_WEIGHT,
)

fuzz = settings(derandomize=True, database=None, deadline=None, max_examples=300)

GOOD = {
    "formal": "formal",
    "  formal  ": "formal",
    "0.7*formal + e2e - toxic": "0.7*formal + e2e - toxic",
    "0.7 * formal+e2e  -  toxic": "0.7*formal + e2e - toxic",
    "pos + 0.5*(pos - neg)": "1.5*pos - 0.5*neg",
    "-toxic": "-toxic",
    "- toxic": "-toxic",
    "-0.5*toxic": "-0.5*toxic",
    "a-b": "a-b",
    "a - b": "a - b",
    "a -b": "a - b",
    "-a-b": "-a-b",
    "a+b": "a + b",
    "a.b_c-2": "a.b_c-2",
    "0.7": "0.7",
    "7*0.7": "7*0.7",
    "2*3": "2*3",
    "1*a": "a",
    "01*a": "a",
    "1.50*a": "1.5*a",
    "-1*a": "-a",
    "2*-a": "-2*a",
    "a - -b": "a + b",
    "a - -0.5*b": "a + 0.5*b",
    "- - - a": "-a",
    "2*0.5*a": "a",
    "2*(3*(a - b) - b)": "6*a - 8*b",
    "-(a - b)": "-a + b",
    "a - (b - (c - d))": "a - b + c - d",
    "0.1*a + 0.2*a": "0.3*a",
    "a + b + a": "2*a + b",
    "a - a": "0*a",
    "0*a + b": "0*a + b",
    "b - 0*a": "b + 0*a",
    "0.000000000001*a": "0.000000000001*a",
    "99.999999999999*a": "99.999999999999*a",
    "0.000001*0.0000005*a": "0*a",
    "100*a": "100*a",
    "long[:8]": "long[:8]",
    "long[2:8]": "long[2:8]",
    "long[8:]": "long[8:]",
    "long[3]": "long[3:4]",
    "long[0]": "long[:1]",
    "long[:]": "long",
    "long[0:]": "long",
    "long[0:9999]": "long[:9999]",
    "long [ 2 : 8 ]": "long[2:8]",
    "long[3] + 2*long[3:4] + long[3:5]": "3*long[3:4] + long[3:5]",
    "task[sentiment=positive]": "task[sentiment=positive]",
    "task[sentiment=positive,length=short]": "task[length=short,sentiment=positive]",
    "task[ sentiment = positive , length = short ]": "task[length=short,sentiment=positive]",
    "t[b=1,a=2] - t[a=2,b=1]": "0*t[a=2,b=1]",
    "eat[food=fast food]": "eat[food=fast food]",
    "say[language=中文]": "say[language=中文]",
    "0.5*task[mood=+1 - 2*(x)]": "0.5*task[mood=+1 - 2*(x)]",
    "(" * MAX_NESTING + "a" + ")" * MAX_NESTING: "a",
    " + ".join(f"p{i}" for i in range(MAX_TERMS)): " + ".join(f"p{i}" for i in range(MAX_TERMS)),
    " + ".join(["a"] * 100): "100*a",
    "a" * 128: "a" * 128,
    "a" + " " * (MAX_CHARACTERS - 1): "a",
}

WRONG = [
    ("", 1, "a name, a number", "the end"),
    ("   ", 4, "a name, a number", "the end"),
    ("a +", 4, "a name, a number", "the end"),
    ("+a", 1, "a name, a number", "'+'"),
    ("a + + b", 5, "a name, a number", "'+'"),
    ("a b", 3, "'+', '-' or the end", "'b'. Put '+' or '-' between two operands"),
    ("0.7 a", 5, "'+', '-' or the end", "'a'. A number weighs with '*', as in 0.7*a"),
    ("a- b", 4, "'+', '-' or the end", "'b'. The '-' belongs to the name 'a-'"),
    ("a*0.7", 1, "a number", "'a'. A weight stands in front"),
    ("a*b", 1, "a number", "'a'. A weight stands in front"),
    ("(a - b)*0.5", 8, "'+', '-' or the end", "'*'. A weight stands in front"),
    ("0.5**a", 5, "a name, a number", "'*'"),
    ("*a", 1, "a name, a number", "'*'"),
    ("a/2", 2, "a name or a sign", "'/'. There is no division"),
    ("2 (a)", 3, "'+', '-' or the end", "'('. A number weighs with '*', as in 2*a"),
    (".5*a", 1, "a name or a sign", "'.'. A number begins with a digit"),
    ("1e-2*a", 1, "a number with at most 12 decimals", "'1e-2'"),
    ("1.*a", 1, "a number with at most 12 decimals", "'1.'"),
    ("0.0000000000001*a", 1, "a number with at most 12 decimals", "'0.0000000000001'"),
    ("nan*a", 1, "a number", "'nan'"),
    ("inf*a", 1, "a number", "'inf'"),
    ("100.1*a", 1, "a weight of at most 100", "'100.1'"),
    ("9999*a", 1, "a number", "'9999'"),
    ("(a", 3, "')' for the '(' in column 1", "the end"),
    ("b + (a c)", 8, "')' for the '(' in column 5", "'c'"),
    ("a)", 2, "'+', '-' or the end", "')'. Leave it out"),
    ("()", 2, "a name, a number", "')'"),
    ("(" * 9 + "a" + ")" * 9, 9, "at most 8 parentheses", "'('"),
    ("(" * 512, 9, "at most 8 parentheses", "'('"),
    ("a[:8", 2, "a name or a sign", "'['. A bracket ends with ']'"),
    ("a]", 2, "a name or a sign", "']'. A bracket begins with '['"),
    ("[:8]", 1, "a name, a number", "'[:8]'"),
    ("(a + b)[:8]", 8, "'+', '-' or the end", "'[:8]'. One bracket stands behind a name"),
    ("a[:8][:4]", 6, "'+', '-' or the end", "'[:4]'. One bracket stands behind a name"),
    ("a[]", 2, "virtual tokens", "'[]'. Write [:8]"),
    ("a[x]", 2, "virtual tokens", "'[x]'"),
    ("a[-1]", 2, "virtual tokens", "'[-1]'"),
    ("a[-2:]", 2, "virtual tokens", "'[-2:]'"),
    ("a[::2]", 2, "virtual tokens", "'[::2]'"),
    ("a[1.5]", 2, "virtual tokens", "'[1.5]'"),
    ("a[٣]", 2, "virtual tokens", r"'[\u0663]'"),
    ("a[10000]", 2, "virtual tokens", "'[10000]'"),
    ("a[8:2]", 2, "at least one virtual token", "'[8:2]'"),
    ("a[3:3]", 2, "at least one virtual token", "'[3:3]'"),
    ("a[:0]", 2, "at least one virtual token", "'[:0]'"),
    ("t[=x]", 3, "an attribute and its value", "'=x'"),
    ("t[x=]", 3, "an attribute and its value", "'x='"),
    ("t[x=y=z]", 3, "an attribute and its value", "'x=y=z'"),
    ("t[x=y, z]", 8, "an attribute and its value", "'z'"),
    ("t[x=y,]", 7, "an attribute and its value", "nothing"),
    ("t[x=y, x=z]", 8, "one value of 'x'", "'x=z'"),
    ("t[x=a\x07]", 3, "an attribute and its value", r"'x=a\x07'"),
    ("t[x=\u202etxt]", 3, "an attribute and its value", r"'x=\u202etxt'"),
    ("t[x=" + "v" * 256 + "]", 3, "an attribute and its value, of at most 256", "'x=vvv"),
    ("a" * 129, 1, "a name of at most 128 characters", "'aaa"),
    ("_a", 1, "a name or a sign", "'_'"),
    ("-.a", 2, "a name or a sign", "'.'"),
    ("a\nb", 2, "a name or a sign", r"'\n'"),
    ("a\t- b", 2, "a name or a sign", r"'\t'"),
    ("a\x00", 2, "a name or a sign", r"'\x00'"),
    ("a \ud800", 3, "a name or a sign", r"'\ud800'"),
    ("a \N{MINUS SIGN} b", 3, "a name or a sign", r"'\u2212'. A minus is the '-' of ASCII"),
    ("é", 1, "a name or a sign", r"'\xe9'"),
    ("../a", 1, "a name or a sign", "'.'"),
    (" + ".join(f"p{i}" for i in range(17)), 87, "at most 16 different operands", "'p16'"),
]


@pytest.mark.parametrize("text", GOOD)
def test_each_text_is_written_out_in_one_way(text: str) -> None:
    found = parse(text)
    assert str(found) == GOOD[text]
    assert parse(str(found)) == found


@pytest.mark.parametrize(("text", "column", "expected", "found"), WRONG)
def test_each_mistake_is_shown_where_it_is(
    text: str, column: int, expected: str, found: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith(f"the expression is wrong in column {column} (")
    assert f": expected {expected}" in message
    assert f"; found {found}" in message
    assert message.isascii()
    assert message.isprintable()


def test_the_parts_of_an_expression() -> None:
    assert parse("a - 0.25*b[2:8] + 2*c[y=2,x=1]") == Expression(
        (
            Term(1.0, Operand("a")),
            Term(-0.25, Operand("b", span=(2, 8))),
            Term(2.0, Operand("c", selection=(("x", "1"), ("y", "2")))),
        )
    )
    assert parse("b[2:8] + a - b + a[x=1]").names == ("b", "a")


@pytest.mark.parametrize(
    ("text", "name"),
    [("a-b", "a-b"), (" a ", "a"), ("(a)", "a"), ("2*a - a", "a"), ("a[:]", "a")]
    + [(text, None) for text in ("-a", "2*a", "a[:8]", "a[x=1]", "a + b", "a + 0*b", "0*a")],
)
def test_a_name_alone(text: str, name: str | None) -> None:
    assert parse(text).name == name


def test_a_name_of_the_store_is_no_expression() -> None:
    assert not any(map(is_expression, ("a", "a-b", "0.7", "a.b_c", "A" * 128)))
    assert all(map(is_expression, ("", " a", "-a", "a+b", "a[:8]", "a" * 129, "a\n", "2*a")))


def test_weights_in_sum_are_bounded() -> None:
    assert parse("50*(2*a)").terms[0].weight == MAX_WEIGHT
    assert parse("100*100*0.01*a - 0*b").terms[0].weight == MAX_WEIGHT
    for text in ("50*(2.1*a)", "60*a + 60*a", "-60*a - 60*a", "*".join(["100"] * 100) + "*a"):
        with pytest.raises(
            ExpressionError, match="the weights of 'a' come to more than 100 in size"
        ):
            parse(text)


def test_the_length_is_bounded_before_and_after() -> None:
    with pytest.raises(ExpressionError, match="at most 512 characters; found 513"):
        parse("a" + " " * 512)
    names = [f"{i:x}" * 25 for i in range(16)]
    with pytest.raises(ExpressionError, match="without its parentheses has 685 characters"):
        parse(f"0.123456789012*({' + '.join(names)})")


@pytest.mark.parametrize("text", [None, 3, b"a", ["a"], object()])
def test_what_is_no_text_is_refused(text: object) -> None:
    with pytest.raises(ExpressionError, match="an expression must be text, such as"):
        parse(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("terms", [(), [Term(1.0, Operand("a"))], ("a",), None])
def test_an_expression_has_terms(terms: object) -> None:
    with pytest.raises(ExpressionError, match="an expression has terms, at least one"):
        Expression(terms)  # type: ignore[arg-type]


def test_an_error_of_an_expression_is_one_of_data() -> None:
    assert issubclass(ExpressionError, DataError)


def test_torch_is_not_needed() -> None:
    code = (
        "import sys, foreword.expressions as e; e.parse('a + b'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


NUMBERS = st.decimals(0, 3, places=2).map(str) | st.sampled_from(["0", "1", "2", "0.333333333333"])
NAMES = st.sampled_from(["a", "b", "c", "d", "e_1"])


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from([" + ", " - ", "+"]), inner).map("".join),
        inner.map("({})".format),
        st.tuples(NUMBERS, inner).map("{0[0]}*({0[1]})".format),
        inner.map("-({})".format),
    )


class Vector(Counter[str]):
    """A symbolic vector: how often each name is in it, as Python's own operators count it."""

    def __add__(self, other: Vector) -> Vector:  # type: ignore[override]
        return Vector({name: self[name] + other[name] for name in {**self, **other}})

    def __rmul__(self, weight: Fraction) -> Vector:
        return Vector({name: weight * size for name, size in self.items()})

    def __neg__(self) -> Vector:  # type: ignore[override]
        return Fraction(-1) * self

    def __sub__(self, other: Vector) -> Vector:  # type: ignore[override]
        return self + -other


def evaluated(text: str) -> Vector:
    """What Python makes of the text, its numbers as fractions and its names as vectors."""
    code = re.sub(r"(?<![\w.])[0-9]+(\.[0-9]+)?", lambda found: f"F('{found[0]}')", text)
    vectors = {name: Vector({name: 1}) for name in ("a", "b", "c", "d", "e_1")}
    return eval(code, {"__builtins__": {}, "F": Fraction}, vectors)


@fuzz
@given(st.recursive(NAMES, _nested, max_leaves=12))
def test_the_weights_are_those_of_python(text: str) -> None:
    try:
        found = parse(text)
    except ExpressionError as error:
        assert re.search("parentheses inside|characters; found|in size", str(error))  # noqa: PT017
        return
    wanted = {name: float(round(Fraction(w), DECIMALS)) for name, w in evaluated(text).items()}
    assert {term.operand.name: term.weight for term in found.terms} == wanted
    first = re.findall(r"[a-e]\w*", text)
    assert found.names == tuple(dict.fromkeys(first))


WEIGHTS = st.integers(-(10**14), 10**14).map(lambda n: n / 10**12) | st.sampled_from(
    [1.0, -1.0, 0.0]
)
STORED = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)
SPANS = st.tuples(st.integers(0, 99), st.none() | st.integers(100, 9999)).filter(
    lambda s: s != (0, None)
)
LABELS = st.text("abZ09 .'\"*+-()é中:", min_size=1, max_size=5).map(str.strip).filter(len)
SELECTIONS = st.dictionaries(LABELS, LABELS, min_size=1, max_size=2).map(
    lambda d: tuple(sorted(d.items()))
)
OPERANDS = st.one_of(
    st.builds(Operand, STORED),
    st.builds(Operand, STORED, span=SPANS),
    st.builds(Operand, STORED, selection=SELECTIONS),
)


@fuzz
@given(st.dictionaries(OPERANDS, WEIGHTS, min_size=1, max_size=8))
def test_every_expression_is_read_as_it_was_written(weights: dict[Operand, float]) -> None:
    made = Expression(tuple(Term(weight + 0.0, operand) for operand, weight in weights.items()))
    assert parse(str(made)) == made
    assert str(parse(str(made))) == str(made)


SIGNS = st.sampled_from([*"+-*()[]:=,/. '\n\x00\ud800"])
WORDS = st.sampled_from(["a", "b-c", "0.7", "100", "1e9", "[:8]", "[2:1]", "[x=y]", "[x=y,", " - "])
SOUP = st.lists(SIGNS | WORDS, max_size=60).map("".join)


@fuzz
@given(st.text(max_size=600) | SOUP | st.text("ab01.*+-() [:]=,", max_size=520))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except ExpressionError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert 1 <= len(found.terms) <= MAX_TERMS
    assert all(math.isfinite(t.weight) and abs(t.weight) <= MAX_WEIGHT for t in found.terms)
    assert len({term.operand for term in found.terms}) == len(found.terms)
    assert parse(str(found)) == found


@pytest.mark.parametrize(
    "piece", ["(", ")", "-", "-(", "2*", "a+", "a[", "a[:8]+", "[", "1*(", " "]
)
def test_as_much_as_there_may_be_of_one_thing(piece: str) -> None:
    """No parse recurses by the length of its text."""
    text = (piece * MAX_CHARACTERS)[:MAX_CHARACTERS]
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(_depth() + 60)
    try:
        with pytest.raises(ExpressionError):
            parse(text)
    finally:
        sys.setrecursionlimit(limit)


def _depth() -> int:
    """How many calls are under way."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]
    return depth
