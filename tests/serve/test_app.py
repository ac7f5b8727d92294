"""The server as its clients see it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from fastapi.testclient import TestClient

import foreword
from foreword.backbone.served import Served
from foreword.data.encode import Truncated
from foreword.engine import Request, Sampling, Weighted
from foreword.serve import ServeOptions, create_app
from foreword.serve.completions import Completions
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.lone import generated
from tests.serve.behind import ECHO, Behind

GREEDY = {"temperature": 0, "max_tokens": 8}
MODELS = ["tiny", pytest.param("one", marks=ECHO)]
"""The backbone, and a prefix where prompts under one have log-probabilities."""


@pytest.fixture(scope="module")
def store(behind: Behind) -> PrefixStore:
    backbone, store = behind.backbone, behind.store
    for name in ("one", "two"):
        store.save(name, backbone.capture(backbone.tokens(f"text of {name}")))
    made = backbone.capture(backbone.tokens("a task")).with_meta(
        recipe={"method": "prefix", "prompt": "{mr} ->", "target": " {ref}"}
    )
    store.save("task", made)
    recipe = {**made.meta.recipe, "max_length": 24}
    store.save("short", made.with_meta(recipe=recipe, training={"longest_target": 10}))
    return store


@pytest.fixture(scope="module")
def app(behind: Behind, store: PrefixStore) -> Iterator[TestClient]:
    options = ServeOptions(queue=12, body_bytes=20_000)
    made = create_app(behind.served, behind.engine, behind.registry(store), options)
    with TestClient(made) as client:
        yield client


@pytest.fixture(scope="module")
def client(app: TestClient) -> openai.OpenAI:
    """The official client, over the application itself."""
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=app)


def written(behind: Behind, prefix: foreword.Prefix | None, prompt: str) -> str:
    """What transformers' own `generate` writes under a prefix."""
    backbone: Any = behind.backbone
    held = () if prefix is None else (Weighted(prefix),)
    sampling = Sampling(max_tokens=GREEDY["max_tokens"], temperature=0)
    tokens = generated(backbone, Request(tuple(backbone.tokens(prompt)), sampling, held))
    return str(backbone.tokenizer.decode(tokens, skip_special_tokens=True))


def test_the_model_chooses_the_prefix(
    client: openai.OpenAI, behind: Behind, store: PrefixStore
) -> None:
    asked: dict[str, Any] = {**GREEDY, "extra_body": {"ignore_eos": True}}
    texts = {
        name: client.completions.create(model=name, prompt="once upon", **asked).choices[0].text
        for name in ("tiny", "one", "two", "one")
    }
    assert texts == {
        name: written(behind, None if name == "tiny" else store.load(name), "once upon")
        for name in texts
    }
    assert len(set(texts.values())) == 3


def test_models_are_listed_with_their_root_and_parent(client: openai.OpenAI) -> None:
    models = {model.id: model.model_dump() for model in client.models.list()}
    assert list(models) == ["tiny", "one", "short", "task", "two"]
    assert (models["tiny"]["root"], models["tiny"]["parent"]) == ("tiny", None)
    assert (models["one"]["root"], models["one"]["parent"]) == ("tiny", "tiny")
    assert client.models.retrieve("one").id == "one"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("three")


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model is called 'three'"):
        client.completions.create(model="three", prompt="x")


def test_streams_say_what_whole_answers_say(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "one", "prompt": "once", "n": 2, "seed": 3, "max_tokens": 12}
    asked["extra_body"] = {"ignore_eos": True}
    whole = client.completions.create(**asked)
    texts = ["", ""]
    finish: dict[int, str] = {}
    usage = None
    for chunk in client.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                finish[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert finish == {0: "length", 1: "length"}
    assert usage == whole.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 24)


def test_chats_take_the_chat_template(client: openai.OpenAI, backbone: foreword.Backbone) -> None:
    messages: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
    ]
    found = client.chat.completions.create(model="one", messages=messages, **GREEDY)
    text = "<s>system: be brief</s><s>user: hello</s><s>assistant: "
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
    same = client.completions.create(model="one", prompt=ids, **GREEDY)
    assert found.choices[0].message.content == same.choices[0].text
    streamed = client.chat.completions.create(model="one", messages=messages, stream=True, **GREEDY)
    pieces = [chunk.choices[0].delta.content or "" for chunk in streamed]
    assert "".join(pieces) == found.choices[0].message.content


def test_a_prefix_with_templates_is_asked_in_them(client: openai.OpenAI) -> None:
    message: Any = [{"role": "user", "content": "name[Zizzi]"}]
    found = client.chat.completions.create(model="task", messages=message, **GREEDY)
    same = client.completions.create(model="task", prompt="name[Zizzi] ->", **GREEDY)
    assert found.choices[0].message.content == same.choices[0].text
    with pytest.raises(openai.BadRequestError, match="one message of the user"):
        client.chat.completions.create(model="task", messages=message * 2)


