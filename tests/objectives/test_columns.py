"""The columns that tasks read without templates: those of the tasks themselves, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest

import foreword
from foreword.data.template import columns
from foreword.errors import DataError
from foreword.objectives.columns import ANSWERS, BY_TASK, LABELS, WHAT_FOR, check_default_columns
from foreword.objectives.settings import TaskName
from foreword.objectives.task import for_task
from foreword.tasks import LABELLINGS
from foreword.tasks.multilabel import LISTED
from tests.tasks.models import ANSWER, CLASSIFY, TAG, tiny_encoder

ANY = foreword.TrainSettings()
CHAT = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
NUMBERS = [{"text": "a", "label": 0.5}, {"text": "b", "label": 1.5}]
SEVERAL: list[dict[str, Any]] = [{"text": "a", "labels": ["x"]}, {"text": "b", "labels": []}]
FLAT = [{"question": "a", "context": "b", "answers": ["b"], "answer_start": [0]}]
ROWS: dict[str, list[Any]] = {
    "classify": CLASSIFY,
    "tag": TAG,
    "answer": ANSWER,
    "regress": NUMBERS,
    "multilabel": SEVERAL,
}


def test_every_task_has_its_columns() -> None:
    assert set(BY_TASK) == set(get_args(TaskName))
    assert {names for could in BY_TASK.values() for names in could} == set(WHAT_FOR)
    for task, labelling in LABELLINGS.items():
        if labelling.templates is None:
            assert BY_TASK[task] == (ANSWERS,)
        else:
            assert tuple(labelling.templates.needed) in BY_TASK[task]
    assert tuple(columns(f"{LISTED.prompt}{LISTED.target}")) == LABELS


@pytest.mark.parametrize("task", ROWS)
def test_what_a_task_reads_is_passed_whether_it_is_named_or_not(task: TaskName) -> None:
    rows = ROWS[task]
    assert for_task(tiny_encoder(), ANY, rows).task == task
    for settings in (ANY, foreword.TrainSettings(task=task)):
        check_default_columns(settings, rows, rows)


@pytest.mark.parametrize("rows", [CHAT, FLAT, [{**CLASSIFY[0], "id": 1}, CHAT[0]]])
def test_so_are_conversations_and_columns_beside(rows: list[dict[str, Any]]) -> None:
    """A decoder and an encoder take different ones of several, so either will do in the first row."""
    check_default_columns(ANY, [{**CHAT[0], **rows[0]}, *rows[1:]])


def test_a_row_that_lacks_a_value_is_named() -> None:
    rows: list[dict[str, Any]] = [*CLASSIFY, {"text": "x", "label": None}]
    with pytest.raises(DataError, match=r"^row 13 has no value in column 'label'; its columns are"):
        check_default_columns(ANY, rows)
    with pytest.raises(DataError, match=r"^row 1 has no value in column 'label'"):
        check_default_columns(ANY, CLASSIFY, [{"text": "x"}])


def test_a_named_task_is_read_from_its_own_columns() -> None:
    both = {**CLASSIFY[0], **TAG[0]}
    check_default_columns(ANY, [both, TAG[0]])
    with pytest.raises(DataError, match=r"^row 2 has no value in column 'text'"):
        check_default_columns(foreword.TrainSettings(task="classify"), [both, TAG[0]])


def test_what_a_backbone_may_refuse_of_a_task_is_left_to_it() -> None:
    check_default_columns(foreword.TrainSettings(task="seq2seq"), CLASSIFY)


def test_one_column_makes_no_example() -> None:
    with pytest.raises(DataError, match=r"templates, as in --prompt and --target$"):
        check_default_columns(ANY, [{"review": "x"}])
