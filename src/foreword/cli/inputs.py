"""What several verbs answer: a text, a file of them, or lines on standard input."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foreword.data import read_rows
from foreword.data.template import Input
from foreword.errors import DataError


def lines_of(text: str) -> list[str]:
    """The lines of a text, which end where a file's lines do and nowhere else.

    Not splitlines(), which would also split at characters that a line may hold, as U+2028.
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def _standard_input() -> bytes:
    """What stands on standard input; its bytes, where they are to be had, are UTF-8 as files are."""
    stream = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read().encode() if stream is None else stream.read()


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
        place = self.file or "standard input"
        try:
            content = _standard_input() if self.file is None else Path(self.file).read_bytes()
            lines = lines_of(content.decode("utf-8-sig"))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot read inputs from {place}: {error}") from error
        found: list[Input] = [line for line in lines if line.strip()]
        if not found:
            raise DataError(
                "there are no inputs; give a text, --input FILE, or lines on standard input"
            )
        return found
