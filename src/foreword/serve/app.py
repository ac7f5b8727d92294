"""The application: routes, limits, and what runs as long as it does."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.engine import Engine
from foreword.engine.residency import Residency
from foreword.errors import FormatError, StoreError
from foreword.generate import refuse_head
from foreword.serve import failures
from foreword.serve.answers import Answers
from foreword.serve.catalogue import Catalogue
from foreword.serve.completions import Asked, Completions
from foreword.serve.failures import Failure, told
from foreword.serve.guard import Guard, Receive, Scope, Send
from foreword.serve.metrics import Metrics
from foreword.serve.schemas import (
    ChatAnswer,
    ChatRequest,
    CompletionAnswer,
    CompletionRequest,
    LoadRequest,
    NameRequest,
)
from foreword.version import __version__

log = logging.getLogger("foreword.serve")

WITH_BODY = (400, 401, 408, 413)
"""Statuses that any request with a body may be refused with."""

GRACE = 10.0
"""Seconds in which a client that reads late can still read how its stream ended."""

STORING = (500, 507)
"""Statuses that a request that writes to the store may be refused with, besides."""


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
        upload_bytes: Largest file that is uploaded.
    """

    api_key: str | None = None
    queue: int = 256
    most_tokens: int | None = None
    seconds: float = 600.0
    body_bytes: int = 4 * 2**20
    upload_bytes: int = 2**30


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
    metrics = Metrics(engine, residency)
    service = Completions(
        backbone,
        engine,
        residency,
        metrics,
        queue=options.queue,
        most_tokens=options.most_tokens,
        seconds=options.seconds,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
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
        upload_bytes=options.upload_bytes,
        seconds=options.seconds,
    )
    _completion_routes(app, service)
    _model_routes(app, backbone, residency)
    _prefix_routes(app, backbone, residency)

    @app.get("/health", responses={503: {"description": "The engine is lost"}})
    async def health() -> JSONResponse:
        """Whether the process lives, and its engine."""
        if engine.failure:
            return JSONResponse({"status": engine.failure}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/ready", responses={503: {"description": failures.MEANING[503]}})
    async def ready() -> JSONResponse:
        """Whether requests are taken."""
        takes = engine.accepts
        return JSONResponse({"ready": takes}, 200 if takes else 503)

    text = {"description": "Counters", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text, **told(401)})
    async def metrics_text() -> Response:
        """Counters for Prometheus."""
        return Response(
            await run_in_threadpool(metrics.text), media_type="text/plain; version=0.0.4"
        )

    return app


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
    async def answered(request: Request, body: CompletionRequest | ChatRequest) -> Response:
        began = time.perf_counter()
        asked = await service.asked(body)
        answers = Answers(asked, service.backbone.tokenizer)
        if body.stream:
            chunks = _streamed(service, asked, answers)
            return _Stream(chunks, service.place(asked), service.seconds + GRACE)
        with service.place(asked):
            found = await _unless_gone(request, service.whole(asked))
        log.info(
            "answered",
            extra={
                "request": asked.identity,
                "model": body.model,
                "prompt_tokens": asked.prompt_tokens,
                "completion_tokens": sum(len(one.tokens) for one in found),
                "seconds": round(time.perf_counter() - began, 3),
            },
        )
        return JSONResponse(answers.whole(found))

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
        raise Failure(499, "the client went away")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def _model_routes(app: FastAPI, backbone: Backbone, residency: Residency) -> None:
    began = int(time.time())
    catalogue = Catalogue(backbone, residency.store)

    def described(name: str) -> dict[str, Any]:
        is_base = name == backbone.name
        return {
            "id": name,
            "object": "model",
            "created": began,
            "owned_by": "foreword",
            "root": backbone.name,
            "parent": None if is_base else backbone.name,
            "max_model_len": backbone.context,
        }

    @app.get("/v1/models", responses=told(400, 401))
    async def models() -> dict[str, Any]:
        """The backbone, and the prefixes that fit it."""
        names = await run_in_threadpool(lambda: list(catalogue))
        return {"object": "list", "data": [described(name) for name in (backbone.name, *names)]}

    @app.get("/v1/models/{name:path}", responses=told(400, 401, 404))
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        if name != backbone.name:
            if name not in residency:
                message = f"no model is called {name!r}; GET /v1/models lists them"
                raise Failure(404, message, "model")
            await run_in_threadpool(catalogue.check, name)
        return described(name)


