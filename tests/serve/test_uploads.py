"""Prefix files that come while the server runs: one at a time, bounded, and one for each name."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.datastructures import UploadFile

import foreword
from foreword import format as prefix_file
from foreword.backbone.served import Served
from foreword.serve import ServeOptions, create_app
from foreword.serve.catalogue import Catalogue
from foreword.store import PrefixStore
from tests.serve.behind import Behind

HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
END = b"\r\n--x--\r\n"
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture
def store(behind: Behind) -> PrefixStore:
    return behind.emptied()


@pytest.fixture
def app(behind: Behind, store: PrefixStore) -> FastAPI:
    return create_app(behind.served, behind.engine, behind.registry(store))


def content(backbone: foreword.Backbone, text: str) -> bytes:
    """A prefix file."""
    return prefix_file.encode(backbone.capture(backbone.tokens(text)))


def asynchronous(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def test_of_uploads_at_once_to_two_servers_one_has_the_name(
    behind: Behind,
    store: PrefixStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Up to eight of eight were answered 200, and the last one's file was there."""
    apps = [create_app(behind.served, behind.engine, behind.registry(store)) for _ in range(2)]
    contents = [content(behind.backbone, f"text {n}") for n in range(8)]
    monkeypatch.setattr(os.path, "lexists", lambda _: False)  # all look before any has written

    async def upload() -> list[httpx.Response]:
        async with asynchronous(apps[0]) as one, asynchronous(apps[1]) as two:
            sent = [
                (one, two)[n % 2].put("/v1/prefixes/new", files={"file": each})
                for n, each in enumerate(contents)
            ]
            return await asyncio.gather(*sent)

    answers = asyncio.run(upload())
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 7
    (winner,) = (n for n, answer in enumerate(answers) if answer.status_code == 200)
    assert store.path("new").read_bytes() == contents[winner]
    assert [path.name for path in store.folder.iterdir()] == ["new.safetensors"]


