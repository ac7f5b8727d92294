"""The application: routes, limits, and what runs as long as it does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from foreword.backbone import Backbone
from foreword.engine import Engine
from foreword.engine.residency import Residency
from foreword.serve import failures
from foreword.serve.answers import Answers
from foreword.serve.catalogue import Catalogue
from foreword.serve.completions import Asked, Completions
from foreword.serve.crews import Crews
from foreword.serve.failures import WITH_BODY, Failure, told
from foreword.serve.guard import Budget, Guard, Receive, Scope, Send
from foreword.serve.intake import Intake
from foreword.serve.journal import GONE, Journal, line_of
from foreword.serve.metrics import Metrics
from foreword.serve.models import add_model_routes
from foreword.serve.prefixes import add_prefix_routes
from foreword.serve.schemas import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
)
from foreword.serve.spelling import Spelling
from foreword.version import __version__

log = logging.getLogger("foreword.serve")

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


@dataclass(frozen=True)
class ServeOptions:
    """What the server allows.

    Attributes:
        api_key: The key that requests must bring, or None for none.
        queue: Choices that may be open at once.
        most_tokens: Tokens that one choice may come to; None: what the context leaves.
        seconds: Time that one request may take, and its body to come.
        body_bytes: Largest body of a request.
        upload_bytes: Largest file that is uploaded, and all that are under way at once together.
        origins: Pages of other hosts that a browser may call from, such as ``https://chat.example``.
    """

    api_key: str | None = None
    queue: int = 256
    most_tokens: int | None = None
    seconds: float = 600.0
    body_bytes: int = 4 * 2**20
    upload_bytes: int = 2**30
    origins: tuple[str, ...] = ()


def create_app(
    backbone: Backbone, engine: Engine, residency: Residency, options: ServeOptions | None = None
) -> FastAPI:
    """OpenAI's API over an engine.

    Args:
        backbone: The backbone that the engine runs.
        engine: The engine; the application ends it when it is shut down.
        residency: Prefixes by name.
        options: What the server allows.
    """
    options = options or ServeOptions()
    crews = Crews()
    metrics = Metrics(engine, residency)
    service = Completions(
        backbone,
        engine,
        residency,
        metrics,
        crews,
        queue=options.queue,
        most_tokens=options.most_tokens,
        seconds=options.seconds,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(residency.store.clear_leftovers)
        yield
        await run_in_threadpool(engine.close)

    app = _App(
        title="Foreword",
        version=__version__,
        summary="OpenAI's API over one backbone and many prefixes",
        lifespan=lifespan,
    )
    failures.install(app)
    app.add_middleware(
        Guard,
        api_key=options.api_key,
        body_bytes=options.body_bytes,
        uploads=Budget(options.upload_bytes),
        seconds=options.seconds,
    )
    app.add_middleware(Journal)
    if options.origins:  # before a key is asked for: a browser's question beforehand carries none
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id"],
        )
    _completion_routes(app, service)
    add_model_routes(app, Catalogue(backbone, residency.store), crews)
    add_prefix_routes(app, Intake(backbone, residency), crews)

    _add_health_routes(app, engine)

    text = {"description": "Counters", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text, **told(401)})
    async def metrics_text() -> Response:
        """Counters for Prometheus."""
        return Response(
            await run_in_threadpool(metrics.text), media_type="text/plain; version=0.0.4"
        )

    return app


def _add_health_routes(app: FastAPI, engine: Engine) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses=told(503))
    async def health() -> dict[str, str]:
        """Whether the process lives, and its engine."""
        if engine.failure:
            raise Failure(503, engine.failure)
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", responses={503: {"description": failures.MEANING[503]}})
    async def ready() -> JSONResponse:
        """Whether requests are taken."""
        takes = engine.accepts
        return JSONResponse({"ready": takes}, 200 if takes else 503)


class _App(FastAPI):
    """FastAPI, described without the status 422, instead of which `failures` answers 400."""

    def openapi(self) -> dict[str, Any]:
        """The description."""
        described = super().openapi()
        for path in described["paths"].values():
            for route in path.values():
                route["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            described["components"]["schemas"].pop(name, None)
        return described


def _completion_routes(app: FastAPI, service: Completions) -> None:
    spelling = Spelling(service.backbone.tokenizer)

    async def answered(request: Request, body: CompletionRequest | ChatRequest) -> Response:
        asked = await service.asked(body, line_of(request.scope))
        answers = Answers(asked, spelling)
        if body.stream:
            chunks = _streamed(service, asked, answers)
            return _Stream(chunks, service.place(asked), service.seconds + GRACE)
        with service.place(asked):
            found = await _unless_gone(request, service.whole(asked))
        return JSONResponse(await service.crews.text.do(partial(answers.whole, found)))

    @app.post("/v1/completions", responses=_answered(CompletionAnswer))
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on from a prompt."""
        return await answered(request, body)

    @app.post("/v1/chat/completions", responses=_answered(ChatAnswer))
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await answered(request, body)


class _Stream(StreamingResponse):
    """A stream that gives its place back when it ends, however it ends, even before it began.

    Args:
        chunks: What is sent.
        place: Held meanwhile.
        seconds: Time until a client that does not read is given up.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes], place: AbstractContextManager[None], seconds: float
    ) -> None:
        super().__init__(chunks, media_type="text/event-stream")
        self.chunks = chunks
        self.place = place
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.place:
            try:
                async with asyncio.timeout(self.seconds):
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
