"""`Turn`: one thread at a time in an attention module that is changed for the time of a call."""

from __future__ import annotations

import threading

from torch import nn

from foreword.errors import BusyError

PATIENCE = 60.0
"""Seconds that a thread waits for its turn."""


class Turn:
    """A lock that its holder may take again, as after a call that Ctrl-C cut off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def __reduce__(self) -> tuple[type[Turn], tuple[()]]:
        """A copied model has turns of its own."""
        return Turn, ()

    @property
    def is_mine(self) -> bool:
        """Whether this thread holds it."""
        return self._holder == threading.get_ident()

    def take(self, module: nn.Module) -> None:
        """Wait until no other thread is in the module.

        Raises:
            BusyError: One has been in it for a minute.
        """
        if self.is_mine:
            return
        if not self._lock.acquire(timeout=PATIENCE):
            raise BusyError(
                f"{type(module).__name__} keeps its mask or positions in a buffer, so one thread at a "
                f"time can run it under a prefix; another has been in it for {PATIENCE:.0f} seconds. "
                "Run this model in one thread"
            )
        self._holder = threading.get_ident()

    def give(self) -> None:
        """Let the next thread in, if this one is."""
        if self.is_mine:
            self._holder = None
            self._lock.release()
