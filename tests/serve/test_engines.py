"""What a request means on each engine: what is counted, what has no room, what is refused, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from foreword.data.written import Written
from foreword.engine import Sampling
from foreword.engine.vllm.requests import PrefixedPrompt, prefixed
from foreword.engine.vllm.sampling import parameters
from foreword.serve import create_app
from foreword.store import PrefixStore
from tests.serve.behind import CONTEXT, Behind, Lent

PATHS = {"completions": "/v1/completions", "chats": "/v1/chat/completions"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
LENGTH = len("text of one")


@pytest.fixture(scope="module")
def store(behind: Behind) -> PrefixStore:
    backbone = behind.backbone
    for name in ("one", "two"):
        behind.store.save(name, backbone.capture(backbone.tokens(f"text of {name}")))
    return behind.store


@pytest.fixture(scope="module")
def client(behind: Behind, store: PrefixStore) -> Iterator[TestClient]:
    with TestClient(create_app(behind.served, behind.engine, behind.registry(store))) as client:
        yield client


def body(kind: str, text: str, **more: Any) -> dict[str, Any]:
    said = (
        {"prompt": text}
        if kind == "completions"
        else {"messages": [{"role": "user", "content": text}]}
    )
    return {"model": "one", **GREEDY, **said, **more}


def refused(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.mark.parametrize("model", ["tiny", "one", "two"])
def test_tokens_of_prompts_are_counted_and_those_of_prefixes_are_not(
    client: TestClient, model: str
) -> None:
    asked = {"model": model, "prompt": ["once", "upon a time"], "n": 2, **GREEDY}
    usage = client.post("/v1/completions", json=asked).json()["usage"]
    assert usage == {"prompt_tokens": 15, "completion_tokens": 32, "total_tokens": 47}
    streamed = client.post(
        "/v1/completions",
        json={**asked, "stream": True, "stream_options": {"include_usage": True}},
    )
    assert (
        '"usage": {"prompt_tokens": 15, "completion_tokens": 32, "total_tokens": 47}'
        in streamed.text
    )
    counted = client.get("/metrics").text
    assert f'foreword_prompt_tokens_total{{model="{model}"}} 30.0' in counted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", PATHS)
def test_what_has_no_room_is_told_in_tokens_of_prompt_and_prefix(
    client: TestClient, kind: str, stream: bool
) -> None:
    around = 0 if kind == "completions" else len("user: assistant: ") + 3  # special tokens
    room = CONTEXT - LENGTH - around
    error = refused(client.post(PATHS[kind], json=body(kind, "x" * room, stream=stream)), 400)
    assert error["message"] == (
        f"the prompt has {CONTEXT - LENGTH} tokens and the prefix {LENGTH}; the backbone's context of "
        f"{CONTEXT} leaves no room to go on. Shorten the prompt. This model's maximum context length is "
        f"{CONTEXT} tokens"
    )
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == ("prompt" if kind == "completions" else "messages")
    told = client.post(PATHS[kind], json=body(kind, "x" * (room - 1))).json()
    assert told["usage"]["completion_tokens"] == 1
    assert told["choices"][0]["finish_reason"] == "length"
    plain = client.post(PATHS[kind], json=body(kind, "x" * room, model="tiny")).json()
    assert plain["usage"]["completion_tokens"] == min(GREEDY["max_tokens"], LENGTH)


@pytest.mark.parametrize("name", ["three", "a/b", "one/", "/one", "../one", "one.safetensors", " "])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", PATHS)
def test_a_name_that_is_not_there_is_not_found_and_never_the_backbone(
    client: TestClient, kind: str, stream: bool, name: str
) -> None:
    answer = client.post(PATHS[kind], json=body(kind, "a", model=name, stream=stream))
    error = refused(answer, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("field", ["prompt_logprobs", "kv_transfer_params", "cache_salt"])
def test_fields_of_vllms_own_are_none_of_this_server(
    client: TestClient, kind: str, field: str
) -> None:
    """A client could name another prefix by them, or ask for numbers that were never computed."""
    error = refused(client.post(PATHS[kind], json=body(kind, "a", **{field: 1})), 400)
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


@pytest.mark.engines("vllm", reason="it serves them")
@pytest.mark.parametrize("logprobs", [0, 3])
def test_a_prompts_log_probabilities_under_a_prefix_are_refused_by_their_field(
    client: TestClient, behind: Behind, monkeypatch: pytest.MonkeyPatch, logprobs: int
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("it is sent to vLLM")

    monkeypatch.setattr(behind.engine, "submit", never)
    asked = body("completions", "a", echo=True, logprobs=logprobs)
    error = refused(client.post("/v1/completions", json=asked), 400)
    assert error["param"] == "echo"
    assert "log-probabilities of a prompt under a prefix are not served by vLLM" in error["message"]


def test_a_prompt_is_echoed_without_its_log_probabilities(client: TestClient) -> None:
    plain = client.post("/v1/completions", json=body("completions", "once ")).json()
    found = client.post("/v1/completions", json=body("completions", "once ", echo=True)).json()
    assert found["choices"][0]["text"] == "once " + plain["choices"][0]["text"]
    assert found["usage"] == plain["usage"]


@pytest.mark.engines("vllm", reason="it has no placeholders")
@pytest.mark.parametrize("fault", ["fewer", "others", "no text", "none"])
def test_other_tokens_in_the_placeholders_place_fail_their_request_alone(
    client: TestClient, behind: Behind, store: PrefixStore, fault: str
) -> None:
    """As one would come that was not made by this server."""
    assert isinstance(behind.engine, Lent)
    engine = behind.engine.engine
    good = prefixed((5, 6), engine.placeholder, "one", store.outline("one"))
    ids = good.token_ids
    wrong = {
        "fewer": ids[1:],
        "others": (7, *ids[1:]),
        "no text": ids[:LENGTH],
        "none": (5, 6),
    }[fault]

    async def asked(one: PrefixedPrompt, name: str) -> Any:
        sampling = parameters(Sampling(max_tokens=4, temperature=0), Written(None))
        outputs = [each async for each in engine._runtime.generate(one, sampling, name)]
        return outputs[-1].outputs[0].finish_reason

    async def both() -> list[Any]:
        return await asyncio.gather(
            asked(replace(good, token_ids=wrong), f"{fault}-wrong"), asked(good, f"{fault}-good")
        )

    found = asyncio.run_coroutine_threadsafe(both(), engine._loop).result(60)
    assert found == ["error", "length"]
    assert client.post("/v1/completions", json=body("completions", "a")).status_code == 200
