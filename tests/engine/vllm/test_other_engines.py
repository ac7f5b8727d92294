"""The HTTP server over two workers of vLLM, and over a model of absolute positions: `make test-vllm`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

from foreword import format as prefix_file
from foreword.backbone.served import Served
from foreword.engine import Engine, EngineClient, Limits
from foreword.serve import create_app
from foreword.serve.residency import Residency
from foreword.store import PrefixStore
from tests.engine.vllm import tiny

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
PROMPTS = ["once upon", "a", "The quick brown fox jumps over the lazy dog. " * 2]


@contextmanager
def served(model: Served, engine: EngineClient, store: PrefixStore) -> Iterator[TestClient]:
    """An application; its engine ends with it."""
    with TestClient(create_app(model, engine, Residency(store))) as client:
        yield client
    assert not engine.accepts


def answers(client: TestClient, names: list[str], **more: Any) -> dict[str, list[Any]]:
    """Texts and log-probabilities under each model."""
    found = {}
    for name in names:
        body = {"model": name, "prompt": PROMPTS, "logprobs": 1, **GREEDY, **more}
        answer = client.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        found[name] = [(one["text"], one["logprobs"]["tokens"]) for one in told["choices"]]
        found[name].append(told["usage"])
    return found


def test_two_workers_answer_as_the_embedded_engine_does(tmp_path: Path) -> None:
    """Tensor parallel 2: each worker has one of the two key/value heads."""
    backbone = tiny.backbone()
    store = tiny.store(backbone, tmp_path / "store")
    names = ["tiny", *store]
    with served(backbone, Engine(backbone, Limits(rows=8)), store) as client:
        expected = answers(client, names)
    flags = ("--tensor-parallel-size=2",)
    with served(*tiny.launched(tiny.backbone(), tmp_path / "model", store, flags), store) as client:
        assert answers(client, names) == expected
        assert answers(client, names) == expected  # from blocks that vLLM has by now
    assert len({str(one[:-1]) for one in expected.values()}) == len(names)


def test_a_model_that_cannot_turn_keys_refuses_free_prefixes_by_their_policy(
    tmp_path: Path,
) -> None:
    """Their requests ended with status 500, and the prefixes were listed as models."""
    backbone = tiny.of_family("GPT2Config", tiny.GPT)
    store = PrefixStore(tmp_path / "store")
    free = tiny.prefix(backbone, 20, 0, "offset").with_meta(positions="free")
    store.save("free", free)
    store.save("offset", tiny.prefix(backbone, 20, 0, "offset"))
    own = tiny.of_family("GPT2Config", tiny.GPT)
    with served(own, Engine(own), store) as client:
        expected = answers(client, [own.name, "offset"])
    with served(*tiny.launched(backbone, tmp_path / "model", store), store) as client:
        assert answers(client, [own.name, "offset"]) == expected
        listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert listed == [own.name, "offset"]
        file = {"file": prefix_file.encode(free)}
        asked = {"model": "free", "prompt": "a", **GREEDY}
        for answer in (
            client.post("/v1/completions", json=asked),
            client.post("/v1/completions", json={**asked, "stream": True}),
            client.get("/v1/models/free"),
            client.put("/v1/prefixes/new", files=file),
        ):
            message = answer.json()["error"]["message"]
            assert answer.status_code == 400, message
            assert "position policy 'free'; vLLM serves none of that policy" in message
            assert "policy 'offset' (Backbone.moved)" in message
        assert list(store) == ["free", "offset"]
    assert expected["offset"] != expected[own.name]
