"""`EngineClient`: what a server asks of an engine, whichever it is."""

from __future__ import annotations

import operator
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from foreword.backbone import Backbone
from foreword.described import Described
from foreword.engine.request import Event, Request

T = TypeVar("T")


@dataclass(frozen=True)
class Loads:
    """Prefixes that were read from disk and are in memory, so far.

    Attributes:
        resident: Prefixes in memory now.
        resident_bytes: Size of their tensors.
        hits: Times that one was in memory.
        misses: Times that one was read.
        failures: Times that one could not be had.
        written_bytes: Size of the keys and values that were written into a key-value cache.
        read_seconds: Time that reading took.
        write_seconds: Time that writing took.
    """

    resident: int = 0
    resident_bytes: int = 0
    hits: int = 0
    misses: int = 0
    failures: int = 0
    written_bytes: int = 0
    read_seconds: float = 0.0
    write_seconds: float = 0.0

    def __add__(self, other: Loads) -> Loads:
        """What two have done together, or one before and after."""
        return Loads(*map(operator.add, vars(self).values(), vars(other).values()))


IN_MEMORY: Mapping[str, tuple[str, str]] = {
    "resident": ("resident_prefixes", "Prefixes in memory"),
    "resident_bytes": ("resident_bytes", "Size of the prefixes in memory"),
    "hits": ("prefix_hits", "Times that a prefix was in memory"),
    "misses": ("prefix_misses", "Times that a prefix was read"),
}
"""By field of `Loads` the metric's name and what it says."""

OF_WORKERS: Mapping[str, tuple[str, str]] = {
    "failures": ("prefix_failures", "Times that a prefix could not be had"),
    "written_bytes": ("prefix_written_bytes", "Size of what was written into the key-value cache"),
    "read_seconds": ("prefix_read_seconds", "Time spent on reading prefixes"),
    "write_seconds": ("prefix_write_seconds", "Time spent on writing into the key-value cache"),
}
"""The same for what only engines tell whose workers read prefixes."""


@dataclass(frozen=True)
class Stats:
    """How an engine is doing.

    Attributes:
        waiting: Requests without a place.
        running: Requests with a place: the batch.
        steps: Steps so far.
        cache_bytes: Memory that keys and values of texts take.
        loads: What its workers did with prefixes, summed over all of them; None where the engine is
            given prefixes with their tensors.
    """

    waiting: int
    running: int
    steps: int
    cache_bytes: int
    loads: Loads | None = None


class TextFeatures(Protocol):
    """What an engine computes beside its requests. May be asked from several threads.

    Shapes: D hidden size.
    """

    @property
    def backbone(self) -> Backbone:
        """The backbone whose features they are; the engine runs it, and nothing else may."""

    @property
    def most(self) -> int:
        """Tokens of the longest text."""

    def of(self, ids: Sequence[int]) -> Future[Tensor]:
        """The mean of a text's last hidden states under no prefix, float32 (D,), on the CPU.

        The features that `foreword.features` gives with ``pooling="mean"``, up to rounding. A future
        that is cancelled before its turn costs nothing.

        Args:
            ids: The text's tokens.

        Raises:
            EngineClosed: The engine takes no more requests.
            TooLong: They are more than `most`.
            DataError: There are none, or one is not in the vocabulary.
        """

    def made(self, work: Callable[[], T], what: str) -> Future[T]:
        """What some work gives that runs the backbone, which nothing else may meanwhile.

        Requests that run wait for it: it should take no longer than a chunk of a prompt. An error of
        ours is raised as it is. A future that is cancelled before its turn costs nothing.

        Args:
            work: What to do, without gradients.
            what: What errors and the log call it.

        Raises:
            EngineClosed: The engine takes no more requests.
        """


class EngineClient(Protocol):
    """An engine as the server sees it. May be asked from several threads."""

    @property
    def features(self) -> TextFeatures | None:
        """What computes features of texts; None where the engine computes none."""

    @property
    def accepts(self) -> bool:
        """Whether requests are taken."""

    @property
    def failure(self) -> str:
        """Why the engine was lost, or empty."""

    @property
    def stats(self) -> Stats:
        """How it is doing."""

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have something called, in any thread, should the engine be lost."""

    def check(self, request: Request) -> None:
        """Check whether a request would be taken now.

        Raises:
            ForewordError: It would not, and why.
        """

    def room(self, size: int, prefix: Described | None) -> int:
        """Tokens that the context leaves after a prompt of `size` tokens behind a prefix.

        Raises:
            TooLong: None.
        """

    def left(self, size: int, prefix: Described | None) -> int:
        """Tokens that the engine's memory leaves after a prompt of `size` tokens behind a prefix."""

    def stream(self, *requests: Request) -> AsyncGenerator[Event]:
        """The events of requests as they come, until each has ended; leaving early cancels the rest.

        Raises:
            ForewordError: One cannot be taken, see `check`.
        """

    def cancel(self, name: str) -> None:
        """End a request; its last event says ``cancelled``. One that has ended is left alone."""

    def close(self) -> None:
        """Take no more requests, end those under way, and stop."""
