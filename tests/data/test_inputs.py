"""Inputs as they are given: one is one, whatever Python would make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

import foreword
from foreword.data.inputs import inputs_of, texts_of
from foreword.errors import DataError
from foreword.generate import GenerateOptions, generate
from tests.tasks.models import CLASSIFY, TAG, tiny_encoder

SHORT = GenerateOptions(max_new_tokens=4)
ROWS = [{"mr": "a"}, {"mr": "b"}]


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("hello", ["hello"]),
        ("", [""]),
        ({"mr": "a"}, [{"mr": "a"}]),
        (["a", {"mr": "b"}], ["a", {"mr": "b"}]),
        (("a", "b"), ["a", "b"]),
        ((text for text in "ab"), ["a", "b"]),
        (map(str, (1, 2)), ["1", "2"]),
        ([], []),
        (pandas.DataFrame(ROWS), ROWS),
    ],
)
def test_one_input_is_one(given: Any, inputs: list[Any]) -> None:
    assert inputs_of(given) == inputs


def test_a_path_is_the_file_and_a_text_is_not(tmp_path: Path) -> None:
    lines = tmp_path / "inputs.txt"
    lines.write_bytes("\ufeffa\r\n\n \nb \u2028 c\n".encode())
    assert [one.strip() for one in texts_of(lines)] == ["a", "b \u2028 c"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    assert inputs_of(rows) == ROWS
    assert inputs_of(str(rows)) == [str(rows)]
    with pytest.raises(DataError, match="cannot read inputs from"):
        inputs_of(tmp_path / "none.txt")
    with pytest.raises(DataError, match="there is no such file"):
        inputs_of(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "found NoneType"),
        (b"hello", "found bytes"),
        (5, "found int"),
        (["a", None], "input 2: expected text or a row, found NoneType"),
        ([["a"]], "input 1: .*found list"),
        ([b"a"], "input 1: .*found bytes"),
    ],
)
def test_what_is_no_input_is_named(given: Any, message: str, tiny: foreword.Backbone) -> None:
    with pytest.raises(DataError, match=message):
        generate(tiny, given)


def test_generate_takes_one_text_for_one(tiny: foreword.Backbone) -> None:
    """`generate(backbone, "hello")` wrote five texts, one for each letter."""
    expected = generate(tiny, ["hello"], options=SHORT)
    assert len(expected) == 1
    assert generate(tiny, "hello", options=SHORT) == expected
    assert generate(tiny, {"input": "hello"}, options=SHORT) == expected
    assert generate(tiny, (one for one in ["hello"]), options=SHORT) == expected


def test_predict_and_features_take_one_text_for_one(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    settings = foreword.TrainSettings(length=4, steps=1)
    classify = foreword.train(encoder, CLASSIFY, settings).prefix
    expected = foreword.predict(encoder, ["a film"], classify)
    assert foreword.predict(encoder, "a film", classify) == expected
    assert foreword.predict(encoder, {"text": "a film"}, classify) == expected
    tag = foreword.train(encoder, TAG, settings).prefix
    (found,) = foreword.predict(encoder, "Ada sits", tag)
    assert found.tokens == ["Ada", "sits"]  # type: ignore[union-attr]
    vector = foreword.features(encoder, ["a film"], classify)
    torch.testing.assert_close(foreword.features(encoder, "a film", classify), vector)
    torch.testing.assert_close(foreword.features(encoder, iter(["a film"]), classify), vector)
    path = tmp_path / "texts.txt"
    path.write_text("a film\n")
    torch.testing.assert_close(foreword.features(encoder, path, classify), vector)
    with pytest.raises(DataError, match="input 2: expected text, found dict"):
        foreword.features(encoder, ["a", {"text": "b"}], classify)  # type: ignore[list-item]
    with pytest.raises(DataError, match="found int"):
        foreword.predict(encoder, [3], classify)  # type: ignore[list-item]
