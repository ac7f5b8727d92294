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


class Budget:
    """Bytes that all uploads that are under way may have together.

    Args:
        most: That many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.used = 0

    def take(self, count: int) -> None:
        """Take some of it.

        Raises:
            HTTPException: There is not as much left.
        """
        if self.used + count > self.most:
            raise HTTPException(
                429,
                f"uploads of {self.used} bytes are under way, and {self.most} allowed for all "
                f"together; {count} more are too many now. Try again later",
                {"Retry-After": "1"},
            )
        self.used += count


@dataclass(frozen=True)
class Guard:
    """Middleware that refuses a request before the application reads it.

    Attributes:
        app: The application behind it.
        api_key: The key that requests must bring, or None for none.
        body_bytes: Largest body of a request.
        uploads: What bodies that upload a file may have: each alone, and all at once.
        seconds: Time that a body may take to come.
    """

    app: Any
    api_key: str | None
    body_bytes: int
    uploads: Budget
    seconds: float

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        budget = self.uploads if scope["path"].startswith(UPLOADS) else None
        most = self.body_bytes if budget is None else budget.most
        failure = self._key(scope["path"], headers) or _length(headers, most)
        if failure is not None:
            await failure.response(scope, receive, send)
            return
        body = _Body(receive, most, self.seconds, budget)
        try:
            await self.app(scope, body, send)
        finally:
            body.give_back()

    def _key(self, path: str, headers: dict[bytes, bytes]) -> Failure | None:
        if self.api_key is None or path in OPEN_TO_ALL:
            return None
        given = headers.get(b"authorization", b"")
        scheme, _, rest = given.partition(b" ")
        if scheme.lower() == b"bearer":  # its case says nothing (RFC 9110, section 11.1)
            given = rest.strip()
        if hmac.compare_digest(given, self.api_key.encode()):
            return None
        return Failure(
            401,
            "a key is needed: send 'Authorization: Bearer KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )


class _Body:
    """A body's parts as they come, while they are not too many and not too slow.

    An HTTPException goes through where a body is parsed; FastAPI makes any other a status 400.

    Args:
        receive: Where they come from.
        most: Bytes that they may be.
        seconds: Time that they may take.
        budget: What they are taken from while the request is under way, if anything.
    """

    def __init__(
        self, receive: Receive, most: int, seconds: float, budget: Budget | None = None
    ) -> None:
        self.receive = receive
        self.most = most
        self.seconds = seconds
        self.budget = budget
        self.until = asyncio.get_running_loop().time() + seconds
        self.seen, self.is_whole = 0, False

    async def __call__(self) -> Message:
        """The next part."""
        try:
            async with asyncio.timeout_at(None if self.is_whole else self.until):
                message = await self.receive()
        except TimeoutError:
            late = f"the body took more than {self.seconds:g} s to come"
            raise HTTPException(408, late, {"Connection": "close"}) from None
        self.is_whole = not message.get("more_body", False)
        self._count(len(message.get("body", b"")))
        return message

    def _count(self, size: int) -> None:
        if self.seen + size > self.most:
            raise HTTPException(413, f"the body is larger than {self.most} bytes")
        if self.budget is not None:
            self.budget.take(size)
        self.seen += size

    def give_back(self) -> None:
        """Let others have what the body took."""
        if self.budget is not None:
            self.budget.used -= self.seen
            self.seen = 0


def _length(headers: dict[bytes, bytes], most: int) -> Failure | None:
    """Refuse a body that says that it is too large; one of more digits than Python reads is, too."""
    told = headers.get(b"content-length", b"0").lstrip(b"0")
    if told.isdigit() and (len(told) > len(str(most)) or int(told) > most):
        shown = told.decode() if len(told) < 20 else f"a number of {len(told)} digits"
        return Failure(413, f"the body is larger than {most} bytes; it has {shown}")
    return None
