"""The routes of prefixes: they are uploaded, looked at, pinned and deleted while the server runs."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.routing import APIRoute

from foreword.serve.crews import Crews
from foreword.serve.failures import STORING, WITH_BODY, told
from foreword.serve.intake import Intake
from foreword.serve.registry import Registry
from foreword.serve.schemas import LoadRequest, NameRequest

FORM: dict[str, Any] = {"max_files": 1, "max_fields": 4, "max_part_size": 2**12}
"""What the form of an upload may hold."""


class _Upload(Request):
    """A request whose form is held to `FORM`.

    FastAPI's own ``form_limits`` does it too, but is newer than what vLLM allows beside itself.
    """

    def form(self, **_: Any) -> Any:
        """The form."""
        return super().form(**FORM)


class _UploadRoute(APIRoute):
    """A route whose requests are uploads."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        answer = super().get_route_handler()

        async def limited(request: Request) -> Response:
            return await answer(_Upload(request.scope, request.receive))

        return limited


def add_prefix_routes(app: FastAPI, intake: Intake, crews: Crews) -> None:
    """Add them to an application."""
    _add_reading_routes(app, intake, crews)
    _add_storing_routes(app, intake, crews)
    _add_pinning_routes(app, intake.registry, crews)


def _add_reading_routes(app: FastAPI, intake: Intake, crews: Crews) -> None:
    registry = intake.registry

    @app.get("/v1/prefixes", responses=told(400, 401))
    async def listed() -> dict[str, Any]:
        """Names of all prefixes, and which are in memory."""
        names = await crews.disk.do(lambda: list(registry.store))
        pinned = registry.pinned
        return {
            "object": "list",
            "data": [
                {"name": name, "resident": registry.holds(name), "pinned": name in pinned}
                for name in names
            ],
        }

    @app.get("/v1/prefixes/{name}", responses=told(400, 401, 404))
    async def inspect(name: str) -> dict[str, Any]:
        """What a prefix is."""
        return await crews.disk.do(lambda: intake.described(name, registry.get(name)))


def _add_storing_routes(app: FastAPI, intake: Intake, crews: Crews) -> None:
    async def upload(name: str, file: UploadFile, overwrite: bool = False) -> dict[str, Any]:
        """Store an uploaded file under a name."""
        return await crews.files.do(partial(intake.take, name, file.file, overwrite=overwrite))

    app.router.add_api_route(
        "/v1/prefixes/{name}",
        upload,
        methods=["PUT"],
        responses=told(*WITH_BODY, 404, 409, 429, *STORING),
        route_class_override=_UploadRoute,
    )

    @app.post("/v1/load_prefix", responses=told(*WITH_BODY, 409, *STORING))
    async def load(body: LoadRequest) -> dict[str, Any]:
        """Store a file of the server's disk under a name."""
        return await crews.files.do(
            partial(intake.take_from, body.name, body.path, overwrite=body.overwrite)
        )

    @app.delete("/v1/prefixes/{name}", responses=told(400, 401, 404, *STORING))
    async def delete(name: str) -> dict[str, Any]:
        """Delete a prefix; requests under way keep it."""
        await crews.disk.do(partial(intake.registry.store.remove, name))
        intake.registry.forget(name)
        return {"name": name, "deleted": True}


def _add_pinning_routes(app: FastAPI, registry: Registry, crews: Crews) -> None:
    @app.post("/v1/pin_prefix", responses=told(*WITH_BODY, 404))
    async def pin(body: NameRequest) -> dict[str, Any]:
        """Keep a prefix in memory."""
        await crews.disk.do(partial(registry.pin, body.name))
        return {"name": body.name, "pinned": True}

    @app.post("/v1/unpin_prefix", responses=told(*WITH_BODY, 404))
    async def unpin(body: NameRequest) -> dict[str, Any]:
        """Let a prefix go when others need the room."""
        registry.unpin(body.name)
        # What is not there cannot be unpinned.
        await crews.disk.do(partial(registry.store.stamp, body.name))
        return {"name": body.name, "pinned": False}
