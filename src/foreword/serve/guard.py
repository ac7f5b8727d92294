"""`Guard`: the key of a request, and the size of its body and the time it takes to come."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from foreword.serve.failures import Failure

OPEN_TO_ALL = ("/health", "/ready")
"""Paths that need no key."""

UPLOADS = "/v1/prefixes/"
"""Where files are sent to."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Guard:
    """Middleware that refuses a request before the application reads it.

    Attributes:
        app: The application behind it.
        api_key: The key that requests must bring, or None for none.
        body_bytes: Largest body of a request.
        upload_bytes: Largest body that uploads a file.
        seconds: Time that a body may take to come.
    """

    app: Any
    api_key: str | None
    body_bytes: int
    upload_bytes: int
    seconds: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        most = self.upload_bytes if scope["path"].startswith(UPLOADS) else self.body_bytes
        failure = self._key(scope["path"], headers) or _length(headers, most)
        if failure is not None:
            await failure.response(scope, receive, send)
            return
        await self.app(scope, self._counted(receive, most), send)

    def _counted(self, receive: Receive, most: int) -> Receive:
        """The body's parts as they come, while they are not too many and not too slow.

        An HTTPException goes through where a body is parsed; FastAPI makes any other a status 400.
        """
        until = asyncio.get_running_loop().time() + self.seconds
        seen, is_whole = 0, False

        async def counted() -> Message:
            nonlocal seen, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else until):
                    message = await receive()
            except TimeoutError:
                late = f"the body took more than {self.seconds:g} s to come"
                raise HTTPException(408, late, {"Connection": "close"}) from None
            is_whole = not message.get("more_body", False)
            seen += len(message.get("body", b""))
            if seen > most:
                raise HTTPException(413, f"the body is larger than {most} bytes")
            return message

        return counted

    def _key(self, path: str, headers: dict[bytes, bytes]) -> Failure | None:
        if self.api_key is None or path in OPEN_TO_ALL:
            return None
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if hmac.compare_digest(given, self.api_key.encode()):
            return None
        return Failure(
            401,
            "a key is needed: send 'Authorization: Bearer KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )


def _length(headers: dict[bytes, bytes], most: int) -> Failure | None:
    """Refuse a body that says that it is too large; one of more digits than Python reads is, too."""
    told = headers.get(b"content-length", b"0").lstrip(b"0")
    if told.isdigit() and (len(told) > len(str(most)) or int(told) > most):
        shown = told.decode() if len(told) < 20 else f"a number of {len(told)} digits"
        return Failure(413, f"the body is larger than {most} bytes; it has {shown}")
    return None