def test_a_long_message_is_cut_as_prompts_were_in_training(client: openai.OpenAI) -> None:
    """The recipe's max_length was passed over: prompts that `generate` cut were read whole."""
    message: Any = [{"role": "user", "content": "name[A very long name of a place]"}]
    with pytest.warns(Truncated, match="whose max_length is 24"):
        found = client.chat.completions.create(model="short", messages=message, **GREEDY)
    whole = f"{message[0]['content']} ->"
    same = client.completions.create(model="task", prompt=whole[-14:], **GREEDY)
    assert found.usage is not None
    assert found.usage.prompt_tokens == 14
    assert found.choices[0].message.content == same.choices[0].text
    as_it_is = client.completions.create(model="short", prompt=whole, **GREEDY)
    assert as_it_is.usage is not None
    assert as_it_is.usage.prompt_tokens == len(whole)


def test_the_chat_templates_end_of_turn_ends_an_answer(
    client: openai.OpenAI, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base model's own end of sequence is another token, and answers ran on after their turn."""
    template = served.tokenizer.chat_template.replace("</s>", "<s>")  # type: ignore[union-attr]
    monkeypatch.setattr(served.tokenizer, "chat_template", template)
    message: Any = [{"role": "user", "content": "hello"}]
    asked: dict[str, Any] = {**GREEDY, "messages": message, "logit_bias": {"0": 100}}
    ended = client.chat.completions.create(model="tiny", **asked)
    assert ended.usage is not None
    assert (ended.choices[0].finish_reason, ended.usage.completion_tokens) == ("stop", 1)
    asked = {**GREEDY, "prompt": "hello", "logit_bias": {"0": 100}}
    assert client.completions.create(model="tiny", **asked).choices[0].finish_reason == "length"


@pytest.mark.parametrize("model", MODELS)
def test_log_probabilities_and_echo(client: openai.OpenAI, model: str) -> None:
    found = client.completions.create(
        model=model, prompt="abc", logprobs=2, echo=True, max_tokens=0, temperature=0
    )
    told = found.choices[0].logprobs
    assert found.choices[0].text == "abc"
    assert told is not None
    assert told.tokens == ["a", "b", "c"]
    assert told.text_offset == [0, 1, 2]
    assert told.token_logprobs is not None
    assert told.token_logprobs[0] is None
    assert all(value < 0 for value in told.token_logprobs[1:])
    assert found.usage is not None
    assert found.usage.completion_tokens == 0
    chat = client.chat.completions.create(
        model="one",
        messages=[{"role": "user", "content": "x"}],
        logprobs=True,
        top_logprobs=3,
        max_completion_tokens=2,
    )
    content = chat.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert [len(one.top_logprobs) for one in content.content] == [3, 3]


def test_the_bytes_of_an_answer_s_tokens_are_its_text(client: openai.OpenAI) -> None:
    """A random model writes bytes that are parts of characters; each was said to be U+FFFD's three."""
    chat = client.chat.completions.create(
        model="one",
        messages=[{"role": "user", "content": "x"}],
        logprobs=True,
        top_logprobs=20,
        max_tokens=40,
        seed=1,
        extra_body={"ignore_eos": True},
    )
    told = chat.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert len(told.content) == 40
    found = b"".join(bytes(one.bytes or ()) for one in told.content)
    assert found.decode(errors="replace") == chat.choices[0].message.content
    for one in told.content:
        for spelled in (one, *one.top_logprobs):
            text = spelled.token if spelled.bytes is None else bytes(spelled.bytes)
            if isinstance(text, bytes) and "\\x" not in spelled.token:
                assert spelled.token.encode() == text
    assert any(one.token.startswith("\\x") and len(one.bytes or ()) == 1 for one in told.content)


@pytest.mark.parametrize("stop", [None, ["ab"]])
def test_offsets_of_a_stream_are_those_of_the_whole_answer(
    client: openai.OpenAI, stop: list[str] | None
) -> None:
    """They were 0 in every chunk. vLLM holds its own to the same."""
    asked: dict[str, Any] = {"model": "one", "prompt": "日", "n": 2, "seed": 3, "max_tokens": 20}
    asked |= {"logprobs": 1, "stop": stop, "extra_body": {"ignore_eos": True}}
    whole = [choice.logprobs for choice in client.completions.create(**asked).choices]
    found: list[list[int]] = [[], []]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            found[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
    assert found == [told.text_offset if told else None for told in whole]
    assert len(found[0]) == 20
    assert found[0][-1] > 5


@pytest.mark.parametrize("model", MODELS)
def test_offsets_under_echo_point_into_the_text(client: openai.OpenAI, model: str) -> None:
    """BOS and parts of characters were counted, which are not in the text."""
    found = client.completions.create(
        model=model, prompt=[0, *(byte for byte in ids_of("a日b"))], logprobs=0, echo=True, **GREEDY
    )
    (choice,) = found.choices
    told = choice.logprobs
    assert choice.text.startswith("a日b")
    assert told is not None
    assert told.tokens is not None
    assert told.tokens[:6] == ["<s>", "a", "bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5", "b"]
    assert told.text_offset is not None
    assert told.text_offset[:7] == [0, 0, 1, 1, 1, 2, 3]
    for token, place in zip(told.tokens, told.text_offset, strict=True):
        assert token.startswith(("bytes:", "<")) or choice.text.startswith(token, place)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("logprobs", [0, 1, 5])
def test_the_chosen_token_is_among_the_likeliest(
    client: openai.OpenAI, model: str, logprobs: int
) -> None:
    """As vLLM's own tests say: one at 0, and 5 or 6 at 5. It was null at 0."""
    found = client.completions.create(
        model=model, prompt="once", logprobs=logprobs, max_tokens=8, seed=5, echo=True
    )
    told = found.choices[0].logprobs
    assert told is not None
    first, *rest = zip(
        told.tokens or (), told.token_logprobs or (), told.top_logprobs or (), strict=True
    )
    assert first[1:] == (None, None)
    for token, value, top in rest:
        assert top is not None
        assert top[token] == value
        assert max(1, logprobs) <= len(top) <= logprobs + 1


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer()(text)["input_ids"]
    return ids


def test_several_prompts_and_stop_texts(client: openai.OpenAI) -> None:
    both = client.completions.create(model="one", prompt=["once", "twice"], n=2, **GREEDY)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text != both.choices[2].text
    text = both.choices[0].text
    cut = client.completions.create(model="one", prompt="once", stop=text[3], **GREEDY)
    assert cut.choices[0].text == text[: text.index(text[3])]
    assert cut.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"best_of": 2}, "best_of"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"stop": [""]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"echo": True, "stream": True}, "echo"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    app: TestClient, body: dict[str, Any], field: str
) -> None:
    answer = app.post("/v1/completions", json={"model": "one", "prompt": "x", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert field in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"{", 400, "JSON"),
        (b"\xff\xfe", 400, ""),
        (b'{"model": "one", "prompt": "' + b"x" * 30_000 + b'"}', 413, "larger than 20000"),
        (json.dumps({"model": "one", "prompt": "x" * 300}).encode(), 400, "no room"),
        (json.dumps({"model": "one", "prompt": [5, 10**6]}).encode(), 400, "not in the vocabulary"),
        (json.dumps({"model": "../one", "prompt": "x"}).encode(), 404, "no model is called"),
    ],
)
def test_hostile_bodies_are_refused(
    app: TestClient, content: bytes, status: int, message: str
) -> None:
    headers = {"content-type": "application/json"}
    answer = app.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_a_whole_number_may_be_spelled_with_a_point(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "one", "prompt": "once", "temperature": 0}
    found = client.completions.create(**asked, max_tokens=3.0, n=2.0)  # type: ignore[call-overload]
    same = client.completions.create(**asked, max_tokens=3, n=2)
    assert [one.text for one in found.choices] == [one.text for one in same.choices]


