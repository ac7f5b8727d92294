"""Errors have a remedy for Python and one for commands, and keep both wherever they go."""

from __future__ import annotations

import pickle

import pytest

from foreword.engine.request import NotServed
from foreword.errors import DataError, ForewordError, PrefixError

TOLD = PrefixError("it is long; ", "cut it, prefix[:8]", command="cut it, NAME[:8]")


@pytest.mark.parametrize(
    "error",
    [TOLD, pickle.loads(pickle.dumps(TOLD)), TOLD.about("x")],
    ids=["as raised", "copied", "about"],
)
def test_both_remedies_are_told(error: ForewordError) -> None:
    before = "x: " if error is not TOLD and str(error).startswith("x: ") else ""
    assert type(error) is PrefixError
    assert str(error) == f"{before}it is long; cut it, prefix[:8]"
    assert error.for_commands == f"{before}it is long; cut it, NAME[:8]"


def test_one_message_is_for_both() -> None:
    assert str(DataError("no rows")) == DataError("no rows").for_commands == "no rows"
    assert str(DataError("").about("rows.jsonl")) == "rows.jsonl: "


def test_what_an_error_is_about_leaves_the_rest_of_it() -> None:
    """Its constructor may want other things."""
    error = NotServed("strength", "it is not served")
    told = error.about("line 3")
    assert (str(told), told.field) == (f"line 3: {error}", "strength")
    assert str(error) == "strength: it is not served"
