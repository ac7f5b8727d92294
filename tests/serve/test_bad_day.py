"""An engine that is lost, and readers that do not read."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import foreword
from foreword.cli import serve as cli
from foreword.engine import Engine, EngineClient
from foreword.errors import ServeError
from foreword.serve import ServeOptions, create_app
from foreword.serve.routes import completions as module
from tests.serve.behind import Behind, is_idle

ASKED = {"model": "tiny", "prompt": "once", "max_tokens": 200, "ignore_eos": True}
SECONDS = 3.0


LOST = pytest.mark.engines(
    "embedded",
    reason="they break the engine from within; that vLLM's processes die is tested in "
    "tests/engine/vllm/test_serving.py",
)


@pytest.fixture
def engine(behind: Behind) -> Iterator[Any]:
    engine = behind.again()[1]
    yield engine
    engine.close()


@pytest.fixture
def app(behind: Behind, engine: EngineClient) -> FastAPI:
    residency = behind.registry(behind.emptied())
    return create_app(behind.served, engine, residency, ServeOptions(seconds=SECONDS))


def lose(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(engine.scheduler, "chunks", lambda: 1 / 0)


@LOST
def test_a_lost_engine_is_told_by_every_route(
    app: FastAPI, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/health said 200, and requests were told that the engine was being closed."""
    lose(engine, monkeypatch)
    client = TestClient(app)
    assert client.get("/health").status_code == 200
    assert client.post("/v1/completions", json=ASKED).status_code == 500
    health = client.get("/health")
    assert health.status_code == 503
    assert health.json()["error"]["message"] == "the engine stopped: division by zero"
    assert client.get("/ready").status_code == 503
    later = client.post("/v1/completions", json=ASKED)
    assert later.status_code == 503
    assert later.json()["error"]["message"] == "the engine stopped: division by zero"


@LOST
def test_the_process_ends_with_a_code_when_its_engine_is_lost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose(engine, monkeypatch)

    class Server:
        should_exit = False
        started = True

        def run(self) -> None:
            engine.generate([foreword.engine.Request((5, 6))])
            until = time.monotonic() + 60
            while not self.should_exit and time.monotonic() < until:
                time.sleep(0.01)

    server = Server()
    with pytest.raises(ServeError, match="division by zero; the server has ended"):
        cli._run(server, engine)
    assert server.should_exit


def test_a_server_that_cannot_listen_ends_with_uvicorns_code(engine: EngineClient) -> None:
    class Server:
        started = False

        def run(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="3"):
        cli._run(Server(), engine)


class Reader:
    """A client that reads the status and the first chunk, and goes on when it is told to, if ever."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.leaves = asyncio.Event()
        self.stalls = asyncio.Event()
        self.chunks: list[str] = []

    async def send(self, message: Any) -> None:
        if self.chunks:
            self.stalls.set()
            await self.goes_on.wait()
        if message["type"] == "http.response.body" and message["body"]:
            self.chunks.append(message["body"].decode())

    async def ask(self, app: FastAPI, body: dict[str, Any]) -> None:
        """One request of this client's, until it is answered."""
        asked = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if asked.is_set():
                await self.leaves.wait()
                return {"type": "http.disconnect"}
            asked.set()
            return {"type": "http.request", "body": json.dumps(body).encode()}

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/completions",
            "raw_path": b"/v1/completions",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        await app(scope, receive, self.send)


