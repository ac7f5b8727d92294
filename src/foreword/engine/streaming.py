"""Events of requests that a thread of their own computes, as an event loop reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress

from foreword.engine.request import Event, Request

Sink = Callable[[Event], None]
"""Called with each event of a request, in the engine's thread; it must not block."""


async def streamed(
    submit: Callable[[Request, Sink], None],
    cancel: Callable[[str], None],
    requests: Iterable[Request],
) -> AsyncGenerator[Event]:
    """The events of requests as they come; leaving early cancels what has not ended.

    Args:
        submit: Lets an engine take a request, and tell its events.
        cancel: Ends a request by its name.
        requests: The requests.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()
    unfinished: set[str] = set()

    def sink(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            loop.call_soon_threadsafe(events.put_nowait, event)

    try:
        for request in requests:
            submit(request, sink)
            unfinished.add(request.name)
        while unfinished:
            event = await events.get()
            if event.finish is not None:
                unfinished.discard(event.request)
            yield event
    finally:
        for name in unfinished:
            cancel(name)
