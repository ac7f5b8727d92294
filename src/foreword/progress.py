"""How far a long piece of work is, told to who asked for it."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[int, int], None]
"""Called with how much is done, from 0 on, and how much there is in all."""

Progress = Callable[[str, int, int], None]
"""The same, after what is being done."""


def unwatched(done: int, total: int) -> None:
    """Nobody asked."""


def unseen(what: str, done: int, total: int) -> None:
    """Nobody asked."""
