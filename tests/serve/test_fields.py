"""The fields of requests, each as the guide's table says: served, without effect, or refused by name."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from openai.types import completion_create_params
from openai.types.chat import ChatCompletionMessage
from openai.types.chat import completion_create_params as chat_create_params

from foreword.engine import Engine, Limits
from foreword.serve import create_app, schemas
from tests.serve.behind import Behind, tiny_backbone

GUIDE = Path(__file__).parents[2] / "docs/how-to/serving.md"
STATES = ("served", "unused", "refused")
PATHS = {"completions": "/v1/completions", "chats": "/v1/chat/completions"}
PLACES = {
    "both": ("completions", "chats"),
    "completions": ("completions",),
    "chats": ("chats",),
    "a chat's messages": ("messages",),
}
BASE: dict[str, Any] = {"model": "restaurants", "temperature": 0, "max_tokens": 4}
SAID: dict[str, Any] = {"role": "user", "content": "hi"}


class Example(NamedTuple):
    """A field, or several that go together, in one kind of body."""

    place: str
    state: str
    fields: dict[str, Any]


def table() -> Iterator[Example]:
    """The guide's table."""
    for line in GUIDE.read_text(encoding="utf-8").splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name in PLACES and len(cells) == len(STATES):
            for place in PLACES[name]:
                for state, cell in zip(STATES, cells, strict=True):
                    for field in re.findall(r"`([^`]+)`", cell):
                        yield Example(place, state, json.loads(f"{{{field}}}"))


EXAMPLES = list(table())


def named(place: str, *states: str) -> set[str]:
    """Names of the fields that the table has for a kind of body."""
    found = [one for one in EXAMPLES if one.place == place and one.state in (states or STATES)]
    return {name for one in found for name in one.fields}


@pytest.fixture(scope="module")
def client(behind: Behind) -> Iterator[TestClient]:
    backbone, store = behind.backbone, behind.store
    store.save("restaurants", backbone.capture(backbone.tokens("text")))
    with TestClient(create_app(behind.served, behind.engine, behind.registry(store))) as client:
        yield client


def asked(client: TestClient, place: str, fields: dict[str, Any]) -> Any:
    """The answer to a body with these fields."""
    own: dict[str, Any]
    if place == "completions":
        own = {"prompt": "hi", **fields}
    elif place == "chats":
        own = {"messages": [SAID], **fields}
    else:
        own = {"messages": [{**SAID, **fields}]}
    kept = dict(BASE)
    if fields.get("max_completion_tokens"):
        del kept["max_tokens"]
    return client.post(PATHS.get(place, PATHS["chats"]), json={**kept, **own})


def text(answer: Any) -> str:
    """What an answer says, whole or as a stream."""
    assert answer.status_code == 200, answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        (choice,) = answer.json()["choices"]
        return str(choice["text"] if "text" in choice else choice["message"]["content"])
    events = [
        json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")
    ]
    pieces = [choice for event in events for choice in event["choices"]]
    return "".join(p["text"] if "text" in p else p["delta"].get("content", "") for p in pieces)


def test_the_table_has_every_field_of_ours_and_of_openai_s() -> None:
    hints = typing.get_type_hints
    for place, model, theirs in (
        ("completions", schemas.CompletionRequest, completion_create_params),
        ("chats", schemas.ChatRequest, chat_create_params),
    ):
        assert named(place, "served", "unused") == set(model.model_fields)
        assert set(hints(theirs.CompletionCreateParamsBase)) <= named(place)
    assert named("messages", "served", "unused") == {*schemas.Message.model_fields, "refusal"}


@pytest.mark.parametrize("one", [one for one in EXAMPLES if one.state == "served"], ids=str)
def test_what_is_served_is_answered(client: TestClient, one: Example) -> None:
    assert asked(client, one.place, one.fields).status_code == 200


@pytest.mark.parametrize("one", [one for one in EXAMPLES if one.state == "unused"], ids=str)
def test_what_changes_nothing_changes_nothing(client: TestClient, one: Example) -> None:
    assert text(asked(client, one.place, one.fields)) == text(asked(client, one.place, {}))


