"""The routes of those who watch the server: whether it lives, takes requests, and what it counts."""

from __future__ import annotations

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from foreword.engine import EngineClient
from foreword.serve import failures
from foreword.serve.failures import Failure, told
from foreword.serve.metrics import Metrics


def add_health_routes(app: FastAPI, engine: EngineClient, metrics: Metrics) -> None:
    """Add them to an application."""

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

    text = {"description": "Counters", "content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text, **told(401)})
    async def metrics_text() -> Response:
        """Counters for Prometheus."""
        return Response(
            await run_in_threadpool(metrics.text), media_type="text/plain; version=0.0.4"
        )
