"""What several verbs answer: a text, a file of them, or lines on standard input."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from cyclopts import Parameter

from foreword.cli.console import quiet_libraries
from foreword.data.each import of_each
from foreword.data.given import Rows
from foreword.data.inputs import is_lines, lines_of, read_lines
from foreword.data.sources import is_named, is_of_rows, read_rows
from foreword.data.template import Input, Task, as_row, fill
from foreword.description import PrefixMeta
from foreword.errors import DataError


def rows_from(source: str) -> Rows:
    """The rows of a source, which may be the name of a data set.

    Raises:
        DataError: There is no such source, or it cannot be read.
    """
    if is_named(source):
        quiet_libraries()
    return Rows(read_rows(source), source)


def templates_in(meta: PrefixMeta) -> Task | None:
    """The templates that a prefix was trained with, if it was trained with any."""
    prompt = meta.recipe.get("prompt")
    return None if prompt is None else Task(prompt, meta.recipe.get("target"))


def check_inputs(meta: PrefixMeta, inputs: list[Input]) -> None:
    """Check that inputs have what the templates of a prefix that writes text name.

    Raises:
        DataError: One has not; the message says which.
    """
    of_each(inputs, partial(check_input, meta))


def check_input(meta: PrefixMeta, one: Input) -> None:
    """Check the same of one input.

    Raises:
        DataError: It has not.
    """
    task = templates_in(meta)
    if task is None or task.prompt is None:
        return
    row = as_row(one, task)
    if not isinstance(row, str):
        fill(task.prompt, row)


def _standard_lines() -> list[str]:
    """The lines of standard input; its bytes, where they are to be had, are UTF-8 as files are."""
    stream = getattr(sys.stdin, "buffer", None)
    try:
        return lines_of(sys.stdin.read().encode() if stream is None else stream.read())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read inputs from standard input: {error}") from error


def _refuse_file(text: str) -> None:
    """Refuse a text that is the name of a file of inputs: other verbs take one in its place.

    Raises:
        DataError: There is such a file.
    """
    if (is_lines(text) or is_of_rows(text)) and os.path.isfile(text):
        raise DataError(
            f"{text} is a file, and a text was expected here; to answer what it holds: --input {text}"
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Where inputs are read, if none is given as text."""

    file: Annotated[str | None, Parameter(name="--input")] = None
    """File of inputs: one text per line (.txt), or rows as in training. Without it and without a text,
    lines are read from standard input."""

    def read(self, text: str | None) -> list[Input]:
        """The text, what the file holds, or the lines on standard input.

        Raises:
            DataError: There are none, or they cannot be read.
        """
        if text is not None and self.file is not None:
            raise DataError("give a text or --input FILE, not both")
        if text is not None:
            _refuse_file(text)
            return [text]
        if self.file is not None and not is_lines(self.file):
            return list(rows_from(self.file))
        found: list[Input] = [*(_standard_lines() if self.file is None else read_lines(self.file))]
        if not found:
            raise DataError(
                "there are no inputs; give a text, --input FILE, or lines on standard input"
            )
        return found
