"""What several verbs answer: a text, a file of them, or lines on standard input."""

from __future__ import annotations

import sys

from foreword.data import read_rows
from foreword.data.template import Input
from foreword.errors import DataError


def inputs_of(text: str | None, file: str | None) -> list[Input]:
    """Inputs from the command line, a file, or standard input.

    Raises:
        DataError: There are none, or they cannot be read.
    """
    if text is not None and file is not None:
        raise DataError("give a text or --input FILE, not both")
    if text is not None:
        return [text]
    if file is not None and not file.endswith(".txt"):
        return list(read_rows(file))
    try:
        if file is not None:
            with open(file, encoding="utf-8") as opened:
                lines = opened.read().splitlines()
        else:
            lines = sys.stdin.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read inputs from {file or 'standard input'}: {error}") from error
    found: list[Input] = [line for line in lines if line.strip()]
    if not found:
        raise DataError(
            "there are no inputs; give a text, --input FILE, or lines on standard input"
        )
    return found
