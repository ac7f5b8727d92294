"""The routes of models: backbone, router, and the prefixes that fit, as OpenAI's API lists models."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import FastAPI

from foreword.serve.catalogue import Catalogue
from foreword.serve.crews import Crews
from foreword.serve.failures import no_model, told


def add_model_routes(
    app: FastAPI, catalogue: Catalogue, crews: Crews, router: str | None = None
) -> None:
    """Add them to an application, with the name of the router that is served, if one is."""
    began = int(time.time())
    backbone = catalogue.backbone
    own = [name for name in (backbone.name, router) if name is not None]

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

    def check(name: str) -> None:
        if name not in catalogue:
            raise no_model(name)
        catalogue.check(name)

    @app.get("/v1/models", responses=told(400, 401))
    async def models() -> dict[str, Any]:
        """The backbone, the router if one is served, and the prefixes that fit."""
        names = await crews.disk.do(lambda: list(catalogue))
        return {
            "object": "list",
            "data": [described(name) for name in dict.fromkeys((*own, *names))],
        }

    @app.get("/v1/models/{name:path}", responses=told(400, 401, 404))
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        if name not in own:
            await crews.disk.do(partial(check, name))
        return described(name)
