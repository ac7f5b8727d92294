"""What other threads ask of the engine's thread."""

from __future__ import annotations

import queue
from collections.abc import Callable

from foreword.engine.threads import give_up_pool

PATIENCE = 5.0
"""Seconds without anything to do after which memory is given back."""


class Inbox:
    """Calls for the engine's thread, in the order in which they came.

    Args:
        rest: Gives back what only work needs; called when nothing comes for a while.
    """

    def __init__(self, rest: Callable[[], None]) -> None:
        self._rest = rest
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def put(self, call: Callable[[], None]) -> None:
        """Have something done by the engine's thread."""
        self._calls.put(call)

    def do_next(self, *, wait: bool) -> bool:
        """Do what was asked for next, waiting for it if there is nothing else to do; whether it was."""
        if wait and self._calls.empty():
            give_up_pool()
        try:
            call = self._calls.get(block=wait, timeout=PATIENCE)
        except queue.Empty:
            if not wait:
                return False
            self._rest()
            call = self._calls.get()
        call()
        return True
