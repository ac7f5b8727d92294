"""The routes of models: the backbone, and the prefixes that fit it, as OpenAI's API lists models."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import FastAPI

from foreword.serve.catalogue import Catalogue
from foreword.serve.crews import Crews
from foreword.serve.failures import no_model, told


def add_model_routes(app: FastAPI, catalogue: Catalogue, crews: Crews) -> None:
    """Add them to an application."""
    began = int(time.time())
    backbone = catalogue.backbone

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
        """The backbone, and the prefixes that fit it."""
        names = await crews.disk.do(lambda: list(catalogue))
        return {"object": "list", "data": [described(name) for name in (backbone.name, *names)]}

    @app.get("/v1/models/{name:path}", responses=told(400, 401, 404))
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        if name != backbone.name:
            await crews.disk.do(partial(check, name))
        return described(name)
