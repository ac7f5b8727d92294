"""`Crews`: threads for what would hold up the event loop, so many for each kind of work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")


class Crew:
    """Threads that do one kind of work; what comes beyond their number waits, and holds nobody else up.

    Args:
        size: Threads at once.
    """

    def __init__(self, size: int) -> None:
        self._limiter = CapacityLimiter(size)

    async def do(self, work: Callable[[], T]) -> T:
        """What the work gives, or raises."""
        return await to_thread.run_sync(work, limiter=self._limiter)


@dataclass(frozen=True)
class Crews:
    """The crews of one server.

    Attributes:
        disk: Asks the store for files; a folder on a slow disk stops none but those who ask it.
        text: From texts to tokens and back, which takes turns with the engine's own Python.
        files: Checks prefix files, whose tensors are in memory meanwhile: one at a time.
    """

    disk: Crew = field(default_factory=lambda: Crew(16))
    text: Crew = field(default_factory=lambda: Crew(2))
    files: Crew = field(default_factory=lambda: Crew(1))
