"""A list in a target column is what rows with one prompt are: several references of one input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.cli.main import main
from foreword.data import Task
from foreword.data.references import one_each
from foreword.errors import DataError
from foreword.evaluate import evaluate
from foreword.generate import GenerateOptions
from foreword.prefix import Prefix
from foreword.store import PrefixStore

TASK = Task("{mr} ->", " {refs}")
OPTIONS = GenerateOptions(max_new_tokens=8)
SEVERAL: list[dict[str, Any]] = [
    {"mr": "name[Zizzi]", "refs": ["Zizzi is a place.", "At Zizzi.", 7]},
    {"mr": "name[Aromi]", "refs": "Aromi."},
    {"mr": "name[Alimentum]", "refs": ("Fish!",)},
]
SINGLE = [
    {"mr": "name[Zizzi]", "refs": "Zizzi is a place."},
    {"mr": "name[Zizzi]", "refs": "At Zizzi."},
    {"mr": "name[Zizzi]", "refs": "7"},
    {"mr": "name[Aromi]", "refs": "Aromi."},
    {"mr": "name[Alimentum]", "refs": "Fish!"},
]


@pytest.fixture
def prefix(tiny: foreword.Backbone) -> Prefix:
    """A captured text whose recipe has the templates."""
    return tiny.capture("Restaurants in short: ").with_meta(recipe=TASK.as_json())


def figures(found: Any) -> dict[str, Any]:
    """An evaluation without how long it took."""
    told = found.as_json()
    for side in ("prefix", "base"):
        told[side].pop("seconds")
    return dict(told)


@pytest.mark.parametrize("more", [{}, {"limit": 1}, {"scored_references": 1}])
def test_entries_are_references_as_rows_are(
    tiny: foreword.Backbone, prefix: Prefix, more: dict[str, int]
) -> None:
    found = evaluate(tiny, prefix, SEVERAL, options=OPTIONS, **more)
    assert figures(found) == figures(evaluate(tiny, prefix, SINGLE, options=OPTIONS, **more))
    assert found.references[0] == ["Zizzi is a place.", "At Zizzi.", "7"]


def test_the_template_is_filled_for_each_entry() -> None:
    task = Task("{mr} ->", " {name}: {refs}.")
    rows = one_each([{"mr": "a", "name": "Ada", "refs": ["b", "c"]}], task)
    assert [task.pair(row) for row in rows] == [("a ->", " Ada: b."), ("a ->", " Ada: c.")]


@pytest.mark.parametrize(
    ("refs", "said"),
    [
        ([], "the list of references is empty, expected at least one"),
        (["a", " "], "reference 2: ' ' is blank, expected text or a number"),
        (["a", None], "reference 2: there is no value"),
        ([["a"]], "reference 1: found a list in the list"),
        ([{"a": 1}], "reference 1: found a dict"),
    ],
)
def test_what_is_no_list_of_references_is_refused_with_its_row(
    tiny: foreword.Backbone, prefix: Prefix, refs: list[Any], said: str
) -> None:
    rows = [*SEVERAL, {"mr": "x", "refs": refs}]
    with pytest.raises(DataError, match=rf"^row 4: column 'refs'.*{re.escape(said)}"):
        evaluate(tiny, prefix, rows, options=OPTIONS)


def test_two_lists_in_one_target_are_refused() -> None:
    with pytest.raises(DataError, match=r"^row 1: the columns 'a' and 'b' of the target .*lists"):
        one_each([{"x": "1", "a": ["b"], "b": ["c"]}], Task("{x}", "{a} {b}"))


def test_a_list_that_the_prompt_has_too_is_none_of_references() -> None:
    with pytest.raises(DataError, match=r"^row 1: column 'a': found a list"):
        one_each([{"a": ["b"]}], Task("{a}", "{a}"))


def test_errors_after_a_list_name_the_row_that_was_given() -> None:
    with pytest.raises(DataError, match=r"^row 2: column 'mr': found a list"):
        one_each([SEVERAL[0], {"mr": ["a"], "refs": "b"}], TASK)


def test_training_takes_each_entry_as_a_row(tiny: foreword.Backbone) -> None:
    settings = foreword.TrainSettings(
        prompt="{mr} ->", target=" {refs}", steps=2, checkpoint_every=1, length=2
    )
    several = foreword.train(tiny, SEVERAL, settings, evaluation=SEVERAL)
    single = foreword.train(tiny, SINGLE, settings, evaluation=SINGLE)
    for own, other in zip(several.prefix.tensors, single.prefix.tensors, strict=True):
        assert torch.equal(own, other)
    data = [one.prefix.meta.training["data"] for one in (several, single)]
    assert data[0] == data[1]
    assert several.history == single.history
    assert several.report.rows == 5


def test_a_list_in_a_prompt_is_refused_in_training(tiny: foreword.Backbone) -> None:
    settings = foreword.TrainSettings(prompt="{refs} ->", target=" {mr}", steps=1, length=2)
    with pytest.raises(DataError, match=r"row 1: column 'refs'.*Only the target may name"):
        foreword.train(tiny, SEVERAL, settings)


def test_the_command_reads_a_list(
    tiny: foreword.Backbone,
    prefix: Prefix,
    tiny_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    PrefixStore(tmp_path / "store").save("food", prefix)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SEVERAL))
    words = ["evaluate", "food", str(tmp_path / "rows.jsonl"), "--store", str(tmp_path / "store")]
    how = ["--backbone", str(tiny_folder), "--no-base", "--max-new-tokens", "2"]
    assert main([*words, *how]) == 0
    assert "3 inputs, 5 references" in capfd.readouterr().err
