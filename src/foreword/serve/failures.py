"""Errors as OpenAI's API tells them: one object that names what is wrong."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from foreword.errors import (
    DataError,
    ForewordError,
    FormatError,
    MismatchError,
    NameTaken,
    NameUnknown,
    ServeError,
    StoreError,
    TooLong,
    first_line,
)
from foreword.serve.schemas import ErrorBody


class Failure(Exception):
    """What a request is answered with instead of a result.

    Args:
        status: HTTP status.
        message: What is wrong, what was expected, and what to do.
        param: The field that is wrong, if one is.
        headers: More headers, such as Retry-After.
        code: OpenAI's word for what is wrong; by default that of the status, if it has one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = headers
        self.code = code or CODES.get(status) or (None if param is None else "invalid_value")

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, _INVALID)
        plain = self.message.encode(errors="replace").decode()  # a path may hold what UTF-8 cannot
        told = {"message": plain, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    @property
    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


_PART = re.compile(r"\w+")
_INVALID = "invalid_request_error"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}

CODES = {
    401: "invalid_api_key",
    429: "rate_limit_exceeded",
    500: "server_error",
    503: "service_unavailable",
    504: "timeout",
}
"""OpenAI's words, by which clients tell errors apart, where a status says what is wrong."""

TOO_LONG = "context_length_exceeded"
"""OpenAI's word for what has no room, by which clients turn to a larger model."""

MISFITS = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unsupported_parameter",
    "literal_error": "unsupported_value",
    "string_too_long": "string_above_max_length",
    "too_long": "array_above_max_length",
}
"""And where pydantic does, by its own word; any ``..._type`` is an ``invalid_type``."""


def no_model(name: str) -> Failure:
    """What a request is answered with that names no model of the server's."""
    message = f"no model is called {name!r}; GET /v1/models lists them"
    return Failure(404, message, "model", code="model_not_found")


WITH_BODY = (400, 401, 408, 413)
"""Statuses that any request with a body may be refused with."""

STORING = (500, 507)
"""Statuses that a request that writes to the store may be refused with, besides."""

MEANING = {
    400: "The request cannot be served as it is",
    401: "The server has a key, and the request brings another or none",
    404: "There is no model or prefix of this name",
    408: "The body took too long to come",
    409: "The name is taken",
    413: "The body is too large",
    429: "Too many requests are open, or too many bytes of uploads under way",
    500: "The server failed",
    503: "The server takes no more requests",
    504: "The request took too long",
    507: "The server's disk is full",
}

FULL = {errno.ENOSPC, errno.EDQUOT}
"""What the system calls a disk, or a user's share of it, that is full."""
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
"""And one that does not let the server write, or is broken."""


def told(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How the description of a route tells the statuses that it may refuse with."""
    return {status: {"model": ErrorBody, "description": MEANING[status]} for status in statuses}


def status_of(error: ForewordError) -> int:
    """The HTTP status that an error of ours stands for."""
    if isinstance(error, NameUnknown):
        return 404
    if isinstance(error, NameTaken):
        return 409
    if isinstance(error, ServeError):
        return 503
    if isinstance(error, StoreError) and isinstance(error.__cause__, OSError):
        if error.__cause__.errno in FULL:
            return 507
        if error.__cause__.errno in REFUSED:
            return 500
    known = (DataError, FormatError, MismatchError, StoreError)
    return 400 if isinstance(error, known) else 500


def as_failure(error: Failure | ForewordError) -> Failure:
    """An error as what the request is answered with."""
    if isinstance(error, Failure):
        return error
    code = TOO_LONG if isinstance(error, TooLong) else None
    return Failure(status_of(error), str(error), code=code)


def install(app: FastAPI) -> None:
    """Answer every kind of error in the same form."""

    @app.exception_handler(Failure)
    async def _(_: Request, error: Failure) -> JSONResponse:
        return error.response

    @app.exception_handler(ForewordError)
    async def _(_: Request, error: ForewordError) -> JSONResponse:
        return as_failure(error).response

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        detail, cause, headers = str(error.detail), error.__cause__, error.headers
        if isinstance(cause, OSError) and cause.errno in FULL:
            return Failure(507, f"the body cannot be kept: {first_line(cause)}").response
        if error.status_code == 400 and cause is not None:
            detail = f"the body cannot be read: {first_line(cause)}"
        if error.status_code == 405:  # of several routes with one path, Starlette tells the first's
            headers = {"Allow": ", ".join(_methods(app, request))}
        return Failure(error.status_code, detail, headers=dict(headers or {})).response

    @app.exception_handler(RequestValidationError)
    async def _(_: Request, error: RequestValidationError) -> JSONResponse:
        return _misfit(error.errors()).response

    @app.exception_handler(Exception)
    async def _(_: Request, error: Exception) -> JSONResponse:
        kind = type(error).__name__
        return Failure(500, f"the server failed ({kind}); its log says more").response


def _methods(app: FastAPI, request: Request) -> list[str]:
    """The methods that a request's path has."""
    found = [route for route in app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in found for method in getattr(route, "methods", None) or ()})


def _misfit(errors: Sequence[Any]) -> Failure:
    """The first of what does not fit a schema; of a field of several types, of that which it has."""
    first = next((one for one in errors if not one["type"].endswith("_type")), errors[0])
    kind = first["type"]
    code = "invalid_type" if kind.endswith("_type") else MISFITS.get(kind)
    match kind:
        case "json_invalid":
            why, at = first["ctx"]["error"], first["loc"][-1]
            return Failure(400, f"the body is not JSON: {why} at character {at}")
        case "model_attributes_type" | "missing" if len(first["loc"]) == 1:  # a null may be either
            return Failure(400, "the body: expected a JSON object, sent as application/json")
        case "extra_forbidden":
            why = "this field is not supported"
        case _:
            why = first["msg"]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    # Of a field that may have several types the type's name is no part of the field's.
    place[1:] = [part for part in place[1:] if part != "str" and _PART.fullmatch(part)]
    where, name = (".".join(place), place[0]) if place else ("the body", None)
    return Failure(400, f"{where}: {why}", name, code=code)
