"""What clients may rely on whichever engine is behind the server: the embedded, vLLM, or a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from foreword.engine import EngineClient
from foreword.serve import ServeOptions, create_app
from tests.serve.behind import Behind

ASKED: dict[str, Any] = {"prompt": "once upon", "max_tokens": 6, "temperature": 0}
ASKED["extra_body"] = {"ignore_eos": True}


pytestmark = pytest.mark.engines("embedded", "scripted", "vllm", reason="all there are")


@pytest.fixture(scope="module")
def app(behind: Behind) -> Iterator[TestClient]:
    backbone, store = behind.backbone, behind.store
    store.save("one", backbone.capture(backbone.tokens("a text")))
    store.save("two", backbone.capture(backbone.tokens("another text")))
    options = ServeOptions(queue=4)
    with TestClient(create_app(behind.served, behind.engine, behind.registry(), options)) as app:
        yield app
    assert not behind.engine.accepts


@pytest.fixture(scope="module")
def client(app: TestClient) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://testserver/v1", api_key="none", http_client=app, max_retries=0
    )


def test_the_model_names_the_prefix(client: openai.OpenAI) -> None:
    names = ("tiny", "one", "two", "one")
    texts = [client.completions.create(model=name, **ASKED).choices[0].text for name in names]
    assert texts[1] == texts[3]
    assert len(set(texts)) == 3


def test_a_stream_says_what_a_whole_answer_says(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="one", n=3, **ASKED)
    pieces = ["", "", ""]
    options = {"include_usage": True}
    usage = None
    for chunk in client.completions.create(
        model="one",
        n=3,
        stream=True,
        stream_options=options,  # type: ignore[arg-type]
        **ASKED,
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert pieces == [choice.text for choice in whole.choices]
    assert usage == whole.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ASKED["prompt"]), 18)
    assert {choice.finish_reason for choice in whole.choices} == {"length"}


def test_chats_are_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="two", messages=[{"role": "user", "content": "hi"}], max_tokens=3
    )
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content is not None
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 3


def test_models_are_the_backbone_and_the_prefixes(client: openai.OpenAI) -> None:
    models = {one.id: one.model_dump()["parent"] for one in client.models.list()}
    assert models == {"tiny": None, "one": "tiny", "two": "tiny"}


@pytest.mark.parametrize("name", ["three", "a/b", "../one"])
def test_an_unknown_name_is_not_found_and_never_the_backbone(
    client: openai.OpenAI, name: str
) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=name, **ASKED)


def test_what_has_no_room_is_refused_with_openais_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="one", **{**ASKED, "prompt": "x" * 5000})
    assert refused.value.code == "context_length_exceeded"


def test_more_choices_than_are_allowed_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="5 choices are asked for, and 4 allowed"):
        client.completions.create(model="one", n=5, **ASKED)


def test_prefixes_come_and_go(app: TestClient, client: openai.OpenAI) -> None:
    stored = app.get("/v1/prefixes/one").json()
    assert app.delete("/v1/prefixes/two").status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="two", **ASKED)
    assert [one["name"] for one in app.get("/v1/prefixes").json()["data"]] == ["one"]
    assert stored["length"] == len("a text")


def test_watchers_are_told(app: TestClient) -> None:
    assert app.get("/health").json() == {"status": "ok"}
    assert app.get("/ready").json() == {"ready": True}
    text = app.get("/metrics").text
    for name in ("waiting", "running", "steps", "cache_bytes"):
        assert f"\nforeword_{name} " in text


def test_an_engine_that_is_lost_is_told_to_watchers(
    app: TestClient, engine: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "failure", "it broke")
    assert app.get("/health").status_code == 503
    assert "it broke" in app.get("/health").text
