"""The routes of completions and chats, whole and as streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from foreword.serve.answers import Answers
from foreword.serve.completions import Asked, Completions
from foreword.serve.failures import WITH_BODY, Failure, told
from foreword.serve.guard import Receive, Scope, Send
from foreword.serve.journal import GONE, line_of
from foreword.serve.schemas import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
)
from foreword.serve.spelling import Spelling

log = logging.getLogger("foreword.serve")

NOTICE = "foreword-notice"
"""Header of what a client should know, such as that an attribute's value was not trained."""

ROUTED = "foreword-routed"
"""Header of the prefixes that a router chose, one for each prompt, in order."""

MOST_TOLD = 2048
"""Characters that such a header has at most: clients and proxies refuse much longer ones."""

GRACE = 10.0
"""Seconds in which a client that reads late can still read how its stream ended."""


def _answered(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """How a route of completions is described."""
    answer = {
        "model": model,
        "description": "OpenAI's object; with `stream` a stream of server-sent events",
        "content": {"text/event-stream": {}},
    }
    return {200: answer, **told(*WITH_BODY, 404, 429, 500, 503, 504)}


def add_completion_routes(app: FastAPI, service: Completions) -> None:
    """Add them to an application."""
    spelling = Spelling(service.backbone.tokenizer)

    async def answered(request: Request, body: CompletionRequest | ChatRequest) -> Response:
        asked = await _unless_gone(request, service.asked(body, line_of(request.scope)))
        answers = Answers(asked, spelling)
        if body.stream:
            chunks = _streamed(service, asked, answers)
            return _Stream(chunks, service.place(asked), asked.until + GRACE, _headers(asked))
        with service.place(asked):
            found = await _unless_gone(request, service.whole(asked))
        whole = await service.crews.text.do(partial(answers.whole, found))
        return JSONResponse(whole, headers=_headers(asked))

    @app.post("/v1/completions", responses=_answered(CompletionAnswer))
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on from a prompt."""
        return await answered(request, body)

    @app.post("/v1/chat/completions", responses=_answered(ChatAnswer))
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await answered(request, body)


def _headers(asked: Asked) -> dict[str, str]:
    """What the client should know, besides the answer."""
    found = {NOTICE: "; ".join(asked.notices), ROUTED: ", ".join(asked.routed)}
    return {name: _told(text) for name, text in found.items() if text}


def _told(text: str) -> str:
    """A text as a header can have it; of one that is too long its beginning."""
    plain = text.encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= MOST_TOLD else f"{plain[: MOST_TOLD - 3]}..."


class _Stream(StreamingResponse):
    """A stream that gives its place back when it ends, however it ends, even before it began.

    Args:
        chunks: What is sent.
        place: Held meanwhile.
        until: When a client that does not read is given up, by the event loop's clock.
        headers: More headers.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        place: AbstractContextManager[None],
        until: float,
        headers: dict[str, str],
    ) -> None:
        super().__init__(chunks, media_type="text/event-stream", headers=headers)
        self.chunks = chunks
        self.place = place
        self.until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.place:
            try:
                async with asyncio.timeout_at(self.until):
                    await super().__call__(scope, receive, send)
            except TimeoutError:
                log.warning("a client was given up that does not read its stream")
            finally:
                await self.chunks.aclose()


async def _streamed(service: Completions, asked: Asked, answers: Answers) -> AsyncGenerator[bytes]:
    """A stream that cancels what has not ended when it is left."""
    events = service.events(asked)
    try:
        async for chunk in answers.stream(events):
            yield chunk
    finally:
        await events.aclose()


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """What the work gives; it is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Failure(GONE, "the client went away")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return
