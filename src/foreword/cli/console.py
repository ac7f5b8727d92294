"""What people see: data and figures to standard output, progress and notes to standard error.

Data is written as it is (`say`). rich formats tables, notes and progress alone, and takes nothing in
them for markup or for the name of an emoji.
"""

from __future__ import annotations

import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table

from foreword.errors import DataError
from foreword.train import launched

FIRST = launched.index() == 0
"""Whether this process speaks; of several that train together, one does."""

WIDEST = 2**16
"""Columns of a table in a file or a pipe, at most."""

out = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """A text and a line break on standard output, character by character as they are.

    Raises:
        DataError: Its encoding has no such character.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as head(1) has
        out.on_broken_pipe()
    except UnicodeEncodeError as error:
        raise DataError(
            f"standard output is {error.encoding}, which has no {text[error.start]!r}; set "
            "PYTHONIOENCODING=utf-8"
        ) from error


def visible(text: str) -> str:
    """A text of a file from anywhere, its control characters spelled out: none reaches the terminal."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" else c for c in text)


def note(text: str) -> None:
    """A line for people, on standard error."""
    if FIRST:
        err.print(text, style="dim")


def complain(text: str) -> None:
    """An error, on standard error; it says which of several processes has it, unless it is the first."""
    who = "" if FIRST else f"process {launched.index()}: "
    err.print(f"{who}{text}", style="red")


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show that something is going on, on a terminal; a line elsewhere."""
    if not err.is_terminal:
        note(text)
        yield
        return
    with err.status(text):
        yield


@contextmanager
def printed_aside() -> Iterator[None]:
    """In a block, what libraries and their processes print on standard output goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def heard(name: str) -> Iterator[None]:
    """In a block, what a logger says as INFO is a line for people."""
    logger, handler = logging.getLogger(name), logging.Handler()
    handler.emit = lambda record: note(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    return made


def show(made: Table) -> None:
    """A table on standard output: as wide as its cells, unless a terminal has less room."""
    if not out.is_terminal:
        made.width = _width(made)
    out.print(made)


def fits(made: Table) -> bool:
    """Whether there is room on standard output for a table with all of its cells whole."""
    return not out.is_terminal or _width(made) <= out.width


def _width(made: Table) -> int:
    """Columns that a table takes with all of its cells whole."""
    return out.measure(made, options=out.options.update(max_width=WIDEST)).maximum


def quiet_libraries() -> None:
    """Leave out what transformers and the Hub's client print on the way, and their progress bars."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
