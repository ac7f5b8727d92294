"""The application: routes, limits, and what runs as long as it does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool

from foreword.backbone.served import Served
from foreword.engine import EngineClient
from foreword.router import Router
from foreword.serve import failures
from foreword.serve.catalogue import Catalogue
from foreword.serve.completions import Completions
from foreword.serve.crews import Crews
from foreword.serve.guard import Budget, Guard
from foreword.serve.intake import Intake
from foreword.serve.journal import Journal
from foreword.serve.metrics import Metrics
from foreword.serve.registry import Registry
from foreword.serve.routes.completions import NOTICE, ROUTED, add_completion_routes
from foreword.serve.routes.health import add_health_routes
from foreword.serve.routes.models import add_model_routes
from foreword.serve.routes.prefixes import add_prefix_routes
from foreword.serve.routing import Routing
from foreword.version import __version__

log = logging.getLogger("foreword.serve")


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
        router: A router that is served as one more model, and the name of that.
    """

    api_key: str | None = None
    queue: int = 256
    most_tokens: int | None = None
    seconds: float = 600.0
    body_bytes: int = 4 * 2**20
    upload_bytes: int = 2**30
    origins: tuple[str, ...] = ()
    router: tuple[str, Router] | None = None


def create_app(
    backbone: Served,
    engine: EngineClient,
    registry: Registry,
    options: ServeOptions | None = None,
) -> FastAPI:
    """OpenAI's API over an engine.

    Args:
        backbone: The backbone that the engine runs.
        engine: The engine; the application ends it when it is shut down.
        registry: Prefixes by name: a `Residency`, or `RemotePrefixes` where the engine's workers read
            them.
        options: What the server allows.

    Raises:
        MismatchError: The router was fitted on another backbone.
        ServeError: The engine computes no features for a router.
        StoreError: A prefix has the router's name.
    """
    options = options or ServeOptions()
    crews = Crews()
    routing = None
    if options.router is not None:
        routing = Routing(*options.router, engine.features, crews)
        routing.check_name(registry)
    router = None if routing is None else routing.name
    metrics = Metrics(engine, registry)
    service = Completions(
        backbone,
        engine,
        registry,
        metrics,
        crews,
        queue=options.queue,
        most_tokens=options.most_tokens,
        seconds=options.seconds,
        routing=routing,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(registry.store.clear_leftovers)
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
            expose_headers=["x-request-id", NOTICE, ROUTED],
        )
    add_completion_routes(app, service)
    add_model_routes(app, Catalogue(backbone, registry.store), crews, router)
    add_prefix_routes(app, Intake(backbone, registry, router), crews)
    add_health_routes(app, engine, metrics)
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
