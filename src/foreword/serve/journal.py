"""`Journal`: an id for each request, and one line in the log once it has ended, however it ended."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import MutableHeaders

from foreword.serve.guard import Message, Receive, Scope, Send

log = logging.getLogger("foreword.serve")

LONGEST = 200
"""Characters of a path that are logged."""

GONE = 499
"""The status of a request whose client went away before it was answered, as nginx has it."""

Line = MutableMapping[str, Any]


def line_of(scope: Scope) -> Line:
    """What the log line of a request will tell besides; its ``request`` is the request's id."""
    line: Line = scope["state"]["line"]
    return line


@dataclass(frozen=True)
class Journal:
    """Middleware around all others, so that refusals are logged as well.

    Lines hold no texts of prompts or answers. ``status`` is what was sent. Of a stream that was sent
    with 200, ``ended`` tells how it went on, as it does of any completion.

    Attributes:
        app: The application behind it.
    """

    app: Any

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        identity = uuid.uuid4().hex
        line: Line = {"request": identity, "status": GONE}
        scope.setdefault("state", {})["line"] = line

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                line["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = line["request"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            line["status"] = 500  # what is sent for it, by what stands around all middleware
            raise
        finally:
            path = scope["path"][:LONGEST]
            seconds = round(time.perf_counter() - began, 3)
            told = {**line, "method": scope["method"], "path": path, "seconds": seconds}
            log.info(_message(line), extra=told)


def _message(line: Line) -> str:
    """What happened, in a word."""
    if line["status"] == GONE or line.get("ended") == "cancelled":
        return "left"
    if line["status"] >= 400:
        return "refused"
    return "answered" if "model" in line else "served"
