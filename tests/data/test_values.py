"""Values of rows as text: one way for each kind, and a refusal for all others."""

from __future__ import annotations

import enum
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from foreword.data.values import class_of, is_missing, text_of
from foreword.errors import DataError


class Colour(enum.Enum):
    RED = "red"


WRITTEN = [
    ("as it is ", "as it is "),
    ("", ""),
    (np.str_("x"), "x"),
    (7, "7"),
    (-(10**30), "-1000000000000000000000000000000"),
    (np.int64(7), "7"),
    (0.1, "0.1"),
    (np.float32(0.1), "0.1"),
    (np.float64(0.1), "0.1"),
    (1.0, "1.0"),
    (1e-7, "1e-07"),
    (True, "True"),
    (np.bool_(False), "False"),
    (Decimal("1.50"), "1.50"),
    (Decimal("0E-8"), "0.00000000"),
    (Decimal("1E+3"), "1000"),
    (date(2024, 2, 29), "2024-02-29"),
    (datetime(2024, 2, 29, 7, 5), "2024-02-29 07:05:00"),
    (pandas.Timestamp("2024-02-29 07:05"), "2024-02-29 07:05:00"),
    (time(7, 5), "07:05:00"),
    (Colour.RED, "red"),
]


@pytest.mark.parametrize(("value", "text"), WRITTEN, ids=[repr(value) for value, _ in WRITTEN])
def test_each_kind_is_written_in_one_way(value: Any, text: str) -> None:
    assert text_of(value) == text
    assert not is_missing(value)


@pytest.mark.parametrize("value", [None, float("nan"), np.float32("nan"), pandas.NA, pandas.NaT])
def test_what_stands_for_no_value_is_refused(value: Any) -> None:
    assert is_missing(value)
    with pytest.raises(DataError, match="there is no value"):
        text_of(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"hello", "found bytes, b'hello', expected text"),
        (["x", "y"], r"found a list, \['x', 'y'\], expected text"),
        (("x",), "found a tuple"),
        ({"x": 1}, "found a dict"),
        (float("inf"), "found a float, inf"),
        (1j, "found a complex"),
        (np.ones(3), "found a ndarray"),
        (np.datetime64("2024-02-29"), "found a datetime64"),
        (torch.ones(1), "found a Tensor"),
        (object(), "found an object"),
    ],
)
def test_what_is_not_text_is_refused_by_its_kind(value: Any, kind: str) -> None:
    with pytest.raises(DataError, match=kind):
        text_of(value)


@pytest.mark.parametrize(
    ("value", "name"), [("a", "a"), (1, "1"), (True, "True"), (np.int8(3), "3")]
)
def test_a_class_is_text_or_a_whole_number(value: Any, name: str) -> None:
    assert class_of(value) == name


@pytest.mark.parametrize("value", [0.5, 1.0, np.float32(2), Decimal("1.5")])
def test_a_measured_number_is_no_class(value: Any) -> None:
    """Every rating of 3.7 became a class of its own."""
    with pytest.raises(DataError, match="found the number .*, expected a class"):
        class_of(value)
