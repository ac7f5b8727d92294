"""Sets that share no input."""

from __future__ import annotations

import datetime
import hashlib
import math
from typing import Any

import pytest

from foreword.compare.split import LEAST, known_before, split
from foreword.errors import DataError
from foreword.objectives.settings import DataSettings
from foreword.prefix import canonical_json
from tests.tasks.models import ROWS as LABELLED

TEXT = DataSettings(task="causal", prompt="{mr} ->", target=" {ref}")
ROWS: list[dict[str, Any]] = [
    {"mr": f"name[{number}]", "ref": f"{number} {reference}"}
    for number in range(100)
    for reference in range(3)
]


def inputs(rows: list[Any]) -> set[str]:
    return {row["mr"] for row in rows}


def test_references_of_one_input_stay_together() -> None:
    made = split(ROWS, TEXT)
    parts = [made.train, made.held, made.test]
    assert [len(inputs(part)) for part in parts] == [80, 10, 10]
    assert sum(map(len, parts)) == len(ROWS)
    assert not inputs(made.train) & inputs(made.held)
    assert not (inputs(made.train) | inputs(made.held)) & inputs(made.test)


def test_it_is_the_same_each_time_and_another_for_other_rows() -> None:
    assert split(ROWS, TEXT) == split(list(ROWS), TEXT)
    assert split(ROWS, TEXT).digest == split(ROWS, TEXT).digest
    assert split(ROWS, TEXT).digest != split(ROWS[3:], TEXT).digest


def test_rows_to_test_on_are_taken_as_they_are() -> None:
    test = [{"mr": "x", "ref": "y"}]
    made = split(ROWS, TEXT, test)
    assert made.test == test
    assert (len(inputs(made.train)), len(inputs(made.held))) == (90, 10)


def test_inputs_to_test_on_that_are_trained_on_are_told_of() -> None:
    assert known_before(split(ROWS, TEXT), TEXT) == []
    test = [{"mr": "x", "ref": "y"}, *ROWS[:5]]
    (said,) = known_before(split(ROWS, TEXT, test), TEXT)
    assert said.startswith("2 of the 3 inputs to test on are among the rows to train on")


def test_fewer_rows_to_train_on_leave_the_others_as_they_are() -> None:
    whole, part = split(ROWS, TEXT), split(ROWS, TEXT, most=50)
    assert part.train == whole.train[:50]
    assert (part.held, part.test) == (whole.held, whole.test)


def test_labelled_rows_are_inputs_each() -> None:
    rows = [{"text": f"{number}", "label": "ab"[number % 2]} for number in range(40)]
    made = split(rows, DataSettings(task="classify", prompt="{text}", target="{label}"))
    assert len(made.train) == 40 - 2 * LEAST


def test_conversations_are_told_apart_by_what_was_said_before_the_answer() -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{number % 30}"},
                {"role": "assistant", "content": f"{number}"},
            ]
        }
        for number in range(60)
    ]
    made = split(rows, DataSettings(task="causal"))
    assert len(made.held) == len(made.test) == 2 * LEAST


def test_too_few_inputs_are_refused() -> None:
    with pytest.raises(DataError, match="23 different inputs; a comparison sets 16 of them aside"):
        split(ROWS[: 3 * 23], TEXT)
    split(ROWS[: 3 * 24], TEXT)


def test_a_column_that_no_task_reads_may_hold_anything() -> None:
    """Dates and missing numbers, as tables have them."""
    day = datetime.date(2026, 11, 30)
    rows = [{**row, "when": day, "price": math.nan} for row in ROWS]
    assert split(rows, TEXT).digest == split(list(rows), TEXT).digest
    later = [{**row, "when": day + datetime.timedelta(1)} for row in rows]
    assert split(rows, TEXT).digest != split(later, TEXT).digest


def test_rows_of_json_have_the_digest_that_earlier_comparisons_kept() -> None:
    made = split(ROWS, TEXT)
    whole = {"rows": [made.train, made.held, made.test]}
    assert made.digest == hashlib.sha256(canonical_json(whole)).hexdigest()


@pytest.mark.parametrize(("task", "prompt"), [("tag", "{tokens}"), ("answer", None)])
def test_an_input_that_stands_in_several_rows_stays_together(task: Any, prompt: str | None) -> None:
    """Whatever a column that is not read tells them apart by."""
    target = None if prompt is None else "{tags}"
    inputs = [
        {
            name: f"{value} {number}" if isinstance(value, str) else value
            for name, value in row.items()
        }
        if task == "answer"
        else {**row, "tokens": [*row["tokens"][:-1], str(number)]}
        for row in LABELLED[task]
        for number in range(5)
    ]
    rows = [{**row, "id": number} for number, row in enumerate([*inputs, *inputs])]
    made = split(rows, DataSettings(task=task, prompt=prompt, target=target))
    parts = [
        {row["id"] % len(inputs) for row in part} for part in (made.train, made.held, made.test)
    ]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(inputs)