def test_a_file_that_is_put_there_by_hand_meanwhile_is_kept(
    app: FastAPI, backbone: foreword.Backbone, store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = content(backbone, "own"), content(backbone, "other")
    read = prefix_file.read

    def put(file: BinaryIO) -> foreword.Prefix:
        store.path("new").write_bytes(other)
        return read(file)

    monkeypatch.setattr(prefix_file, "read", put)
    answer = TestClient(app).put("/v1/prefixes/new", files={"file": own})
    assert answer.status_code == 409
    assert "a prefix called 'new' is already in" in answer.json()["error"]["message"]
    assert store.path("new").read_bytes() == other


def test_a_file_that_changes_while_it_is_loaded_is_not_what_is_served(
    app: FastAPI,
    backbone: foreword.Backbone,
    store: PrefixStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is checked is what gets the name."""
    file, before = tmp_path / "p.safetensors", content(backbone, "before")
    file.write_bytes(before)
    read = prefix_file.read

    def changed(copy: BinaryIO) -> foreword.Prefix:
        file.write_bytes(b"no prefix")
        return read(copy)

    monkeypatch.setattr(prefix_file, "read", changed)
    body = {"name": "new", "path": str(file)}
    assert TestClient(app).post("/v1/load_prefix", json=body).status_code == 200
    assert store.path("new").read_bytes() == before


@pytest.mark.parametrize("way", ["upload", "load"])
def test_a_file_that_cannot_be_served_is_not_copied(
    app: FastAPI,
    backbone: foreword.Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """A file of the server's disk may be of any size."""
    file = tmp_path / "p.safetensors"
    file.write_bytes(content(backbone, "text"))
    if way == "load":
        os.truncate(file, 2**40)
    else:
        file.write_bytes(file.read_bytes()[:-1])

    def copied(*_: Any) -> None:
        raise AssertionError("it is copied")

    monkeypatch.setattr("foreword.serve.intake.shutil.copyfileobj", copied)
    client = TestClient(app)
    if way == "load":
        answer = client.post("/v1/load_prefix", json={"name": "new", "path": str(file)})
        assert str(file) in answer.json()["error"]["message"]
    else:
        answer = client.put("/v1/prefixes/new", files={"file": file.read_bytes()})
    assert answer.status_code == 400
    assert client.get("/v1/prefixes").json()["data"] == []


def test_files_are_checked_one_at_a_time(
    app: FastAPI, backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four of 189 MB took 2.7 GB: each was in memory four times, and all at once."""
    two_at_once = threading.Barrier(2)
    read, met = prefix_file.read, []

    def noted(file: BinaryIO) -> foreword.Prefix:
        try:
            two_at_once.wait(0.2)
            met.append(file)
        except threading.BrokenBarrierError:
            two_at_once.reset()
        return read(file)

    def whole(*_: Any) -> bytes:
        raise AssertionError("a whole upload is read at once")

    monkeypatch.setattr(prefix_file, "read", noted)
    monkeypatch.setattr(UploadFile, "read", whole)

    async def upload() -> list[httpx.Response]:
        async with asynchronous(app) as client:
            return await asyncio.gather(
                *(
                    client.put(f"/v1/prefixes/p{n}", files={"file": content(backbone, f"p{n}")})
                    for n in range(4)
                )
            )

    assert [answer.status_code for answer in asyncio.run(upload())] == [200] * 4
    assert met == []


def test_uploads_under_way_have_one_budget(behind: Behind, store: PrefixStore) -> None:
    file = content(behind.backbone, "text")
    options = ServeOptions(upload_bytes=len(file) + 1000)
    app = create_app(behind.served, behind.engine, behind.registry(store), options)

    async def upload() -> tuple[httpx.Response, ...]:
        others: list[httpx.Response] = []
        async with asynchronous(app) as slow, asynchronous(app) as quick:

            async def parts() -> AsyncIterator[bytes]:
                yield HEAD + file[:-10]
                others.append(await quick.put("/v1/prefixes/b", files={"file": file}))
                yield file[-10:] + END

            first = await slow.put("/v1/prefixes/a", content=parts(), headers=FORM)
            again = await quick.put("/v1/prefixes/b", files={"file": file})
            return first, *others, again

    first, refused, again = asyncio.run(upload())
    assert [one.status_code for one in (first, refused, again)] == [200, 429, 200]
    assert refused.headers["retry-after"] == "1"
    assert "allowed for all together" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        HEAD + b"a\r\n" + HEAD + b"b" + END,
        b"".join(HEAD.replace(b"; filename", b"; other") + b"a\r\n" for _ in range(5)) + END,
        HEAD.replace(b"; filename", b"; other") + b"a" * 5000 + END,
    ],
)
def test_a_form_of_many_parts_is_not_kept_in_memory(app: FastAPI, body: bytes) -> None:
    """A thousand files, and as many fields of a megabyte each, were."""
    answer = TestClient(app).put("/v1/prefixes/new", content=body, headers=FORM)
    assert answer.status_code == 400
    assert "maximum" in answer.json()["error"]["message"].lower()


def test_a_disk_without_room_for_an_upload_is_the_servers_fault(
    app: FastAPI, backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was answered 400: the body could not be parsed."""

    async def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(UploadFile, "write", full)
    answer = TestClient(app).put("/v1/prefixes/a", files={"file": content(backbone, "a")})
    assert answer.status_code == 507
    assert "No space left" in answer.json()["error"]["message"]


def test_a_server_clears_what_a_killed_one_left(behind: Behind, store: PrefixStore) -> None:
    store.save("one", behind.backbone.capture([5, 6]))
    left = store.folder / ".one.safetensors.0123456789abcdef"
    left.write_bytes(b"half")
    with TestClient(create_app(*behind.again(), behind.registry(store))):
        assert list(store.folder.iterdir()) == [store.path("one")]


def test_a_prefix_that_fills_the_context_is_refused_when_it_comes(
    app: FastAPI, served: Served, backbone: foreword.Backbone, store: PrefixStore
) -> None:
    """It was stored and listed, and every request for it refused."""
    client = TestClient(app)
    room = backbone.context
    for length, status in ((room - 1, 400), (room - 2, 200)):
        prefix = backbone.capture([5] * length, positions="offset")
        sent = {"file": prefix_file.encode(prefix)}
        answer = client.put(f"/v1/prefixes/p{length}", files=sent)
        assert answer.status_code == status
        if status == 400:
            assert f"the prefix has {length} tokens" in answer.json()["error"]["message"]
            store.save(f"p{length}", prefix)  # by hand
    assert list(Catalogue(served, store)) == [f"p{room - 2}"]
    asked = {"model": f"p{room - 2}", "prompt": "x"}
    assert client.post("/v1/completions", json=asked).status_code == 200
