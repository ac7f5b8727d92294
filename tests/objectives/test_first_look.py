"""What training says before its first step, and the data that it warns of or refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.cli.main import main
from foreword.errors import DataError
from foreword.objectives.first_look import DoubtfulData
from tests.tasks.models import ANSWER, CLASSIFY, TAG, tiny_encoder

STEP: dict[str, Any] = {"length": 2, "steps": 1, "batch_size": 2}
TEXT: dict[str, Any] = {"prompt": "{mr} ->", "target": " {ref}", **STEP}
FREE = [{"text": f"facts {n}", "label": f"A sentence about {n}."} for n in range(24)]
"""Rows of a task that writes text, in the columns of classification."""


def said(backbone: foreword.Backbone, rows: Any, **settings: Any) -> str:
    return foreword.train(backbone, rows, foreword.TrainSettings(**settings)).first_look


def test_text_is_shown_as_it_is_encoded(
    tiny: foreword.Backbone, rows: list[dict[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "foreword.train"):
        found = said(tiny, rows, **TEXT)
    assert found == (
        "causal, 12 rows; row 1 is read as 'name[Zizzi], food[Thai] ->' with the target "
        "' Zizzi serves Thai food.</s>'"
    )
    assert [record.getMessage() for record in caplog.records] == [found]


def test_a_conversation_is_shown_up_to_its_answer(tiny: foreword.Backbone) -> None:
    turns = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    found = said(tiny, [{"messages": turns}], **STEP)
    assert found.startswith("causal, 1 row; row 1 is read as ")
    assert "user: Hi?" in found
    assert "with the target 'Yes." in found


def test_labels_are_named() -> None:
    found = said(tiny_encoder(), CLASSIFY, **STEP)
    assert found == (
        "classify, 12 rows, 2 labels: bad, good; row 1 is read as '<s>fine film</s>' with the label "
        "'good'"
    )
    found = said(tiny_encoder(), TAG, **STEP)
    assert found.startswith("tag, 6 rows, 3 labels: O, B-person, B-place; row 1 is read as ")
    found = said(tiny_encoder(), ANSWER, **STEP)
    assert found.startswith("answer, 6 rows; row 1 is read as '<s>Who sits?</s>In Rome")
    assert "labels" not in found


def test_of_numbers_mean_and_deviation_are_named() -> None:
    rows = [{"text": f"film {n}", "label": n + 0.5} for n in range(4)]
    found = said(tiny_encoder(), rows, **STEP)
    assert found.startswith("regress, 4 rows, numbers of mean 2 and deviation 1.118; row 1 is read")
    assert found.endswith("with the number 0.5")


def test_many_labels_and_long_texts_are_cut() -> None:
    rows = [{"text": "x" * 100 + "y" * 100, "label": f"label {n % 20:02}"} for n in range(60)]
    found = said(tiny_encoder(), rows, **STEP)
    assert "20 labels: label 00," in found
    assert "label 11, and 8 more; row 1" in found
    assert len(found) < 400


def test_free_text_does_not_become_classes() -> None:
    with pytest.raises(DataError, match=r"24 rows have 24 different labels.*--task classify"):
        said(tiny_encoder(), FREE, **STEP)
    with pytest.warns(DoubtfulData, match="24 rows have 24 different labels"):
        assert "24 labels" in said(tiny_encoder(), FREE, task="classify", **STEP)
    long = [{**row, "label": row["label"] + "x" * 300} for row in FREE]
    with pytest.raises(DataError, match="which looks like text to write"):
        said(tiny_encoder(), long, **STEP)


def test_few_rows_may_have_a_label_each() -> None:
    assert "19 labels" in said(tiny_encoder(), FREE[:19], **STEP)


def test_half_as_many_labels_as_rows_are_classes() -> None:
    rows = [{**row, "label": str(n // 2)} for n, row in enumerate(FREE)]
    assert "12 labels" in said(tiny_encoder(), rows, **STEP)


def test_blank_texts_and_targets_are_counted(
    tiny: foreword.Backbone, rows: list[dict[str, str]]
) -> None:
    for place in (2, 4):
        rows[place]["ref"] = " "
    with pytest.warns(DoubtfulData, match=r"2 of 12 rows have a blank target \(row 3, 5\); drop"):
        said(tiny, rows, **TEXT)
    blank = [{**row, "text": "\n"} for row in CLASSIFY]
    with pytest.warns(
        DoubtfulData, match=r"12 of 12 rows have .* text \(row 1, 2, 3, 4, 5, \.\.\.\)"
    ):
        said(tiny_encoder(), blank, **STEP)


def test_one_column_of_several_may_be_blank(tiny: foreword.Backbone) -> None:
    rows = [{"a": "one", "b": "", "c": "two"}]
    said(tiny, rows, **STEP, prompt="{a} {b}", target="{c}")
    with pytest.warns(DoubtfulData, match=r"a row has a blank text \(row 1\)"):
        said(tiny, [{"a": "", "b": "", "c": "two"}], **STEP, prompt="{a} {b}", target="{c}")


def test_labels_that_look_the_same_are_named() -> None:
    rows = [*CLASSIFY, {"text": "best film", "label": "Good "}]
    with pytest.warns(DoubtfulData, match=r"the labels 'Good ', 'good' differ by spaces or case"):
        said(tiny_encoder(), rows, **STEP)


@pytest.mark.parametrize("label", ["", "  "])
def test_an_empty_label_is_refused_with_its_row(label: str) -> None:
    rows = [*CLASSIFY, {"text": "some film", "label": label}]
    with pytest.raises(DataError, match=r"row 13: its label '\s*' is empty; drop the row"):
        said(tiny_encoder(), rows, **STEP)
    tagged = [*TAG, {"tokens": ["Ada", "sits"], "tags": ["O", label]}]
    with pytest.raises(DataError, match=r"row 7: tag 2: its label '\s*' is empty"):
        said(tiny_encoder(), tagged, **STEP)


def test_a_list_of_references_is_a_row_for_each(
    tiny: foreword.Backbone, rows: list[dict[str, str]]
) -> None:
    several: list[dict[str, Any]] = [*rows, {"mr": "name[Zizzi]", "ref": ["Zizzi.", "At Zizzi."]}]
    assert "14 rows" in said(tiny, several, **TEXT)


def test_the_command_says_it_before_the_first_step(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str], rows: list[dict[str, str]]
) -> None:
    rows[0]["ref"] = " "
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ("--name", "first", "--store", str(tmp_path / "store"), "--backbone", str(tiny_folder))
    how = ("--prompt", "{mr} ->", "--target", "{ref}", "--steps", "1", "--length", "2")
    assert main(["train", str(tmp_path / "rows.jsonl"), *named, *how]) == 0
    err = capfd.readouterr().err
    assert "warning: a row has a blank target (row 1)" in err
    assert err.index("causal, 12 rows; row 1 is read as") < err.index("step 1/1")
    assert not logging.getLogger("foreword.train").handlers
