"""`Task`: how a row becomes a prompt and a target. Templates name columns in braces."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from foreword.arguments import check_fields, expect
from foreword.data.chat import check_answered
from foreword.errors import DataError

Input = str | Mapping[str, Any]
"""What to answer: text, or a row with the columns that the prompt template names."""

MESSAGES = "messages"
"""The column that holds a conversation, when no templates are given."""


@dataclass(frozen=True)
class Task:
    """Templates for prompt and target, or none of both: then rows hold ``messages``.

    Attributes:
        prompt: What the model is given, such as ``"{mr} ->"``. ``{{`` and ``}}`` stand for braces.
        target: What it shall say, such as ``" {ref}"``.

    Raises:
        DataError: Only one of both is given, or a template is ill-formed.

    Examples:
        >>> Task("{mr} ->", " {ref}").pair({"mr": "name[Zizzi]", "ref": "Zizzi."})
        ('name[Zizzi] ->', ' Zizzi.')
    """

    prompt: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, DataError)
        if (self.prompt is None) != (self.target is None):
            given, missing = ("prompt", "target") if self.target is None else ("target", "prompt")
            raise DataError(f"a {given} template needs a {missing} template beside it")
        if self.target is not None and not columns(self.target):
            raise DataError(
                f"the target template {self.target!r} names no column; write one in braces: "
                '" {ref}"'
            )
        if self.prompt is not None:
            columns(self.prompt)

    @property
    def chat(self) -> bool:
        """Whether rows hold conversations, written with the model's chat template."""
        return self.prompt is None

    def pair(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """Prompt and target text of a row."""
        assert self.prompt is not None
        assert self.target is not None
        return fill(self.prompt, row), fill(self.target, row)

    def check(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Check that every row has the columns that are named, and in a chat task an answer.

        Raises:
            DataError: One has not; the message names row, column and what is there.
        """
        needed = [MESSAGES] if self.chat else columns(f"{self.prompt}{self.target}")
        for number, row in enumerate(rows, 1):
            missing = [name for name in needed if row.get(name) is None]
            if missing:
                found = ", ".join(map(str, row)) or "none"
                how = "" if not self.chat else " (or give --prompt and --target templates)"
                raise DataError(
                    f"row {number} has no {'value in ' if missing[0] in row else ''}column "
                    f"{missing[0]!r}; its columns are: {found}{how}"
                )
            if self.chat:
                try:
                    check_answered(row[MESSAGES])
                except DataError as error:
                    raise DataError(f"row {number}: {error}") from error

    def as_json(self) -> dict[str, str | None]:
        """The templates as JSON values."""
        return {"prompt": self.prompt, "target": self.target}


def columns(template: str) -> list[str]:
    """Names in braces, in order.

    Raises:
        DataError: A brace is unpaired, or a name has an index, attribute, conversion or format.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}; write {{{{ for a brace") from error
    names = []
    for _, name, spec, conversion in parts:
        if name is None:
            continue
        if not name or spec or conversion or any(mark in name for mark in ".[]"):
            raise DataError(
                f"template {template!r}: braces must hold a column's name alone, found {name!r}"
            )
        names.append(name)
    return names


def fill(template: str, row: Mapping[str, Any]) -> str:
    """The template with each name replaced by the row's value.

    Raises:
        DataError: The row lacks a column.
    """
    try:
        return "".join(
            literal + ("" if name is None else str(row[name]))
            for literal, name, _, _ in string.Formatter().parse(template)
        )
    except KeyError as error:
        found = ", ".join(map(str, row)) or "none"
        raise DataError(
            f"template {template!r} names column {error.args[0]!r}; the columns are: {found}"
        ) from error


def inputs_of(given: object) -> list[Input]:
    """Inputs as a list, each seen to be text or a row.

    Raises:
        DataError: They are none; the message says which one is not.
    """
    expect("inputs", given, Iterable, "a list of texts or rows", DataError)
    assert isinstance(given, Iterable)
    inputs = list(given)
    for number, one in enumerate(inputs, 1):
        expect(f"input {number}", one, str | Mapping, "text, or a row with columns", DataError)
    return inputs


def as_row(given: Input, task: Task) -> Input:
    """An input as a row of the task.

    Text becomes the one column that the prompt template names; with several columns it must be a
    JSON object. In a chat task text is the user's message.

    Raises:
        DataError: The text cannot be told apart into the template's columns.
    """
    if not isinstance(given, str) or task.prompt is None:
        return given
    names = columns(task.prompt)
    if given.lstrip().startswith("{") and names:
        try:
            row = json.loads(given)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and set(names) <= set(row):
            return row
    if len(set(names)) == 1:
        return {names[0]: given}
    if not names:
        return {}
    raise DataError(
        f"the prompt template {task.prompt!r} names the columns {', '.join(names)}; give them as a "
        f'JSON object, such as {{"{names[0]}": "...", ...}}'
    )
