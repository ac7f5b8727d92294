"""The columns that tasks read where no templates name any, checked before anything large is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.data.attributes import values_in
from foreword.data.each import of_each
from foreword.data.template import MESSAGES, columns
from foreword.data.values import in_column, is_missing, text_of
from foreword.errors import DataError
from foreword.objectives.settings import DataSettings, TaskName

Row = Mapping[str, Any]
Columns = tuple[str, ...]

CHAT = (MESSAGES,)
LABEL = ("text", "label")
LABELS = ("text", "labels")
TAGS = ("tokens", "tags")
ANSWERS = ("question", "context", "answers")

WHAT_FOR: Mapping[Columns, str] = {
    CHAT: "to write text",
    LABEL: "to classify or to measure",
    LABELS: "for several labels each",
    TAGS: "to tag words",
    ANSWERS: "to find answers",
}
"""Columns that go together, and what is learned from them."""

BY_TASK: Mapping[TaskName, tuple[Columns, ...]] = {
    "causal": (CHAT,),
    "seq2seq": (CHAT,),
    "classify": (LABEL,),
    "regress": (LABEL,),
    "multilabel": (LABELS, LABEL),
    "tag": (TAGS,),
    "answer": (ANSWERS,),
}
"""By task the columns that it reads, or those that it reads in their absence."""


def check_columns(settings: DataSettings, rows: Sequence[Row], others: Sequence[Row] = ()) -> None:
    """Check that rows have the columns that the templates name, or that tasks read without any.

    Args:
        settings: How they are read.
        rows: Rows to train on, at least one.
        others: Rows to evaluate or to test on.

    Raises:
        DataError: They have not; or what the prompt template names is no text.
    """
    if settings.prompt is None:
        check_default_columns(settings, rows, others)
        return
    for given in (rows, others):
        settings.templates.check_columns(given)
    for given in (rows, others):
        check_input_values(settings, given)


def check_default_columns(
    settings: DataSettings, rows: Sequence[Row], evaluation: Sequence[Row] = ()
) -> None:
    """Check that rows have the columns of some task, the first row's in every row.

    Which task it is depends on the backbone as well, and whether a task that is named suits it, so where
    several could be, any will do.

    Args:
        settings: Settings without templates.
        rows: Rows to train on, at least one.
        evaluation: Rows to evaluate on.

    Raises:
        DataError: They have not; the message says what is there and what could be.
    """
    own = tuple(WHAT_FOR) if settings.task is None else BY_TASK[settings.task]
    fitting = [names for names in WHAT_FOR if _lacking(rows[0], names) is None]
    if not fitting:
        raise DataError(_unreadable(settings, rows[0], own))
    read = [names for names in fitting if names in own] or fitting
    for given in (rows, evaluation):
        for number, row in enumerate(given, 1):
            lacking = [_lacking(row, names) for names in read]
            if None not in lacking:
                raise DataError(f"row {number} has no value in column {lacking[0]!r}; {_has(row)}")


def check_input_values(settings: DataSettings, rows: Sequence[Row]) -> None:
    """Check that what the prompt template names is text, or may be tagged.

    Raises:
        DataError: A value is none; the message names row and column.
    """
    templates = settings.templates
    said = columns(templates.target or "")

    def check(row: Row) -> None:
        tagged = all(isinstance(row[name], list | tuple) for name in (*templates.asked, *said))
        for name in () if tagged else templates.asked:
            in_column(row, name, text_of)

    of_each(rows, check, "row")


def check_attributes(settings: DataSettings, rows: Sequence[Row]) -> None:
    """Check that rows have values of the attributes that the settings name.

    Raises:
        DataError: No row has a value of one, a value cannot be read, or there are too many.
    """
    values_in(settings.attribute_names, rows)


def _lacking(row: Row, names: Columns) -> str | None:
    """The first of some columns that a row has no value in."""
    return next((name for name in names if is_missing(row.get(name))), None)


def _has(row: Row) -> str:
    return f"its columns are: {', '.join(map(str, row)) or 'none'}"


def _unreadable(settings: DataSettings, row: Row, could: Sequence[Columns]) -> str:
    whose = "any task reads" if settings.task is None else f"task {settings.task!r} reads"
    expected = "; ".join(f"{', '.join(names)} ({WHAT_FOR[names]})" for names in could)
    own = [f"'{{{name}}}'" for name in row]
    how = "--prompt and --target" if len(own) < 2 else f"--prompt {own[0]} --target {own[1]}"
    return (
        f"row 1 has no columns that {whose} by itself; {_has(row)}. Expected {expected}. Rename "
        f"them, or name them with templates, as in {how}"
    )
