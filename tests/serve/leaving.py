"""A client that goes away before it has its answer, below HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI


async def leave(
    app: FastAPI, content: bytes, when: Callable[[], bool], *, key: str = "", pause: float = 0.0
) -> None:
    """Ask for a completion, and go away.

    Args:
        app: The application.
        content: The request's body.
        when: Whether it is time to go.
        key: The API key, if there is one.
        pause: Seconds that the client takes to read each part of the answer.
    """
    messages = [{"type": "http.request", "body": content}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        while not when():
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        await asyncio.sleep(pause)

    headers = [(b"content-type", b"application/json")]
    if key:
        headers.append((b"authorization", f"bearer {key}".encode()))
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, send)  # type: ignore[arg-type]
