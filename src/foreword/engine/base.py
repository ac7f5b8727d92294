"""`OpenEngine`: what engines share: whether they take requests, and who is told when they are lost."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable

from foreword.engine.checks import CLOSED
from foreword.engine.protocol import TextFeatures
from foreword.engine.request import EngineClosed, Event, Request
from foreword.engine.streaming import Sink, streamed


class OpenEngine(ABC):
    """An engine that takes requests until it is closed or lost.

    Attributes:
        failure: Why the engine was lost, or empty. One that is lost has told every request, and takes
            no more.
        features: What computes features of texts; None where the engine computes none.
    """

    def __init__(self) -> None:
        self.failure = ""
        self.features: TextFeatures | None = None
        self._accepts = True
        self._when_lost: list[Callable[[], None]] = []
        self._door = threading.Lock()  # what is accepted is handed on before the order to stop

    @property
    def accepts(self) -> bool:
        """Whether requests are taken."""
        return self._accepts

    def when_lost(self, call: Callable[[], None]) -> None:
        """Have something called, in the engine's thread, should the engine be lost."""
        self._when_lost.append(call)
        if self.failure:
            call()

    @abstractmethod
    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request; `sink` gets its events.

        Raises:
            ForewordError: The request cannot be taken.
        """

    @abstractmethod
    def cancel(self, name: str) -> None:
        """End a request; its last event says ``cancelled``. One that has ended is left alone."""

    def stream(self, *requests: Request) -> AsyncGenerator[Event]:
        """The events of requests as they come; leaving the loop early cancels what has not ended."""
        return streamed(self.submit, self.cancel, requests)

    def _check_open(self) -> None:
        """Check that requests are taken.

        Raises:
            EngineClosed: They are not.
        """
        if not self._accepts:
            raise EngineClosed(self.failure or CLOSED)

    def _hand_on(self, accept: Callable[[], object]) -> None:
        """Give a request to the engine's thread, if requests are taken.

        Raises:
            EngineClosed: They are not.
        """
        with self._door:
            self._check_open()
            accept()

    def _shut(self, failure: str = "") -> bool:
        """Take no more requests; whether any were taken until now."""
        with self._door:
            did, self._accepts = self._accepts, False
            self.failure = failure or self.failure
        return did

    def _tell_lost(self) -> None:
        """Tell those who asked for it that the engine is lost."""
        for call in self._when_lost:
            call()