@pytest.mark.parametrize("one", [one for one in EXAMPLES if one.state == "refused"], ids=str)
def test_what_is_refused_is_refused_by_name(client: TestClient, one: Example) -> None:
    answer = asked(client, one.place, one.fields)
    (name,) = one.fields
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert name in error["message"]
    assert error["param"] == ("messages" if one.place == "messages" else name)
    assert error["code"]


@pytest.mark.parametrize("place", PATHS)
def test_a_null_is_a_field_that_is_not_there(client: TestClient, place: str) -> None:
    """`n`, `stream`, `logprobs`, the penalties and `echo` were refused."""
    nulls: dict[str, Any] = dict.fromkeys(named(place) | {"function", "extra_of_a_client"})
    for name in ("model", "prompt" if place == "completions" else "messages", *BASE):
        nulls.pop(name, None)
    assert text(asked(client, place, nulls)) == text(asked(client, place, {}))
    nulls = {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": None}}
    assert text(asked(client, place, nulls)) == text(asked(client, place, {}))
    assert text(asked(client, place, {"logit_bias": {"5": None}})) == text(asked(client, place, {}))
    answer = client.post(PATHS[place], json={"model": None})
    assert answer.json()["error"]["code"] == "missing_required_parameter"


def test_an_answer_goes_back_as_a_message(client: TestClient) -> None:
    """As OpenAI's client dumps it: with nulls for what it does not have."""
    dumped = ChatCompletionMessage(role="assistant", content="yes").model_dump()
    assert None in dumped.values()
    answer = client.post(PATHS["chats"], json={**BASE, "messages": [SAID, dumped, SAID]})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("place", "fields", "code"),
    [
        ("completions", {"prompt": "x" * 300}, "context_length_exceeded"),
        ("chats", {"messages": [{**SAID, "content": "x" * 300}]}, "context_length_exceeded"),
        ("completions", {"model": "none"}, "model_not_found"),
        ("completions", {"prompt": 5}, "invalid_type"),
        ("completions", {"n": "2"}, "invalid_type"),
        ("completions", {"temperature": -1}, "invalid_value"),
        ("completions", {"stop": "x" * 1025}, "string_above_max_length"),
        ("completions", {"stop": ["a", "b", "c", "d", "e"]}, "array_above_max_length"),
        ("completions", {"best": 1}, "unsupported_parameter"),
        ("chats", {"tool_choice": "auto"}, "unsupported_value"),
        ("chats", {"top_logprobs": 1}, "invalid_value"),
    ],
)
def test_code_is_openai_s_word(
    client: TestClient, place: str, fields: dict[str, Any], code: str
) -> None:
    """It was the status: LiteLLM's fallbacks for a context that is exceeded never fired."""
    answer = asked(client, place, fields)
    assert answer.json()["error"]["code"] == code
    if code == "context_length_exceeded":
        assert answer.status_code == 400
        # LiteLLM tells it by this sentence (exception_mapping_utils.py).
        told = answer.json()["error"]["message"].lower()
        assert "this model's maximum context length is 256 tokens" in told


@pytest.mark.engines(
    "embedded", reason="it does not start with less memory than one request's context takes"
)
def test_what_the_engine_has_no_memory_for_has_the_word_that_clients_know(behind: Behind) -> None:
    """It had none; and a request that says no max_tokens was refused where the context is larger."""
    backbone = tiny_backbone()
    with Engine(backbone, Limits(rows=2, cache_tokens=100)) as engine:
        client = TestClient(create_app(backbone, engine, behind.registry()))
        asked = {"model": "tiny", "prompt": "a" * 80, "ignore_eos": True}
        wide = client.post("/v1/completions", json={**asked, "max_tokens": 90})
        assert wide.status_code == 400
        assert wide.json()["error"]["code"] == "context_length_exceeded"
        left = client.post(
            "/v1/chat/completions",
            json={
                "model": "tiny",
                "messages": [{"role": "user", "content": "a"}],
                "ignore_eos": True,
            },
        )
        assert left.status_code == 200
        assert left.json()["usage"]["total_tokens"] == 100
