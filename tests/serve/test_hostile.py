"""Clients and files that mean harm: one clear refusal each, and the others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from foreword.backbone.served import Served
from foreword.serve import ServeOptions, create_app
from foreword.serve.completions import Completions
from foreword.store import PrefixStore
from tests.attacks import make
from tests.serve.behind import ECHO, Behind
from tests.serve.leaving import leave

JSON = {"content-type": "application/json"}
ASKED = {"model": "one", "prompt": "once", "max_tokens": 4, "temperature": 0}
PART = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
OPTIONS = ServeOptions(queue=12, body_bytes=2**20, upload_bytes=2**16, seconds=30.0)


@pytest.fixture(scope="module")
def folder(behind: Behind) -> Path:
    behind.store.save("one", behind.backbone.capture(behind.backbone.tokens("text of one")))
    return behind.store.folder


@pytest.fixture(scope="module")
def app(behind: Behind, folder: Path) -> FastAPI:
    return create_app(behind.served, behind.engine, behind.registry(PrefixStore(folder)), OPTIONS)


@pytest.fixture(scope="module")
def client(app: FastAPI) -> TestClient:
    """A client without the application's lifespan, which would end the engine."""
    return TestClient(app)


def told(answer: httpx.Response, status: int) -> str:
    """What an answer says in OpenAI's form, once its status is seen to be the expected one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert error["code"] is None or error["code"].islower()  # a word, as OpenAI's are
    return str(error["message"])


def asynchronous(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


# -- bodies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"model": "one", "prompt": "\xff\xfe"}', "the body cannot be read: 'utf-8' codec"),
        (b'{"model": "one", "prompt": "x"', "the body is not JSON: Expecting ',' delimiter"),
        (b"[" * 100_000 + b"]" * 100_000, "the body cannot be read: maximum recursion depth"),
        (b'{"model": "one", "prompt": [' + b"9" * 5000 + b"]}", "integer string conversion"),
        (b'{"model": "one", "prompt": "\\ud800"}', "prompt: half of a surrogate pair"),
        (b'{"model": "one", "prompt": ["x", "\\ud800"]}', "prompt.1: half of a surrogate pair"),
        (b'{"model": "one", "prompt": "x", "stop": "\\ud800"}', "stop: half of a surrogate pair"),
        (b'{"model": "one", "prompt": "x", "\\ud800": 1}', "the body: "),
        (b'{"model": "one", "prompt": "x", "top_p": NaN}', "top_p: "),
        (b'{"model": "one", "prompt": "x", "temperature": 1e999}', "temperature: "),
        (b'{"model": "one", "prompt": "x", "logit_bias": {"5": NaN}}', "logit_bias.5: "),
        (b'{"model": "one", "prompt": "x", "n": "2"}', "n: "),
        (b'{"model": "one", "prompt": "x", "stream": "yes"}', "stream: "),
        (b'{"model": "one", "prompt": [true]}', "prompt: "),
        (b"null", "the body: expected a JSON object"),
        (b"", "the body: "),
    ],
)
def test_what_is_no_request_is_said_to_be_none(
    client: TestClient, content: bytes, message: str
) -> None:
    """Half of a surrogate pair came as far as the tokenizer, and was answered 500."""
    answer = client.post("/v1/completions", content=content, headers=JSON)
    assert message in told(answer, 400)


def test_a_body_that_is_not_sent_as_json_is_refused(client: TestClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = client.post("/v1/completions", content=json.dumps(ASKED), headers=form)
    assert "sent as application/json" in told(answer, 400)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/prefixes/big"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_not_read(
    client: TestClient, path: str, is_chunked: bool
) -> None:
    """In chunks without a length it was answered 400: FastAPI thought that it could not be parsed."""
    part, method = b"x" * 2**15, "PUT" if "prefixes" in path else "POST"
    most = OPTIONS.upload_bytes if "prefixes" in path else OPTIONS.body_bytes
    times = most // len(part) + 1
    kind = "multipart/form-data; boundary=x" if "prefixes" in path else "application/json"
    content: Any = (part for _ in range(times)) if is_chunked else part * times
    answer = client.request(method, path, content=content, headers={"content-type": kind})
    assert f"larger than {most} bytes" in told(answer, 413)


@pytest.mark.parametrize("length", ["9" * 5000, "1048577", "000001048577"])
def test_a_length_that_is_too_large_is_refused(client: TestClient, length: str) -> None:
    """Python refuses to read a number of 5,000 digits, which was answered 500."""
    answer = client.post("/v1/completions", content=b"{}", headers={"content-length": length})
    assert "larger than 1048576 bytes" in told(answer, 413)


# -- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["x" * 100_000, [5] * 100_000])
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_of_100_000_tokens_has_no_room(
    client: TestClient, prompt: Any, stream: bool
) -> None:
    answer = client.post("/v1/completions", json={**ASKED, "prompt": prompt, "stream": stream})
    assert "the prompt has 100000 tokens" in told(answer, 400)


@pytest.mark.parametrize("token", [-1, 264, 2**40, -(2**70)])
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"echo": True}])
def test_a_token_that_is_not_in_the_vocabulary_is_refused(
    client: TestClient, token: int, more: dict[str, Any]
) -> None:
    """A stream was refused after its status 200, and an echo failed in the tokenizer."""
    for body in ({"prompt": [5, token]}, {"logit_bias": {str(token): 1}}):
        answer = client.post("/v1/completions", json={**ASKED, **body, **more})
        assert f"token {token} is not in the vocabulary of 264" in told(answer, 400)


def test_many_prompts_are_refused_before_they_cost_anything(client: TestClient) -> None:
    """Three million requests were made of these before they were counted: 85 seconds."""
    began = time.perf_counter()
    answer = client.post("/v1/completions", json={**ASKED, "prompt": ["x"] * 50_000, "n": 64})
    assert "3200000 choices are asked for, and 12 allowed at once" in told(answer, 400)
    assert time.perf_counter() - began < 20


@pytest.mark.parametrize(
    "more",
    [
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": "x" * 1025},
        {"stop": ["x", "y" * 1025]},
        {"logit_bias": {str(token): 1 for token in range(1025)}},
    ],
)
def test_what_costs_work_at_every_token_is_bounded(
    client: TestClient, more: dict[str, Any]
) -> None:
    """Stop texts of 4 MB, or a bias on every token, slowed every client's tokens."""
    (field,) = more
    answer = client.post("/v1/completions", json={**ASKED, **more})
    assert told(answer, 400).startswith(field)


