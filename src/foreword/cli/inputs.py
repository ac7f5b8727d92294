"""What several verbs answer: a text, a file of them, or lines on standard input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from foreword.data import read_rows
from foreword.data.inputs import is_lines, lines_of, read_lines
from foreword.data.template import Input
from foreword.errors import DataError


def _standard_lines() -> list[str]:
    """The lines of standard input; its bytes, where they are to be had, are UTF-8 as files are."""
    stream = getattr(sys.stdin, "buffer", None)
    try:
        return lines_of(sys.stdin.read().encode() if stream is None else stream.read())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read inputs from standard input: {error}") from error


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
            return [text]
        if self.file is not None and not is_lines(self.file):
            return list(read_rows(self.file))
        found: list[Input] = [*(_standard_lines() if self.file is None else read_lines(self.file))]
        if not found:
            raise DataError(
                "there are no inputs; give a text, --input FILE, or lines on standard input"
            )
        return found
