"""What people see: data and figures to standard output, progress and notes to standard error.

Data is written as it is (`say`). rich formats tables, notes and progress alone, and takes nothing in
them for markup or for the name of an emoji.
"""

from __future__ import annotations

import logging
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.table import Table
from transformers import TrainerCallback

from foreword.errors import DataError
from foreword.train import ranks

FIRST = ranks.index() == 0
"""Whether this process speaks; of several that train together, one does."""

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
    who = "" if FIRST else f"process {ranks.index()}: "
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


class TrainingBar(TrainerCallback):  # type: ignore[misc]
    """A progress bar: loss, examples/s, tokens/s, time left."""

    def __init__(self) -> None:
        columns: list[ProgressColumn] = [
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left"),
            TimeLeft(),
        ]
        self.bar = Progress(*columns, console=err, transient=False)
        self.task = self.bar.add_task("training", total=None, speed="", start=False)
        self._plain_every = 1
        self._rows_before = 0
        self._tokens_before = 0

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN201
        """Start the bar where training starts, which may be in the middle."""
        model = kwargs["model"]
        self._rows_before, self._tokens_before = model.seen_rows, model.seen_tokens
        self._plain_every = max(1, state.max_steps // 20)
        self.bar.update(self.task, total=state.max_steps, completed=state.global_step)
        self.bar.start_task(self.task)
        if err.is_terminal:
            self.bar.start()

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN201
        """Move the bar: the Trainer logs the loss of every step, and of every evaluation."""
        if logs and "eval_loss" in logs:
            note(f"step {state.global_step}: evaluation NLL {float(logs['eval_loss']):.4f}")
        if not logs or "loss" not in logs:
            return
        model = kwargs["model"]
        elapsed = self.bar.tasks[0].elapsed or 1e-9
        rows = args.world_size * (model.seen_rows - self._rows_before) / elapsed
        tokens = args.world_size * (model.seen_tokens - self._tokens_before) / elapsed
        speed = f"loss {float(logs['loss']):.3f} {rows:.1f} examples/s {tokens:.0f} tokens/s"
        self.bar.update(self.task, completed=state.global_step, speed=speed)
        if not err.is_terminal and state.global_step % self._plain_every == 0:
            left = self.bar.tasks[0].time_remaining
            rest = "" if left is None else f", {left:.0f} s left"
            note(f"step {state.global_step}/{state.max_steps}: {speed}{rest}")

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()