# -- names and paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../one", "/etc/passwd", "..", ".one", "a/b", "one\0", "é", ""])
def test_a_path_is_no_name(client: TestClient, name: str, folder: Path) -> None:
    url = "".join(f"%{byte:02x}" for byte in name.encode())
    before = sorted(folder.parent.rglob("*"))
    for method, path in (
        ("GET", f"/v1/models/{url}" if name else "/v1/models/%20"),
        ("GET", f"/v1/prefixes/{url}" if name else "/v1/prefixes/%20"),
        ("DELETE", f"/v1/prefixes/{url}" if name else "/v1/prefixes/%20"),
        ("PUT", f"/v1/prefixes/{url}" if name else "/v1/prefixes/%20"),
    ):
        files = {"file": (folder / "one.safetensors").read_bytes()} if method == "PUT" else None
        answer = client.request(method, path, files=files)
        assert answer.status_code in (400, 404), (method, path)
        assert told(answer, answer.status_code)
    file = str(folder / "one.safetensors")
    assert "is not a name" in told(client.post("/v1/load_prefix", json=_load(name, file)), 400)
    for path in ("/v1/pin_prefix", "/v1/unpin_prefix"):
        assert "is not a name" in told(client.post(path, json={"name": name}), 400)
    answer = client.post("/v1/completions", json={**ASKED, "model": name})
    assert told(answer, 404 if name else 400)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize("path", ["", "\0", ".", "/dev/zero", "no/such/file", "x" * 5000])
def test_a_path_that_is_no_prefix_file_is_refused(client: TestClient, path: str) -> None:
    assert told(client.post("/v1/load_prefix", json=_load("new", path)), 400)


def test_a_pipe_is_not_waited_for(client: TestClient, tmp_path: Path) -> None:
    """A thread of the server was held for good, and forty of them are all that it has."""
    os.mkfifo(tmp_path / "pipe")
    answer = client.post("/v1/load_prefix", json=_load("new", str(tmp_path / "pipe")))
    assert "there is no such file" in told(answer, 400)


def _load(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "path": path, "overwrite": True}


def test_a_name_that_is_not_there_cannot_be_unpinned(client: TestClient) -> None:
    assert "no prefix is called" in told(
        client.post("/v1/unpin_prefix", json={"name": "none"}), 404
    )


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", make.attacks())
def test_every_hostile_file_is_refused(client: TestClient, attack: str, folder: Path) -> None:
    """Among them files that are cut off, claim another header or declare a shape of petabytes."""
    content = (Path(make.__file__).parent / f"{attack}.safetensors").read_bytes()
    before = sorted(folder.iterdir())
    assert told(client.put("/v1/prefixes/bad", files={"file": content}), 400)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "multipart/form-data"),
        (b"no form", "multipart/form-data; boundary=x"),
        (PART % b"file" + b"cut", "multipart/form-data; boundary=x"),
        (PART % b"file" + b"no file\r\n--x--\r\n", "multipart/form-data; boundary=x"),
        (PART % b"\xff" + b"y\r\n--x--\r\n", "multipart/form-data; boundary=x; charset=none"),
        (b"file=x", "application/x-www-form-urlencoded"),
        (b"{}", "application/json"),
    ],
)
def test_an_upload_that_is_no_form_with_a_file_is_refused(
    client: TestClient, body: bytes, kind: str
) -> None:
    answer = client.put("/v1/prefixes/bad", content=body, headers={"content-type": kind})
    assert told(answer, 400)


