"""Errors as OpenAI's API tells them: one object that names what is wrong."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from foreword.errors import (
    DataError,
    ForewordError,
    FormatError,
    MismatchError,
    ServeError,
    StoreError,
)


class Failure(Exception):
    """What a request is answered with instead of a result.

    Args:
        status: HTTP status.
        message: What is wrong, what was expected, and what to do.
        param: The field that is wrong, if one is.
        headers: More headers, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(body(self.status, self.message, self.param), self.status, self.headers)


_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = "server_error" if status >= 500 else _KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def status_of(error: ForewordError) -> int:
    """The HTTP status that an error of ours stands for."""
    if isinstance(error, StoreError) and str(error).startswith("no prefix is called"):
        return 404
    if isinstance(error, ServeError):
        return 503
    known = (DataError, FormatError, MismatchError, StoreError)
    return 400 if isinstance(error, known) else 500


def install(app: FastAPI) -> None:
    """Answer every kind of error in the same form."""

    @app.exception_handler(Failure)
    async def _(_: Request, error: Failure) -> JSONResponse:
        return error.response

    @app.exception_handler(ForewordError)
    async def _(_: Request, error: ForewordError) -> JSONResponse:
        return Failure(status_of(error), str(error)).response

    @app.exception_handler(HTTPException)
    async def _(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            body(error.status_code, str(error.detail)), error.status_code, error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        # Of a field that may have several types the type's name is no part of the field's.
        name = place[0] if place else None
        why = "this field is not supported" if first["type"] == "extra_forbidden" else first["msg"]
        where = f"{'.'.join(place)}: " if place else "the body: "
        return Failure(400, where + why, name).response
