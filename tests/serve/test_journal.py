"""One line in the log for each request, however it ends, and what is counted of how it ended."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from foreword.backbone.served import Served
from foreword.engine import EngineClient
from foreword.serve import ServeOptions, answers, create_app
from foreword.serve.completions import Asked, Completions
from foreword.serve.registry import Registry
from tests.serve.behind import Behind
from tests.serve.leaving import leave

ASKED: dict[str, Any] = {"model": "one", "prompt": "secret words", "max_tokens": 4, "seed": 1}
LONG = {**ASKED, "max_tokens": 200, "ignore_eos": True}


@pytest.fixture(scope="module")
def registry(behind: Behind) -> Registry:
    behind.store.save("one", behind.backbone.capture(behind.backbone.tokens("text")))
    return behind.registry()


@pytest.fixture
def app(served: Served, engine: EngineClient, registry: Registry) -> FastAPI:
    return create_app(served, engine, registry, ServeOptions(api_key="key"))


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    headers = {"authorization": "Bearer key"}
    return TestClient(app, raise_server_exceptions=False, headers=headers)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "foreword.serve")
    return caplog


def the_line(lines: pytest.LogCaptureFixture) -> dict[str, Any]:
    """What the only line tells."""
    (line,) = (line for line in lines.records if line.name == "foreword.serve")
    names = ("request", "method", "path", "status", "model", "ended", "completion_tokens")
    return {"message": line.getMessage(), **{n: vars(line).get(n) for n in names}}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_leaves_a_line(
    client: TestClient, lines: pytest.LogCaptureFixture, stream: bool
) -> None:
    """A stream left none."""
    answer = client.post("/v1/completions", json={**ASKED, "stream": stream, "ignore_eos": True})
    told = answer.text.removeprefix("data: ").partition("\n\n")[0] if stream else answer.text
    identity = json.loads(told)["id"]
    assert answer.headers["x-request-id"] == identity
    assert the_line(lines) == {
        "message": "answered",
        "request": identity,
        "method": "POST",
        "path": "/v1/completions",
        "status": 200,
        "model": "one",
        "ended": "complete",
        "completion_tokens": 4,
    }
    assert "secret" not in str([vars(line) for line in lines.records])


@pytest.mark.parametrize(
    ("method", "path", "more", "status"),
    [
        ("POST", "/v1/completions", {"json": {**ASKED, "n": 0}}, 400),
        ("POST", "/v1/completions", {"json": {**ASKED, "model": "none"}}, 404),
        ("POST", "/v1/completions", {"content": b"{"}, 400),
        ("POST", "/v1/completions", {"headers": {"authorization": "Bearer wrong"}}, 401),
        ("POST", "/v1/completions", {"headers": {"content-length": "9" * 30}}, 413),
        ("PATCH", "/health", {}, 405),
        ("GET", "/nowhere/" + "x" * 1000, {}, 404),
    ],
)
def test_a_refusal_leaves_a_line(
    client: TestClient,
    lines: pytest.LogCaptureFixture,
    method: str,
    path: str,
    more: dict[str, Any],
    status: int,
) -> None:
    answer = client.request(method, path, **more)
    line = the_line(lines)
    assert (answer.status_code, line["status"], line["message"]) == (status, status, "refused")
    assert answer.headers["x-request-id"] == line["request"]
    assert line["path"] == path[:200]


def test_a_failure_of_ours_leaves_a_line(
    client: TestClient,
    engine: EngineClient,
    lines: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr(engine, "check", broken)
    assert client.post("/v1/completions", json=ASKED).status_code == 500
    assert the_line(lines)["status"] == 500


@pytest.mark.parametrize("stream", [False, True])
def test_a_timeout_is_no_cancellation(
    served: Served,
    engine: EngineClient,
    registry: Registry,
    lines: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    options = ServeOptions(seconds=0.0)
    client = TestClient(create_app(served, engine, registry, options))
    content = json.dumps({**LONG, "stream": stream}).encode()
    with_time = {"content": content, "headers": {"content-type": "application/json"}}
    answer = client.post("/v1/completions", **with_time)  # type: ignore[arg-type]
    assert answer.status_code == (200 if stream else 504)
    assert '"code": "timeout"' in answer.text if stream else '"code":"timeout"' in answer.text
    line = the_line(lines)
    assert (line["status"], line["ended"]) == (200 if stream else 504, "timeout")
    counted = client.get("/metrics").text
    assert 'foreword_requests_total{finish="timeout",model="one"} 1.0' in counted
    assert 'finish="cancelled"' not in counted


@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_goes_away_leaves_a_line(
    app: FastAPI,
    lines: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    at_once: bool,
) -> None:
    """Before the engine is asked, or while it answers."""
    content = json.dumps(LONG).encode()
    placed: list[Asked] = []
    place = Completions.place
    monkeypatch.setattr(
        Completions, "place", lambda self, asked: placed.append(asked) or place(self, asked)
    )
    asyncio.run(leave(app, content, lambda: at_once or bool(placed), key="key"))
    line = the_line(lines)
    assert (line["message"], line["status"], line["ended"]) == ("left", 499, "cancelled")
    assert len(placed) == (0 if at_once else 1)


# -- what clients send and expect around the requests ----------------------------------------------


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_word_before_the_key_may_have_any_case(app: FastAPI, scheme: str) -> None:
    client = TestClient(app)
    for key, status in (("key", 200), ("other", 401), ("", 401)):
        headers = {"authorization": f"{scheme} {key}"}
        assert client.get("/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_load_balancers_may_ask_for_the_head_alone(app: FastAPI, path: str) -> None:
    answer = TestClient(app).head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_what_ends_a_line_for_some_clients_is_escaped() -> None:
    """Clients that split at U+2028, U+2029 or U+0085 read half an object."""
    text = "a\u2028b\u2029c\u0085d"
    event = answers.as_event({"text": text}).decode()
    assert event.splitlines() == [event.rstrip("\n"), ""]
    assert json.loads(event.removeprefix("data: ")) == {"text": text}


def test_pages_of_other_hosts_call_where_they_may(
    served: Served, engine: EngineClient, registry: Registry
) -> None:
    """A browser asks beforehand, without a key; that was answered 401, so no page could call."""
    page = "https://chat.example"
    options = ServeOptions(api_key="key", origins=(page,))
    client = TestClient(create_app(served, engine, registry, options))
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    before = client.options("/v1/completions", headers={"origin": page, **asked})
    assert before.status_code == 200
    assert before.headers["access-control-allow-origin"] == page
    answer = client.post(
        "/v1/completions", json=ASKED, headers={"origin": page, "authorization": "Bearer key"}
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == page
    other = client.options("/v1/completions", headers={"origin": "https://other.example", **asked})
    assert "access-control-allow-origin" not in other.headers
    refused = client.post("/v1/completions", json=ASKED, headers={"origin": page})
    assert refused.status_code == 401
