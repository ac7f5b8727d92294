"""Prefixes that the server knows by their files' headers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

import foreword
from foreword import format as prefix_file
from foreword.engine import Engine, Request, Stats, Weighted
from foreword.engine.protocol import Loads
from foreword.errors import CorruptFile, NameUnknown, PrefixError, StoreError
from foreword.outline import Outline
from foreword.serve import create_app
from foreword.serve.remote import RemotePrefixes
from foreword.serve.residency import Residency
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model
from tests.serve.scripted import Scripted


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture
def store(tmp_path: Path, backbone: foreword.Backbone) -> PrefixStore:
    made = PrefixStore(tmp_path)
    for name in ("a", "ab", "abc"):
        made.save(name, backbone.capture(backbone.tokens(name)))
    return made


@pytest.fixture
def read(store: PrefixStore, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names whose headers were read; whole files must not be."""
    names: list[str] = []
    outline = store.outline

    def counted(name: str) -> Outline:
        names.append(name)
        return outline(name)

    def refused(*_: Any) -> None:
        raise AssertionError("a whole file was read")

    monkeypatch.setattr(store, "outline", counted)
    monkeypatch.setattr(store, "load", refused)
    return names


def damage(path: Path) -> None:
    """Change a byte of the file's tensors."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_what_a_header_says_is_what_the_prefix_is(store: PrefixStore) -> None:
    known, whole = RemotePrefixes(store).get("ab"), store.load("ab")
    for name in ("sites", "length", "meta", "head_task", "parameters", "nbytes", "digest"):
        assert getattr(known, name) == getattr(whole, name), name


def test_a_header_is_read_once_and_again_when_its_file_was_replaced(
    store: PrefixStore, read: list[str], backbone: foreword.Backbone
) -> None:
    remote = RemotePrefixes(store)
    for name in ("a", "a", "ab", "a"):
        assert remote.get(name).length == len(name)
    assert read == ["a", "ab"]
    prefix_file.save(backbone.capture(backbone.tokens("longer")), store.path("a"))
    assert remote.get("a").length == len("longer")
    remote.forget("ab")
    remote.get("ab")
    assert read == ["a", "ab", "a", "ab"]


def test_the_headers_that_were_asked_for_last_are_kept_and_share_their_sites(
    store: PrefixStore, read: list[str]
) -> None:
    remote = RemotePrefixes(store, most=2)
    found = [remote.get(name) for name in ("a", "ab", "a", "abc", "a", "ab")]
    assert read == ["a", "ab", "abc", "ab"]
    assert all(one.sites is found[0].sites for one in found)


def test_what_is_gone_or_damaged_says_so(store: PrefixStore) -> None:
    remote = RemotePrefixes(store)
    remote.get("a")
    store.remove("a")
    with pytest.raises(NameUnknown, match="no prefix is called 'a'"):
        remote.get("a")
    store.path("ab").write_bytes(store.path("ab").read_bytes()[:200])
    with pytest.raises(foreword.errors.FormatError):
        remote.get("ab")
    assert "abc" in remote
    assert "../abc" not in remote
    with pytest.raises(StoreError, match="is not a name"):
        remote.get("../abc")
    damage(store.path("abc"))
    assert remote.get("abc").length == 3  # the workers find out
    with pytest.raises(CorruptFile):
        store.load("abc")


@pytest.fixture
def client(backbone: foreword.Backbone, store: PrefixStore) -> Iterator[TestClient]:
    with TestClient(create_app(backbone, Scripted(), RemotePrefixes(store))) as made:
        yield made


def test_requests_are_served_without_a_whole_file(client: TestClient, read: list[str]) -> None:
    for name in ("ab", "ab", "abc"):
        body = {"model": name, "prompt": "x", "max_tokens": 2}
        answer = client.post("/v1/completions", json=body).json()
        assert answer["choices"][0]["text"] == f" {len(name)}" * 2
    told = client.get("/v1/prefixes/ab").json()
    assert (told["resident"], told["pinned"], told["length"]) == (None, False, 2)
    assert read == ["ab", "abc"]
    unknown = client.post("/v1/completions", json={"model": "nobody", "prompt": "x"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_prefixes_are_listed_and_described_as_with_tensors(
    client: TestClient, backbone: foreword.Backbone, store: PrefixStore
) -> None:
    own = {"resident", "pinned"}
    with TestClient(create_app(backbone, Scripted(), Residency(store))) as other:
        for path in ("/v1/prefixes/a", "/v1/prefixes/abc"):
            told = [each.get(path).json() for each in (client, other)]
            assert [told[0][key] for key in told[0] if key not in own] == [
                told[1][key] for key in told[1] if key not in own
            ]
    listed = client.get("/v1/prefixes").json()["data"]
    assert listed == [
        {"name": name, "resident": None, "pinned": False} for name in ("a", "ab", "abc")
    ]


def test_what_is_uploaded_is_read_whole_and_served(client: TestClient, store: PrefixStore) -> None:
    content = store.path("ab").read_bytes()
    assert client.put("/v1/prefixes/new", files={"file": content}).status_code == 200
    damage(store.path("ab"))
    bad = store.path("ab").read_bytes()
    refused = client.put("/v1/prefixes/bad", files={"file": bad})
    assert (refused.status_code, "altered or damaged" in refused.text) == (400, True)
    body = {"model": "new", "prompt": "x", "max_tokens": 1}
    assert client.post("/v1/completions", json=body).json()["choices"][0]["text"] == " 2"
    assert client.delete("/v1/prefixes/new").status_code == 200
    assert client.post("/v1/completions", json=body).status_code == 404


def test_pins_are_refused_with_what_to_do(client: TestClient) -> None:
    refused = client.post("/v1/pin_prefix", json={"name": "a"})
    assert refused.status_code == 400
    assert "larger --resident" in refused.json()["error"]["message"]
    assert client.post("/v1/pin_prefix", json={"name": "nobody"}).status_code == 404
    assert client.post("/v1/unpin_prefix", json={"name": "a"}).json()["pinned"] is False
    assert client.post("/v1/unpin_prefix", json={"name": "nobody"}).status_code == 404


LOADS = Loads(3, 4096, 20, 5, 1, 8192, 0.25, 0.5)


def gauges(client: TestClient) -> dict[str, float]:
    """Figures without labels."""
    lines = client.get("/metrics").text.splitlines()
    pairs = [line.split() for line in lines if not line.startswith("#") and "{" not in line]
    return {name: float(value) for name, value in pairs}


def test_what_workers_do_is_told(backbone: foreword.Backbone, store: PrefixStore) -> None:
    engine = Scripted()
    engine.stats = Stats(0, 0, 0, 0, LOADS)
    with TestClient(create_app(backbone, engine, RemotePrefixes(store))) as client:
        found = gauges(client)
    assert {
        name: found[f"foreword_{name}"]
        for name in (
            "resident_prefixes",
            "resident_bytes",
            "prefix_hits",
            "prefix_misses",
            "prefix_failures",
            "prefix_written_bytes",
            "prefix_read_seconds",
            "prefix_write_seconds",
        )
    } == {
        "resident_prefixes": 3,
        "resident_bytes": 4096,
        "prefix_hits": 20,
        "prefix_misses": 5,
        "prefix_failures": 1,
        "prefix_written_bytes": 8192,
        "prefix_read_seconds": 0.25,
        "prefix_write_seconds": 0.5,
    }


def test_an_engine_without_workers_tells_of_its_own_memory(
    backbone: foreword.Backbone, store: PrefixStore
) -> None:
    residency = Residency(store)
    for name in ("a", "a", "ab"):
        residency.get(name)
    with TestClient(create_app(backbone, Scripted(), residency)) as client:
        found = gauges(client)
    assert found["foreword_resident_prefixes"] == 2
    assert found["foreword_resident_bytes"] == residency.bytes
    assert (found["foreword_prefix_hits"], found["foreword_prefix_misses"]) == (1, 2)
    assert "foreword_prefix_failures" not in found


def test_figures_of_workers_add_up() -> None:
    assert LOADS + Loads(resident=-1, misses=2) == Loads(2, 4096, 20, 7, 1, 8192, 0.25, 0.5)
    assert Loads() + LOADS == LOADS


def test_the_embedded_engine_needs_the_tensors(
    backbone: foreword.Backbone, store: PrefixStore
) -> None:
    with Engine(backbone) as engine:
        request = Request((5,), prefixes=(Weighted(store.outline("a"), name="a"),), name="mine")
        with pytest.raises(PrefixError, match=r"the prefix of mine must be a Prefix.*Outline"):
            engine.check(request)
        with pytest.raises(PrefixError):
            engine.generate([request])