def _prefix_routes(app: FastAPI, backbone: Backbone, residency: Residency) -> None:

    async def kept(name: str, content: bytes, *, overwrite: bool) -> dict[str, Any]:
        """Check a file's content, and store it."""

        def keep() -> dict[str, Any]:
            prefix = prefix_file.decode(content)
            refuse_head(prefix)
            backbone.check(prefix)
            if name == backbone.name:
                raise StoreError(f"{name!r} is the backbone's name; choose another")
            residency.store.save(name, prefix, overwrite=overwrite)
            return inspected(name)

        return await run_in_threadpool(keep)

    def inspected(name: str) -> dict[str, Any]:
        prefix = residency.get(name)
        return {
            "name": name,
            "digest": prefix.digest,
            "length": prefix.length,
            "parameters": prefix.parameters,
            "bytes": prefix.nbytes,
            "pinned": name in residency.pinned,
            "resident": name in residency.resident,
            "backbone": prefix.meta.backbone,
            "recipe": dict(prefix.meta.recipe),
        }

    @app.get("/v1/prefixes", responses=told(400, 401))
    async def listed() -> dict[str, Any]:
        """Names of all prefixes, and which are in memory."""
        names = await run_in_threadpool(lambda: list(residency.store))
        resident, pinned = set(residency.resident), residency.pinned
        return {
            "object": "list",
            "data": [
                {"name": name, "resident": name in resident, "pinned": name in pinned}
                for name in names
            ],
        }

    @app.get("/v1/prefixes/{name}", responses=told(400, 401, 404))
    async def inspect(name: str) -> dict[str, Any]:
        """What a prefix is."""
        return await run_in_threadpool(inspected, name)

    @app.put("/v1/prefixes/{name}", responses=told(*WITH_BODY, 404, *STORING))
    async def upload(name: str, file: UploadFile, overwrite: bool = False) -> dict[str, Any]:
        """Store an uploaded file under a name."""
        return await kept(name, await file.read(), overwrite=overwrite)

    @app.delete("/v1/prefixes/{name}", responses=told(400, 401, 404, *STORING))
    async def delete(name: str) -> dict[str, Any]:
        """Delete a prefix; requests under way keep it."""
        await run_in_threadpool(residency.store.remove, name)
        residency.forget(name)
        return {"name": name, "deleted": True}

    @app.post("/v1/load_prefix", responses=told(*WITH_BODY, *STORING))
    async def load(body: LoadRequest) -> dict[str, Any]:
        """Store a file of the server's disk under a name."""

        def read() -> bytes:
            if not os.path.isfile(body.path):  # a pipe would be waited for
                raise FormatError(f"cannot read {body.path}: there is no such file")
            return prefix_file.encode(prefix_file.load(body.path))

        content = await run_in_threadpool(read)
        return await kept(body.name, content, overwrite=body.overwrite)

    @app.post("/v1/pin_prefix", responses=told(*WITH_BODY, 404))
    async def pin(body: NameRequest) -> dict[str, Any]:
        """Keep a prefix in memory."""
        await run_in_threadpool(residency.pin, body.name)
        return {"name": body.name, "pinned": True}

    @app.post("/v1/unpin_prefix", responses=told(*WITH_BODY, 404))
    async def unpin(body: NameRequest) -> dict[str, Any]:
        """Let a prefix go when others need the room."""
        residency.unpin(body.name)
        residency.store.stamp(body.name)  # what is not there cannot be unpinned
        return {"name": body.name, "pinned": False}
