"""Evaluation rows with a label that no training row has: named once, before step 1, and left out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.cli.main import main
from foreword.errors import DataError
from foreword.objectives.first_look import DoubtfulData
from tests.tasks.models import ANSWER, CLASSIFY, TAG, save_folder, tiny_encoder

SETTINGS = foreword.TrainSettings(length=4, steps=2, batch_size=4, checkpoint_every=1)
ODD: list[dict[str, Any]] = [
    {"text": "odd film", "label": "odd"},
    {"text": "fine film", "label": "good"},
    {"text": "strange film", "label": "odd"},
    {"text": "new film", "label": "new"},
]
KNOWN = [row for row in CLASSIFY if row["label"] in ("good", "bad")][:3]


def losses(evaluation: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[float]:
    result = foreword.train(tiny_encoder(), rows, SETTINGS, evaluation=evaluation)
    return [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]


def test_rows_with_unseen_labels_are_left_out_and_told_once() -> None:
    message = (
        r"^3 of 7 evaluation rows have labels that the head does not know: 'new' \(1\), 'odd' \(2\) "
        r"\(row 4, 6, 7\)\. They are left out of the evaluation; the head knows bad, good$"
    )
    mixed = [*KNOWN, ODD[0], ODD[1], ODD[2], ODD[3]]
    with pytest.warns(DoubtfulData, match=message) as told:
        found = losses(mixed, CLASSIFY)
    assert len([one for one in told if issubclass(one.category, DoubtfulData)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found == losses([*KNOWN, ODD[1]], CLASSIFY)


def test_so_are_rows_with_an_unseen_tag() -> None:
    more = {"tokens": ["Ada", "sits"], "tags": ["B-person", "B-verb"]}
    with pytest.warns(DoubtfulData, match=r"1 of 7 evaluation rows .*: 'B-verb' \(1\) \(row 1\)"):
        found = losses([more, *TAG], TAG)
    assert found == losses(TAG, TAG)


def test_so_are_rows_with_an_unseen_label_among_several() -> None:
    rows = [{"text": row["text"], "labels": [row["label"], "film"]} for row in CLASSIFY]
    more = {"text": "odd film", "labels": ["good", "odd"]}
    none = {"text": "film", "labels": []}
    with pytest.warns(DoubtfulData, match=r"1 of 5 evaluation rows .*: 'odd' \(1\) \(row 2\)"):
        found = losses([none, more, *rows[:3]], rows)
    assert found == losses([none, *rows[:3]], rows)


def test_a_task_without_classes_has_no_unseen_labels() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert losses(ANSWER, ANSWER)


def test_rows_of_which_none_is_left_are_refused_before_the_first_step() -> None:
    rows = [ODD[0], ODD[2], ODD[3]]
    message = (
        r"^each of the 3 evaluation rows has a label that the head does not know: 'new' \(1\), "
        r"'odd' \(2\)\. It knows bad, good; give rows with these labels to evaluate on$"
    )
    with pytest.raises(DataError, match=message):
        losses(rows, CLASSIFY)


def test_a_row_that_cannot_be_used_keeps_its_number() -> None:
    """The rows before it that are left out are counted."""
    rows = [ODD[0], *KNOWN, {"text": "", "label": "good"}]
    bare = tiny_encoder()
    bare.tokenizer.backend_tokenizer.post_processor = None
    with pytest.raises(DataError, match="^row 5: its text has no tokens"), pytest.warns():
        foreword.train(bare, CLASSIFY, SETTINGS, evaluation=rows)


def test_the_command_says_it_before_the_first_step(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_folder(tiny_encoder(), tmp_path / "model")
    for name, rows in (("rows", CLASSIFY), ("dev", [*KNOWN, *ODD])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    words = ["train", str(tmp_path / "rows.jsonl"), "--eval", str(tmp_path / "dev.jsonl")]
    where = ["--name", "first", "--store", str(tmp_path / "store")]
    how = ["--backbone", str(tmp_path / "model"), "--steps", "2", "--length", "4"]
    assert main([*words, *where, *how]) == 0
    err = capfd.readouterr().err
    assert err.count("evaluation rows have labels that the head does not know") == 1
    assert err.index("warning: 3 of 7 evaluation rows") < err.index("step 1/2")