def test_a_full_queue_says_when_to_come_back(
    app: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = []
    asked = Completions.asked

    async def full(service: Completions, *others: Any) -> Any:
        service.open += 12
        services.append(service)
        return await asked(service, *others)

    body = {"model": "one", "prompt": "x", "n": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Completions, "asked", full)
        answer = app.post("/v1/completions", json=body)
    services[0].open -= 12
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert app.post("/v1/completions", json=body).status_code == 200


def test_what_never_fits_is_not_asked_to_come_back(app: TestClient) -> None:
    """It was answered 429 and "try again later", which clients did."""
    answer = app.post("/v1/completions", json={"model": "one", "prompt": "x", "n": 13})
    assert answer.status_code == 400
    assert "retry-after" not in answer.headers
    assert answer.json()["error"]["param"] == "n"


def test_prefixes_are_managed_while_it_runs(
    app: TestClient, backbone: foreword.Backbone, tmp_path: Path
) -> None:
    file = tmp_path / "new.safetensors"
    first, second = (backbone.capture(backbone.tokens(text)) for text in ("first", "other"))

    def put(prefix: foreword.Prefix, **options: Any) -> Any:
        foreword.format.save(prefix, file)
        return app.put("/v1/prefixes/new", files={"file": file.read_bytes()}, params=options)

    def text() -> str:
        body = {"model": "new", "prompt": "once", **GREEDY}
        return str(app.post("/v1/completions", json=body).json()["choices"][0]["text"])

    assert put(first).json()["digest"] == first.digest
    before = text()
    assert put(second).status_code == 409
    assert put(second, overwrite=True).json()["digest"] == second.digest
    assert text() != before
    assert app.get("/v1/prefixes/new").json()["length"] == 5
    assert app.delete("/v1/prefixes/new").json() == {"name": "new", "deleted": True}
    assert app.delete("/v1/prefixes/new").status_code == 404
    loaded = app.post("/v1/load_prefix", json={"name": "again", "path": str(file)})
    assert loaded.json()["digest"] == second.digest
    app.delete("/v1/prefixes/again")


@pytest.mark.engines("embedded", reason="vLLM's workers read prefixes, so the server pins none")
def test_a_prefix_is_pinned_until_it_is_not(app: TestClient) -> None:
    assert app.post("/v1/pin_prefix", json={"name": "one"}).json() == {
        "name": "one",
        "pinned": True,
    }
    listed = {one["name"]: one for one in app.get("/v1/prefixes").json()["data"]}
    assert listed["one"] == {"name": "one", "resident": True, "pinned": True}
    assert app.post("/v1/unpin_prefix", json={"name": "one"}).status_code == 200
    listed = {one["name"]: one for one in app.get("/v1/prefixes").json()["data"]}
    assert listed["one"]["pinned"] is False


@pytest.mark.parametrize("content", [b"", b"no prefix", b"\x08" + b"\0" * 7 + b"{}      "])
def test_hostile_files_are_refused(app: TestClient, content: bytes) -> None:
    answer = app.put("/v1/prefixes/bad", files={"file": content})
    assert answer.status_code == 400
    assert app.get("/v1/prefixes/bad").status_code == 404


@pytest.mark.parametrize(("reason", "status"), [(errno.ENOSPC, 507), (errno.EROFS, 500)])
def test_a_disk_that_refuses_is_the_servers_fault(
    app: TestClient,
    backbone: foreword.Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reason: int,
    status: int,
) -> None:
    file = tmp_path / "p.safetensors"
    foreword.format.save(backbone.capture(backbone.tokens("text")), file)
    content = file.read_bytes()

    def refuse(_: int) -> None:
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patched:
        patched.setattr("foreword.files.os.fsync", refuse)
        answer = app.put("/v1/prefixes/full", files={"file": content})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "server_error"
    assert app.get("/v1/prefixes/full").status_code == 404
    assert app.put("/v1/prefixes/full", files={"file": content}).status_code == 200
    app.delete("/v1/prefixes/full")


def test_a_prefix_of_another_backbone_is_refused(app: TestClient, tmp_path: Path) -> None:
    other = foreword.Backbone(tiny_model(num_hidden_layers=2), byte_tokenizer(), name="other")
    file = tmp_path / "other.safetensors"
    foreword.format.save(other.capture(other.tokens("text")), file)
    answer = app.put("/v1/prefixes/other", files={"file": file.read_bytes()})
    assert answer.status_code == 400


def test_a_prefix_that_labels_is_refused(
    app: TestClient, backbone: foreword.Backbone, tmp_path: Path
) -> None:
    head = foreword.Head("classify", ("a", "b"), "last", torch.zeros(2, 64), torch.zeros(2))
    file = tmp_path / "labels.safetensors"
    foreword.save_prefix(backbone.capture([3, 4]).to(torch.float32).with_head(head), file)
    answer = app.put("/v1/prefixes/labels", files={"file": file.read_bytes()})
    assert answer.status_code == 400
    assert "carries a head" in answer.json()["error"]["message"]


def test_health_readiness_and_counters(app: TestClient) -> None:
    assert app.get("/health").json() == {"status": "ok"}
    assert app.get("/ready").json() == {"ready": True}
    app.post("/v1/completions", json={"model": "two", "prompt": "x", **GREEDY})
    text = app.get("/metrics").text
    assert 'foreword_generated_tokens_total{model="two"}' in text
    assert 'foreword_requests_total{finish="length",model="two"}' in text
    assert "foreword_time_to_first_token_seconds_bucket" in text
    assert "foreword_running 0.0" in text


def test_a_key_is_asked_for(behind: Behind, store: PrefixStore) -> None:
    served, engine = behind.again()
    options = ServeOptions(api_key="secret")
    with TestClient(create_app(served, engine, behind.registry(store), options)) as client:
        assert client.get("/v1/models").status_code == 401
        wrong = {"authorization": "Bearer other"}
        assert client.get("/v1/models", headers=wrong).status_code == 401
        right = {"authorization": "Bearer secret"}
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/health").status_code == 200
    assert not engine.accepts
