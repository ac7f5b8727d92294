"""An engine that follows a script: all that the server needs of one, in twenty lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from foreword.engine import Event, Request, Stats
from foreword.errors import TooLong
from foreword.prefix import Prefix


class Scripted:
    """Says the length of a request's prefix, once for each token that may be said."""

    accepts, failure, features = True, "", None
    stats = Stats(waiting=0, running=0, steps=0, cache_bytes=0)

    def when_lost(self, call: Callable[[], None]) -> None: ...

    def check(self, request: Request) -> None: ...

    def cancel(self, name: str) -> None: ...

    def room(self, size: int, prefix: Prefix | None) -> int:
        if size > 40:
            raise TooLong(f"a prompt of {size} tokens is too long")
        return 64

    def left(self, size: int, prefix: Prefix | None) -> int:
        return 64

    async def stream(self, *requests: Request) -> AsyncGenerator[Event]:
        for request in requests:
            length = 0 if request.prefix is None else request.prefix.length
            for _ in range(request.sampling.max_tokens):
                await asyncio.sleep(0)
                yield Event(request.name, (65,), f" {length}")
            yield Event(request.name, finish="length")

    def close(self) -> None:
        self.accepts = False
