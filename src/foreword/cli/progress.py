"""How far an evaluation is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bars
from rich.progress import TimeRemainingColumn as TimeLeft

from foreword.cli.console import err, note
from foreword.progress import Progress

EVERY = 10.0
"""Seconds between two lines, where there is no terminal."""


@contextmanager
def parts() -> Iterator[Progress]:
    """Show each part of a long piece of work, while the block runs: rows done, and seconds left."""
    if not err.is_terminal:
        yield _Lines()
        return
    form = TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}")
    with Bars(SpinnerColumn(), form, BarColumn(bar_width=24), TimeLeft(), console=err) as bars:

        def show(what: str, done: int, total: int) -> None:
            if not done:
                bars.add_task(what, total=total)
            bars.update(bars.task_ids[-1], completed=done)

        yield show


class _Lines:
    """A line for each part, and now and then one in between."""

    def __init__(self) -> None:
        self.began = self.told = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take note of how far a part is, and say it if it is time to."""
        now = time.monotonic()
        if not done:
            self.began = self.told = now
        elif done == total:
            note(f"{what}: {total} in {now - self.began:.0f} s")
        elif now - self.told >= EVERY:
            self.told = now
            left = (now - self.began) / done * (total - done)
            note(f"{what}: {done}/{total}, {left:.0f} s left")
