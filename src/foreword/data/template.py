"""`Task`: how a row becomes a prompt and a target. Templates name columns in braces."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from foreword.arguments import check_fields, did_you_mean
from foreword.data.chat import check_answered
from foreword.data.each import of_each
from foreword.data.strict_json import refuse_repeats
from foreword.data.values import in_column, is_missing, text_of
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
        second: Where rows are pairs of texts, the second of them, such as ``"{text_pair}"``.

    Raises:
        DataError: Only one of both is given, or a template is ill-formed.

    Examples:
        >>> Task("{mr} ->", " {ref}").pair({"mr": "name[Zizzi]", "ref": "Zizzi."})
        ('name[Zizzi] ->', ' Zizzi.')
    """

    prompt: str | None = None
    target: str | None = None
    second: str | None = None

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
        if self.second is not None and self.prompt is None:
            raise DataError(
                f"the pair template {self.second!r} needs a prompt template, of the first text, and a "
                "target template beside it"
            )
        if self.second is not None and not columns(self.second):
            raise DataError(
                f"the pair template {self.second!r} names no column; write one in braces: "
                '"{text_pair}"'
            )

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
        """Check that every row has text in the columns that are named, or in a chat task an answer.

        Raises:
            DataError: One has not; the message names row, column and what is there.
        """
        rows = list(rows)
        self.check_columns(rows)
        of_each(rows, self.check_values, "row")

    def check_values(self, row: Mapping[str, Any]) -> None:
        """Check that a row, which has the columns, has text in those that are named.

        Raises:
            DataError: It has not; the message names the column.
        """
        if self.chat:
            check_answered(row[MESSAGES])
            return
        for name in self.needed:
            in_column(row, name, text_of)

    @property
    def needed(self) -> list[str]:
        """The columns that rows must have."""
        if self.chat:
            return [MESSAGES]
        return [*self.asked, *columns(self.target or "")]

    @property
    def asked(self) -> list[str]:
        """The columns that an input's texts are made of."""
        return columns(f"{self.prompt or ''}{self.second or ''}")

    def check_columns(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Check that every row has a value, of whatever kind, in the columns that are named.

        Raises:
            DataError: One has not; the message names row, column and what is there.
        """
        needed = self.needed
        for number, row in enumerate(rows, 1):
            missing = [name for name in needed if is_missing(row.get(name))]
            if missing:
                found = ", ".join(map(str, row)) or "none"
                near = "" if missing[0] in row else did_you_mean(missing[0], map(str, row))
                how = "" if not self.chat else " (or give --prompt and --target templates)"
                raise DataError(
                    f"row {number} has no {'value in ' if missing[0] in row else ''}column "
                    f"{missing[0]!r}; its columns are: {found}{near}{how}"
                )

    def as_json(self) -> dict[str, str | None]:
        """The templates as JSON values; of a pair only where there is one."""
        plain = {"prompt": self.prompt, "target": self.target}
        return plain if self.second is None else {**plain, "second": self.second}


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
    """The template with each name replaced by the row's value, as `text_of` writes it.

    Raises:
        DataError: The row lacks a column, or its value there is not written as text.
    """
    return "".join(
        literal + ("" if name is None else _value(template, name, row))
        for literal, name, _, _ in string.Formatter().parse(template)
    )


def _value(template: str, name: str, row: Mapping[str, Any]) -> str:
    if name not in row:
        found = ", ".join(map(str, row)) or "none"
        near = did_you_mean(name, map(str, row))
        raise DataError(
            f"template {template!r} names column {name!r}; the columns are: {found}{near}"
        )
    return in_column(row, name, text_of)


def _names(pairs: list[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in pairs]


def as_row(given: Input, task: Task) -> Input:
    """An input as a row of the task.

    Text becomes the one column that the prompt template names; with several columns, or none, it must
    be a JSON object. In a chat task text is the user's message.

    Raises:
        DataError: The text cannot be told apart into the template's columns, or has no place in it; or
            it begins as an object with one of them, and is not valid JSON.
    """
    if not isinstance(given, str) or task.prompt is None:
        return given
    names = task.asked
    row, fault = _object_in(given, names)
    if row is not None:
        return row
    if fault and len(set(names)) == 1:
        raise DataError(
            f"{fault}the prompt template {task.prompt!r} names the column {names[0]!r}; give its text "
            f'alone, or a whole JSON object, such as {{"{names[0]}": "..."}}'
        )
    if len(set(names)) == 1:
        return {names[0]: given}
    if not names and not given:
        return {}
    if not names:
        raise DataError(
            f"the prompt template {task.prompt!r} names no column, so the text {given[:60]!r} has no "
            "place in it; give an empty text, or a prefix that was trained with a column in its prompt"
        )
    which = "" if task.second is None else f" with the pair template {task.second!r}"
    raise DataError(
        f"{fault}the prompt template {task.prompt!r}{which} names the columns {', '.join(names)}; give "
        f'them as a JSON object, such as {{"{names[0]}": "...", ...}}'
    )


def _object_in(text: str, names: list[str]) -> tuple[dict[str, Any] | None, str]:
    """The JSON object with these columns that a text is, or else why it is not what it seems to be."""
    if not text.lstrip().startswith("{"):
        return None, ""
    try:
        row = json.loads(text)
    except ValueError as error:
        return None, _fault(text, names, str(error))
    except RecursionError:
        return None, _fault(text, names, "it is nested too deeply")
    if not set(names) <= set(row):
        return None, ""
    refuse_repeats(json.loads(text, object_pairs_hook=_names), "the JSON object")
    return row, ""


def _fault(text: str, names: list[str], said: str) -> str:
    """What is wrong with a text that begins as an object and names a column in quotes; else nothing."""
    if not any(f"{mark}{name}{mark}" in text for name in names for mark in "\"'"):
        return ""
    return f"the text {text[:60]!r} is not valid JSON ({said}): "
