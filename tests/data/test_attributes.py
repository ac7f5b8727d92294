"""Attributes of rows: which columns, which values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from foreword.arithmetic import UnseenValue
from foreword.data import Collator, Encoded
from foreword.data.attributes import value_of, values_in
from foreword.data.selecting import chosen_by
from foreword.description import MAX_PIECES, Piece, PrefixMeta
from foreword.errors import DataError
from foreword.expressions import parse

ROWS: list[dict[str, Any]] = [
    {"mood": "good", "stars": 5, "new": True},
    {"mood": "bad", "stars": 1, "new": False},
    {"mood": None, "stars": np.int64(5)},
    {"mood": " "},
    {"mood": "good", "stars": float("nan")},
]
META = PrefixMeta(
    pieces=(Piece("", 3), Piece("mood=bad", 1), Piece("mood=good", 1), Piece("stars=5", 1)),
    combination="control",
)


def test_values_are_those_of_all_rows_in_alphabetical_order() -> None:
    found = values_in(("stars", "mood", "new"), ROWS)
    wanted = {"stars": ("1", "5"), "mood": ("bad", "good"), "new": ("False", "True")}
    assert [*found.items()] == [*wanted.items()]
    assert values_in(("mood",), ROWS[::-1]) == {"mood": ("bad", "good")}
    assert values_in((), ROWS) == {}


@pytest.mark.parametrize("missing", [None, float("nan"), "", "  \t"])
def test_a_blank_value_is_none(missing: object) -> None:
    assert value_of({"mood": missing}, "mood") is None
    assert value_of({}, "mood") is None


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.5, "column 'mood': found the number 0.5, expected a class"),
        (["a"], "column 'mood': found a list"),
        ("a\nb", "column 'mood': an attribute and its value have at most 255 printable characters"),
        ("a" * 252, "column 'mood': an attribute and its value have at most 255 printable"),
    ],
)
def test_what_is_no_value_is_refused_with_its_row(value: object, said: str) -> None:
    with pytest.raises(DataError, match=f"row 2: {said}"):
        values_in(("mood",), [{"mood": "a"}, {"mood": value}])
    assert value_of({"mood": "a" * 251}, "mood") == "a" * 251


@pytest.mark.parametrize("value", ["a[b", "a]", "a,b", "a=b", " a", "a "])
def test_a_value_that_no_expression_selects_is_refused_in_training(value: str) -> None:
    said = r"row 2: column 'mood': the value of an attribute has none of .*; found .*Rename it"
    with pytest.raises(DataError, match=said):
        values_in(("mood",), [{"mood": "a"}, {"mood": value}])
    assert value_of({"mood": value}, "mood") == value


@pytest.mark.parametrize("value", ["a b", "-3", "a*(b)+c:d", "ça", "5", "True"])
def test_an_expression_selects_every_value_that_training_takes(value: str) -> None:
    assert values_in(("mood",), [{"mood": value}]) == {"mood": (value,)}
    assert parse(f"p[mood={value}]").terms[0].operand.selection == (("mood", value),)


def test_a_column_without_values_is_refused() -> None:
    said = r"no row has a value of the attribute 'moods'; the columns are: mood, stars, new; did"
    with pytest.raises(DataError, match=said):
        values_in(("moods",), ROWS)
    with pytest.raises(DataError, match=r"no row has a value of the attribute 'a'; .* a$"):
        values_in(("a",), [{"a": None}])


def test_more_values_than_a_prefix_has_room_for_are_refused() -> None:
    rows = [{"id": number, "mood": "bad"} for number in range(MAX_PIECES - 2)]
    assert len(values_in(("id", "mood"), rows)["id"]) == 62
    said = "have 64 values in all, 63 of them of 'id'; a prefix has room for 63. Leave an attribute out"
    with pytest.raises(DataError, match=said):
        values_in(("id", "mood"), [*rows, {"id": 62}])


def test_a_row_selects_the_pieces_of_its_values() -> None:
    assert [chosen_by(META, row) for row in ROWS[2:]] == [(3,), (), (2,)]
    assert chosen_by(META, ROWS[0]) == (2, 3)
    assert chosen_by(META, "a text") == ()
    assert chosen_by(PrefixMeta(), ROWS[0]) == ()
    with pytest.warns(UnseenValue, match="trained for stars = '5', and not for '1'"):
        assert chosen_by(META, ROWS[1]) == (1,)


def test_a_batch_says_what_its_rows_select() -> None:
    rows = [Encoded([5], [5], pieces=(2, 3)), Encoded([6], [6]), Encoded([7], [7], pieces=(1,))]
    assert torch.equal(Collator(0)(rows)["pieces"], torch.tensor([[2, 3], [0, 0], [1, 0]]))
    assert "pieces" not in Collator(0)(rows[1:2])
