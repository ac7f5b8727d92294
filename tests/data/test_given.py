"""Rows as Python code holds them give what the same rows in a list give, wherever rows are taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch

import foreword
from foreword.data import read_rows, rows_of
from foreword.data.inputs import inputs_of, texts_of
from foreword.errors import DataError
from foreword.head import Head
from tests.conftest import MEMORY

ROWS = MEMORY[:3]


def as_set(rows: Any) -> datasets.Dataset:
    return datasets.Dataset.from_list(rows)


KINDS: dict[str, Callable[[Any], Any]] = {
    "list": lambda rows: rows,
    "tuple": tuple,
    "generator": iter,
    "frame": pandas.DataFrame,
    "set": as_set,
    "set of tensors": lambda rows: as_set(rows).with_format("torch"),
    "splits": lambda rows: datasets.DatasetDict(
        {"train": as_set(rows), "test": as_set([{"mr": "?", "ref": "?"}])}
    ),
    "one split": lambda rows: datasets.DatasetDict({"test": as_set(rows)}),
    "stream": lambda rows: as_set(rows).to_iterable_dataset(),
    "stream's splits": lambda rows: datasets.IterableDatasetDict(
        {"train": as_set(rows).to_iterable_dataset()}
    ),
}


@pytest.fixture(params=[*KINDS, "path"])
def given(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Any]:
    """A way to hold rows."""

    def held(rows: Any) -> Any:
        if request.param != "path":
            return KINDS[request.param](rows)
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return held


def test_rows_are_the_rows(given) -> None:
    """A frame gave its columns' names, a dict of splits their names, and a path an error of its own."""
    assert rows_of(given(ROWS)) == ROWS
    assert read_rows(given(ROWS)) == ROWS
    assert inputs_of(given(ROWS)) == ROWS


def test_values_are_pythons_own(given) -> None:
    rows = [{"n": 1, "x": 0.5, "l": ["a", "b"], "t": "x"}, {"n": 2, "x": 1.5, "l": ["c"], "t": "y"}]
    found = rows_of(given(rows))
    assert found == rows
    assert {type(row["n"]) for row in found} == {int}
    assert {type(row["l"]) for row in found} == {list}


def test_training_evaluation_and_generation_take_them(tiny: foreword.Backbone, given) -> None:
    settings = foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", length=2, steps=1)
    wanted = foreword.train(tiny, ROWS, settings, evaluation=ROWS).prefix
    prefix = foreword.train(tiny, given(ROWS), settings, evaluation=given(ROWS)).prefix
    assert prefix.meta.training["data"] == wanted.meta.training["data"]
    assert all(torch.equal(a, b) for a, b in zip(prefix.tensors, wanted.tensors, strict=True))
    options = foreword.GenerateOptions(max_new_tokens=2)
    texts = foreword.generate(tiny, ROWS, wanted, options)
    assert foreword.generate(tiny, given(ROWS), wanted, options) == texts
    scores = [
        foreword.evaluate(tiny, wanted, rows, options=options, base=False).prefix.nll
        for rows in (ROWS, given(ROWS))
    ]
    assert scores[0] == scores[1]


def test_prediction_takes_them(tiny: foreword.Backbone, given) -> None:
    head = Head("classify", ("a", "b"), "last", torch.ones(2, 32), torch.zeros(2))
    prefix = tiny.capture("<s>abc").with_head(head)
    prefix = prefix.with_meta(recipe={"prompt": "{mr}", "target": "{ref}"})
    found = foreword.predict(tiny, given(ROWS), prefix)
    assert found == foreword.predict(tiny, ROWS, prefix)
    assert foreword.predict(tiny, "x", prefix) == foreword.predict(tiny, ["x"], prefix)


def test_one_text_and_one_row_are_one_input(tiny: foreword.Backbone) -> None:
    """A text was as many inputs as it has letters."""
    options = foreword.GenerateOptions(max_new_tokens=2)
    assert foreword.generate(tiny, "hello", None, options) == foreword.generate(
        tiny, ["hello"], None, options
    )
    row = {"input": "hello"}
    assert inputs_of(row) == [row]
    assert texts_of("hello") == ["hello"]
    assert texts_of(pandas.Series(["a", "b"])) == ["a", "b"]


def test_a_frames_arrays_are_lists_and_its_gaps_are_no_values() -> None:
    frame = pandas.DataFrame({"tokens": [np.array(["a", "b"])], "tags": [["O", "O"]], "n": [None]})
    (row,) = rows_of(frame)
    assert (row["tokens"], row["tags"]) == (["a", "b"], ["O", "O"])
    with pytest.raises(DataError, match="row 1 has no value in column 'n'"):
        foreword.Task("{n}", "{n}").check([row])


def test_a_transform_of_the_users_stays() -> None:
    data = as_set(ROWS).with_transform(lambda batch: {"mr": [mr.upper() for mr in batch["mr"]]})
    assert [row["mr"] for row in rows_of(data)] == [row["mr"].upper() for row in ROWS]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "found an int, expected rows"),
        (b"rows.jsonl", "found a bytes, expected rows"),
        (["rows.jsonl"], "row 1 is a str, expected a mapping"),
        ({"mr": ["a"], "ref": ["b"]}, "found a dict, expected rows"),
        ({}, "found a dict, expected rows"),
        ([], "has no rows"),
        (pandas.DataFrame({"a": []}), "has no rows"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "the data frame has 'a' twice"),
        (
            datasets.DatasetDict({"test": as_set(ROWS), "dev": as_set(ROWS)}),
            r"the splits test, dev and none called 'train'; .*data\['test'\]",
        ),
    ],
)
def test_what_holds_no_rows_is_named(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(data)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [(7, "inputs are texts or rows; found int"), (["a", 7], "input 2: expected text or a row")],
)
def test_what_is_no_input_is_named(inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        inputs_of(inputs)
    with pytest.raises(DataError, match="input 1: expected text, found dict"):
        texts_of([{"a": 1}])


def test_folders_are_paths_and_texts(tiny: foreword.Backbone, tmp_path: Path) -> None:
    """A folder as text was an AttributeError after everything had been read."""
    settings = foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", length=2, steps=1)
    result = foreword.train(tiny, ROWS, settings, folder=str(tmp_path / "run"))
    assert (tmp_path / "run/checkpoint-1").is_dir()
    for place in (tmp_path / "a.safetensors", str(tmp_path / "b.safetensors")):
        foreword.save_prefix(result.prefix, place)
        assert foreword.load_prefix(place).digest == result.prefix.digest
    for folder in (tmp_path / "store", str(tmp_path / "store")):
        foreword.PrefixStore(folder).save("x", result.prefix, overwrite=True)
        assert list(foreword.PrefixStore(folder)) == ["x"]


def test_a_backbone_is_loaded_from_a_path(tiny_folder: Path) -> None:
    found = foreword.load(tiny_folder, dtype="float32")
    assert found.name == str(tiny_folder)