# -- clients that are slow, or go away -----------------------------------------------------------


def test_others_are_served_while_a_body_comes_byte_by_byte(app: FastAPI) -> None:
    others = []

    async def ask() -> httpx.Response:
        async with asynchronous(app) as slow, asynchronous(app) as quick:

            async def byte_by_byte() -> AsyncIterator[bytes]:
                for number, byte in enumerate(json.dumps(ASKED).encode()):
                    if number % 20 == 0:
                        others.append(await quick.post("/v1/completions", json=ASKED))
                    yield bytes([byte])

            return await slow.post("/v1/completions", content=byte_by_byte(), headers=JSON)

    found = [asyncio.run(ask()), *others]
    assert len(found) > 3
    assert {one.status_code for one in found} == {200}
    assert len({one.json()["choices"][0]["text"] for one in found}) == 1


def test_a_body_that_does_not_come_is_given_up(behind: Behind, folder: Path) -> None:
    options = ServeOptions(seconds=0.2)
    app = create_app(behind.served, behind.engine, behind.registry(PrefixStore(folder)), options)

    async def never() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.sleep(600)

    async def ask() -> httpx.Response:
        async with asynchronous(app) as client:
            return await client.post("/v1/completions", content=never(), headers=JSON)

    answer = asyncio.run(ask())
    assert "the body took more than 0.2 s to come" in told(answer, 408)
    assert answer.headers["connection"] == "close"


def test_a_stream_that_never_begins_gives_its_place_back(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that went away before the first byte kept its place, for good."""
    services = []
    place = Completions.place

    def noted(service: Completions, asked: Any) -> Any:
        services.append(service)
        return place(service, asked)

    monkeypatch.setattr(Completions, "place", noted)
    content = json.dumps({**ASKED, "stream": True}).encode()
    asyncio.run(leave(app, content, lambda: bool(services), pause=0.01))
    assert [service.open for service in services] == [0]


@pytest.mark.parametrize("model", ["tiny", pytest.param("one", marks=ECHO)])
def test_texts_are_spelled_beside_the_event_loop(
    app: FastAPI, served: Served, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """A long prompt's log-probabilities held every other client up for one or two seconds."""
    tokenizer, threads = served.tokenizer, set()
    for name in ("decode", "convert_ids_to_tokens"):
        real = getattr(tokenizer, name)

        def noted(*args: Any, real: Any = real, **options: Any) -> Any:
            threads.add(threading.get_ident())
            return real(*args, **options)

        monkeypatch.setattr(tokenizer, name, noted)

    async def ask() -> tuple[int, httpx.Response]:
        async with asynchronous(app) as client:
            body = {**ASKED, "model": model, "echo": True, "logprobs": 5}
            return threading.get_ident(), await client.post("/v1/completions", json=body)

    loop, answer = asyncio.run(ask())
    assert answer.status_code == 200
    assert threads
    assert loop not in threads


# -- a disk that is slow -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/completions", ASKED),
        ("GET", "/v1/models/one", None),
        ("POST", "/v1/unpin_prefix", {"name": "one"}),
    ],
)
def test_a_slow_disk_holds_up_none_but_those_who_ask_it(
    app: FastAPI,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    body: dict[str, Any] | None,
) -> None:
    """The store was asked for a file on the event loop: all streams stood still meanwhile."""
    disk, asked, waited = threading.Event(), threading.Event(), []
    for name in ("__contains__", "stamp"):
        real = getattr(PrefixStore, name)

        def slow(store: PrefixStore, name: str, real: Any = real) -> Any:
            asked.set()
            waited.append(disk.wait(10))
            return real(store, name)

        monkeypatch.setattr(PrefixStore, name, slow)

    async def ask() -> tuple[httpx.Response, httpx.Response]:
        async with asynchronous(app) as client:
            asking = asyncio.create_task(client.request(method, path, json=body))
            while not asked.is_set():
                await asyncio.sleep(0.01)
            other = await client.get("/health")
            disk.set()
            return await asking, other

    assert [one.status_code for one in asyncio.run(ask())] == [200, 200]
    assert all(waited), "the disk was waited for until it was given up"
