"""What several verbs answer: a text, a file of them, or lines on standard input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from foreword.data import read_rows
from foreword.data.template import Input
from foreword.errors import DataError


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
        if self.file is not None and not self.file.endswith(".txt"):
            return list(read_rows(self.file))
        try:
            if self.file is not None:
                with open(self.file, encoding="utf-8") as opened:
                    lines = opened.read().splitlines()
            else:
                lines = sys.stdin.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            place = self.file or "standard input"
            raise DataError(f"cannot read inputs from {place}: {error}") from error
        found: list[Input] = [line for line in lines if line.strip()]
        if not found:
            raise DataError(
                "there are no inputs; give a text, --input FILE, or lines on standard input"
            )
        return found
