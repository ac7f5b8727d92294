"""The application: routes, limits, and what runs as long as it does."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.engine import Engine
from foreword.engine.residency import Residency
from foreword.errors import StoreError
from foreword.serve import failures
from foreword.serve.answers import Answers
from foreword.serve.completions import Asked, Completions
from foreword.serve.failures import Failure
from foreword.serve.metrics import Metrics
from foreword.serve.schemas import ChatRequest, CompletionRequest, LoadRequest, NameRequest
from foreword.version import __version__

log = logging.getLogger("foreword.serve")

OPEN_TO_ALL = ("/health", "/ready")
"""Paths that need no key."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class ServeOptions:
    """What the server allows.

    Attributes:
        api_key: The key that requests must bring, or None for none.
        queue: Choices that may be open at once.
        most_tokens: Tokens that one choice may come to; None: what the context leaves.
        seconds: Time that one request may take.
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

    app = FastAPI(
        title="Foreword",
        version=__version__,
        summary="OpenAI's API over one backbone and many prefixes",
        lifespan=lifespan,
    )
    failures.install(app)
    app.add_middleware(_Guard, options=options)
    _completion_routes(app, service)
    _model_routes(app, service)
    _prefix_routes(app, service)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Whether requests are taken."""
        takes = engine.accepts
        return JSONResponse({"ready": takes}, 200 if takes else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics_text() -> Response:
        """Counters for Prometheus."""
        return Response(
            await run_in_threadpool(metrics.text), media_type="text/plain; version=0.0.4"
        )

    return app


def _completion_routes(app: FastAPI, service: Completions) -> None:
    async def answered(request: Request, body: CompletionRequest | ChatRequest) -> Response:
        began = time.perf_counter()
        asked = await service.asked(body)
        answers = Answers(asked, service.backbone.tokenizer)
        if body.stream:
            place = service.place(asked)
            place.__enter__()
            return StreamingResponse(
                _streamed(service, asked, answers, place), media_type="text/event-stream"
            )
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

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Go on from a prompt."""
        return await answered(request, body)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await answered(request, body)


async def _streamed(
    service: Completions, asked: Asked, answers: Answers, place: Any
) -> AsyncIterator[bytes]:
    """A stream that gives its place back when it ends, however it ends."""
    events = service.events(asked)
    try:
        async for chunk in answers.stream(events):
            yield chunk
    finally:
        await events.aclose()  # type: ignore[attr-defined]
        place.__exit__(None, None, None)


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


def _model_routes(app: FastAPI, service: Completions) -> None:
    began = int(time.time())
    backbone = service.backbone

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

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The backbone and the prefixes."""
        names = await run_in_threadpool(lambda: list(service.residency.store))
        return {"object": "list", "data": [described(name) for name in (backbone.name, *names)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        if name != backbone.name and name not in service.residency:
            raise Failure(404, f"no model is called {name!r}; GET /v1/models lists them", "model")
        return described(name)


def _prefix_routes(app: FastAPI, service: Completions) -> None:
    residency = service.residency
    backbone = service.backbone

    async def kept(name: str, content: bytes, *, overwrite: bool) -> dict[str, Any]:
        """Check a file's content, and store it."""

        def keep() -> dict[str, Any]:
            prefix = prefix_file.decode(content)
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

    @app.get("/v1/prefixes")
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

    @app.get("/v1/prefixes/{name}")
    async def inspect(name: str) -> dict[str, Any]:
        """What a prefix is."""
        return await run_in_threadpool(inspected, name)

    @app.put("/v1/prefixes/{name}")
    async def upload(name: str, file: UploadFile, overwrite: bool = False) -> dict[str, Any]:
        """Store an uploaded file under a name."""
        return await kept(name, await file.read(), overwrite=overwrite)

    @app.delete("/v1/prefixes/{name}")
    async def delete(name: str) -> dict[str, Any]:
        """Delete a prefix; requests under way keep it."""
        await run_in_threadpool(residency.store.remove, name)
        residency.forget(name)
        return {"name": name, "deleted": True}

    @app.post("/v1/load_prefix")
    async def load(body: LoadRequest) -> dict[str, Any]:
        """Store a file of the server's disk under a name."""

        def read() -> bytes:
            return prefix_file.encode(prefix_file.load(body.path))

        content = await run_in_threadpool(read)
        return await kept(body.name, content, overwrite=body.overwrite)

    @app.post("/v1/pin_prefix")
    async def pin(body: NameRequest) -> dict[str, Any]:
        """Keep a prefix in memory."""
        await run_in_threadpool(residency.pin, body.name)
        return {"name": body.name, "pinned": True}

    @app.post("/v1/unpin_prefix")
    async def unpin(body: NameRequest) -> dict[str, Any]:
        """Let a prefix go when others need the room."""
        residency.unpin(body.name)
        return {"name": body.name, "pinned": False}


class _Guard:
    """The key and the size of a body, before anything is read."""

    def __init__(self, app: Any, options: ServeOptions) -> None:
        self.app = app
        self.options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        failure = self._key(scope["path"], headers) or self._length(scope["path"], headers)
        if failure is not None:
            await failure.response(scope, receive, send)
            return
        most, seen = self._most(scope["path"]), 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise Failure(413, f"the body is larger than {most} bytes")
            return message

        await self.app(scope, counted, send)

    def _most(self, path: str) -> int:
        uploads = path.startswith("/v1/prefixes/")
        return self.options.upload_bytes if uploads else self.options.body_bytes

    def _key(self, path: str, headers: dict[bytes, bytes]) -> Failure | None:
        key = self.options.api_key
        if key is None or path in OPEN_TO_ALL:
            return None
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if hmac.compare_digest(given, key.encode()):
            return None
        return Failure(
            401,
            "a key is needed: send 'Authorization: Bearer KEY'",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _length(self, path: str, headers: dict[bytes, bytes]) -> Failure | None:
        told = headers.get(b"content-length", b"0")
        most = self._most(path)
        if told.isdigit() and int(told) > most:
            return Failure(413, f"the body is larger than {most} bytes; it has {int(told)}")
        return None
