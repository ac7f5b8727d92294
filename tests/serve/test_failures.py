"""Errors as the server tells them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from foreword.engine import EngineClient
from foreword.engine.request import EngineClosed
from foreword.serve import create_app
from foreword.serve.failures import Failure
from tests.serve.behind import Behind

ASKED = {"model": "tiny", "prompt": "x", "max_tokens": 2}


@pytest.fixture
def engine(behind: Behind) -> EngineClient:
    return behind.again()[1]


@pytest.fixture
def client(behind: Behind, engine: EngineClient) -> Iterator[TestClient]:
    app = create_app(behind.served, engine, behind.registry(behind.emptied()))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_a_failure_of_ours_is_told_in_openai_s_form(
    client: TestClient, engine: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was plain text, and said nothing."""

    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(engine, "check", broken)
    answer = client.post("/v1/completions", json=ASKED)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["type"] == "server_error"
    assert error["message"] == "the server failed (KeyError); its log says more"


def test_a_message_holds_what_utf_8_can_spell() -> None:
    failure = Failure(400, "no file folder\udcff/x")
    assert failure.body["error"]["message"] == "no file folder?/x"


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/v1/prefixes/one", "DELETE, GET, PUT"), ("/v1/prefixes", "GET"), ("/health", "GET, HEAD")],
)
def test_a_method_that_is_not_there_is_answered_with_those_that_are(
    client: TestClient, path: str, methods: str
) -> None:
    """Of routes with the same path only the first was told."""
    answer = client.post(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_ending_says_so(
    client: TestClient, engine: EngineClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """A stream was cut off after its status 200."""

    def closed(*_: object) -> None:
        raise EngineClosed("the engine takes no more requests")

    monkeypatch.setattr(engine, "check", closed)
    answer = client.post("/v1/completions", json={**ASKED, "stream": stream})
    assert answer.status_code == 503
    assert "takes no more" in answer.json()["error"]["message"]


def test_what_ends_a_stream_is_told_in_it(
    client: TestClient, engine: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object) -> None:
        raise EngineClosed("the engine takes no more requests")

    monkeypatch.setattr(engine, "submit", closed)
    answer = client.post("/v1/completions", json={**ASKED, "stream": True})
    assert answer.status_code == 200
    assert '"code": "service_unavailable"' in answer.text
    assert answer.text.count("data: ") == 1


def test_the_description_tells_every_refusal_in_openai_s_form(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    assert not {"HTTPValidationError", "ValidationError"} & set(
        description["components"]["schemas"]
    )
    for path, routes in description["paths"].items():
        for route in routes.values():
            refusals: dict[str, Any] = {**route["responses"]}
            assert refusals.pop("200")
            assert "422" not in refusals
            assert path in ("/health", "/ready") or "401" in refusals
            for status, told in refusals.items():
                schema = told.get("content", {}).get("application/json", {}).get("schema", {})
                assert schema.get("$ref", "").endswith("/ErrorBody") or (path, status) == (
                    "/ready",
                    "503",
                )