@pytest.fixture
def slow(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that come a tenth of a second apart: 200 take several times what a request has."""
    if isinstance(engine, Engine):
        step = engine._step
        monkeypatch.setattr(engine, "_step", lambda: (time.sleep(0.1), step()))
    else:
        runtime = engine.engine._runtime
        monkeypatch.setattr(runtime, "generate", one_by_one(runtime.generate))


def one_by_one(generate: Callable[..., AsyncGenerator[Any]]) -> Callable[..., AsyncGenerator[Any]]:
    """What vLLM gives, which it puts together for those who come late, in single tokens."""

    async def slowed(*asked: Any) -> AsyncGenerator[Any]:
        async with aclosing(generate(*asked)) as outputs:
            async for output in outputs:
                for token in output.outputs[0].token_ids:
                    await asyncio.sleep(0.1)
                    one = SimpleNamespace(token_ids=[token], finish_reason=None, logprobs=None)
                    yield SimpleNamespace(outputs=[one], prompt_logprobs=None)

    return slowed


def asynchronous(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


async def until_idle(engine: EngineClient) -> None:
    async with asyncio.timeout(60):
        while not is_idle(engine):
            await asyncio.sleep(0.02)


@pytest.mark.usefixtures("slow")
def test_a_reader_that_stalls_and_comes_back_reads_whole_chunks_and_the_504(
    app: FastAPI, engine: EngineClient
) -> None:
    """It was cut off where it stood, in the middle of a chunk."""

    async def reads() -> list[str]:
        reader = Reader()
        asking = asyncio.create_task(reader.ask(app, {**ASKED, "stream": True}))
        await asyncio.wait_for(reader.stalls.wait(), 60)
        await until_idle(engine)  # its time is over, and its row is free though it reads nothing
        reader.goes_on.set()
        await asyncio.wait_for(asking, 60)
        return reader.chunks

    chunks = asyncio.run(reads())
    assert all(one.startswith("data: {") and one.endswith("}\n\n") for one in chunks)
    assert json.loads(chunks[-1].removeprefix("data: "))["error"]["message"] == (
        "the request took more than 3 s"
    )
    assert len(chunks) > 2


@pytest.mark.usefixtures("slow")
def test_a_reader_that_never_reads_holds_neither_row_nor_place(
    app: FastAPI, engine: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.5)

    async def waits() -> list[str]:
        reader = Reader()
        asking = asyncio.create_task(reader.ask(app, {**ASKED, "stream": True}))
        await asyncio.wait_for(reader.stalls.wait(), 60)
        await until_idle(engine)
        await asyncio.wait_for(asking, 60)
        return reader.chunks

    assert len(asyncio.run(waits())) == 1


def text_of(chunks: Sequence[str]) -> str:
    """What the chunks of a stream say together."""
    events = "".join(chunks).split("\n\n")
    told = [json.loads(one.removeprefix("data: ")) for one in events if one.startswith("data: {")]
    return "".join(one["choices"][0]["text"] for one in told)


def test_a_reader_that_does_not_read_holds_nobody_up_and_loses_nothing(
    behind: Behind, engine: EngineClient
) -> None:
    """Its row is free once its tokens are computed; what waits for it is no more than those."""
    app = create_app(behind.served, engine, behind.registry(behind.emptied()))
    short = {**ASKED, "max_tokens": 8, "temperature": 0}

    async def reads() -> tuple[list[str], str, list[str]]:
        reader = Reader()
        asked = {**ASKED, "temperature": 0}
        asking = asyncio.create_task(reader.ask(app, {**asked, "stream": True}))
        await asyncio.wait_for(reader.stalls.wait(), 60)
        async with asynchronous(app) as others:
            answers = [await others.post("/v1/completions", json=short) for _ in range(5)]
            await until_idle(engine)
            assert not asking.done()
            whole = await others.post("/v1/completions", json=asked)
        reader.goes_on.set()
        await asyncio.wait_for(asking, 60)
        return reader.chunks, said(whole), [said(one) for one in answers]

    chunks, whole, others = asyncio.run(reads())
    assert text_of(chunks) == whole
    assert len(set(others)) == 1
    assert whole.startswith(others[0].rstrip("\ufffd"))
    assert chunks[-1] == "data: [DONE]\n\n"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_has_its_request_ended(
    app: FastAPI, engine: EngineClient, slow: None, stream: bool
) -> None:
    """After two of 200 tokens, which would take 20 seconds, or before the answer."""

    async def leaves() -> list[str]:
        reader = Reader()
        asking = asyncio.create_task(reader.ask(app, {**ASKED, "stream": stream}))
        if stream:
            await asyncio.wait_for(reader.stalls.wait(), 60)
        else:
            while is_idle(engine):
                await asyncio.sleep(0.01)
        reader.leaves.set()
        reader.goes_on.set()
        await asyncio.wait_for(asking, 60)
        await until_idle(engine)
        return reader.chunks

    chunks = asyncio.run(leaves())
    assert "[DONE]" not in "".join(chunks)
    counted = TestClient(app).get("/metrics").text
    assert 'foreword_requests_total{finish="cancelled",model="tiny"} 1.0' in counted
