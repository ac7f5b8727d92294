"""A message that is a row selects of a control prefix what `generate` selects for the same text."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

import foreword
from foreword.arithmetic.selection import UnseenValue
from foreword.description import Piece
from foreword.errors import DataError
from foreword.router import Router
from foreword.serve import ServeOptions, create_app
from foreword.store import PrefixStore
from tests.serve.behind import Behind

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
RECIPE = {"method": "prefix", "prompt": "{mr} ->", "target": " {ref}"}

OURS = pytest.mark.engines("embedded", reason="vLLM cannot select; that it refuses is tested below")


@pytest.fixture(scope="module")
def store(behind: Behind) -> PrefixStore:
    backbone = behind.backbone
    whole = backbone.capture(backbone.tokens("shared, kind, rude, 7, short"))
    names = ["", "mood=kind", "mood=rude", "mood=7", "length=short"]
    lengths = [8, 5, 6, 3, whole.length - 22]
    pieces = tuple(Piece(name, size) for name, size in zip(names, lengths, strict=True))
    control = whole.with_meta(pieces=pieces, combination="control")
    behind.store.save("task", control.with_meta(recipe=RECIPE))
    behind.store.save("plain", control)
    behind.store.save("one", backbone.capture(backbone.tokens("text")).with_meta(recipe=RECIPE))
    return behind.store


@pytest.fixture(scope="module")
def client(behind: Behind, store: PrefixStore) -> Iterator[TestClient]:
    with TestClient(create_app(*behind.again(), behind.registry(store))) as client:
        yield client


def chat(client: TestClient, model: str, content: str, **more: Any) -> httpx.Response:
    messages = [{"role": "user", "content": content}]
    body = {"model": model, "messages": messages, **GREEDY, **more}
    return client.post("/v1/chat/completions", json=body)


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["message"]["content"]
    return found.strip()


def generated(behind: Behind, content: str, prefix: foreword.Prefix) -> str:
    options = foreword.GenerateOptions(max_new_tokens=8)
    return foreword.generate(behind.backbone, [content], prefix, options)[0][0]


ROWS: list[tuple[dict[str, Any], dict[str, str]]] = [
    ({"mr": "once", "mood": "kind"}, {"mood": "kind"}),
    ({"mood": "rude", "mr": "once"}, {"mood": "rude"}),
    ({"mr": "once", "mood": 7}, {"mood": "7"}),
    ({"mr": "once", "mood": "rude", "length": "short"}, {"mood": "rude", "length": "short"}),
    ({"mr": "once", "mood": " ", "length": None}, {}),
    ({"mr": "once", "ref": "kind"}, {}),
    ({"mr": "once"}, {}),
]


@OURS
@pytest.mark.parametrize(("row", "values"), ROWS)
def test_a_row_selects_the_values_that_it_has(
    client: TestClient,
    behind: Behind,
    store: PrefixStore,
    row: dict[str, Any],
    values: dict[str, str],
) -> None:
    task, content = store.load("task"), json.dumps(row)
    found = chat(client, "task", content)
    assert said(found) == generated(behind, content, task)
    assert said(found) == generated(behind, content, task.select(values))
    assert "foreword-notice" not in found.headers
    half = chat(client, "task", content, strength=0.5)
    assert said(half) == generated(behind, content, task.select(values).strength(0.5))


@OURS
def test_what_is_selected_changes_the_answer(client: TestClient) -> None:
    """Else the tests above would show nothing."""
    told = {said(chat(client, "task", json.dumps(row))) for row, _ in ROWS}
    assert len(told) >= 3


@OURS
def test_a_text_has_the_shared_part(client: TestClient, behind: Behind, store: PrefixStore) -> None:
    shared = store.load("task").select({})
    for content in ("once", "mood=kind", '["kind"]', '{"mood": "kind"}'):
        assert said(chat(client, "task", content)) == generated(behind, content, shared)


@OURS
def test_what_the_model_names_wins(client: TestClient, behind: Behind, store: PrefixStore) -> None:
    rude, kind = (json.dumps({"mr": "once", "mood": mood}) for mood in ("rude", "kind"))
    assert said(chat(client, "task[mood=kind]", rude)) == said(chat(client, "task", kind))
    assert said(chat(client, "task[mood=kind]", rude)) != said(chat(client, "task", rude))
    short = generated(behind, rude, store.load("task").select(length="short"))
    assert said(chat(client, "task[length=short]", rude)) == short


@OURS
@pytest.mark.parametrize("stream", [False, True])
def test_an_unseen_value_leaves_the_shared_part_and_says_so(
    client: TestClient, behind: Behind, store: PrefixStore, stream: bool
) -> None:
    content = json.dumps({"mr": "once", "mood": "sly, or [not]=\u00e9"})
    found = chat(client, "task", content, stream=stream)
    told = found.headers["foreword-notice"]
    assert told.startswith(
        "task was trained for mood = 'kind', 'rude', '7', and not for 'sly, or [not]="
    )
    assert "\\xe9" in told
    if not stream:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnseenValue)
            assert said(found) == generated(behind, content, store.load("task"))


@OURS
@pytest.mark.parametrize("value", [["kind"], "x" * 300, "a\nb"])
def test_a_value_that_cannot_be_read_is_refused_as_by_generate(
    client: TestClient, behind: Behind, store: PrefixStore, value: object
) -> None:
    content = json.dumps({"mr": "once", "mood": value})
    with pytest.raises(DataError) as refusal:
        generated(behind, content, store.load("task"))
    answer = chat(client, "task", content)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert message.removeprefix("input 1: ") in str(refusal.value)
    assert "'mood'" in message


@OURS
def test_what_is_taken_as_it_is_selects_nothing(client: TestClient) -> None:
    """A completion's prompt, and a chat with a prefix without templates, are no rows."""
    row = json.dumps({"mr": "once", "mood": "rude"})
    told = []
    for mood in ("rude", "sly"):
        messages = [{"role": "user", "content": row.replace("rude", mood)}]
        for model in ("plain", "plain[mood=kind]"):
            chats = client.post(
                "/v1/chat/completions", json={"model": model, "messages": messages, **GREEDY}
            )
            assert chats.status_code == 200, chats.text
            assert "foreword-notice" not in chats.headers  # as it would for 'sly', were it a row
    for model in ("task", "task[mood=rude]"):
        body = {"model": model, "prompt": row, **GREEDY}
        told.append(client.post("/v1/completions", json=body).json()["choices"][0]["text"])
    assert told[0] != told[1]


@OURS
def test_a_routed_message_selects_too(behind: Behind, store: PrefixStore) -> None:
    router = Router.fit(behind.backbone, {"task": ["once", "twice"], "one": ["77 88", "12 34"]})
    options = ServeOptions(router=("router", router))
    with TestClient(create_app(*behind.again(), behind.registry(store), options)) as client:
        for mood in ("kind", "rude", "sly"):
            content = json.dumps({"mr": "once", "mood": mood})
            routed = chat(client, "router", content)
            direct = chat(client, routed.headers["foreword-routed"], content)
            assert said(routed) == said(direct)
            assert routed.headers.get("foreword-notice") == direct.headers.get("foreword-notice")


@pytest.mark.engines("vllm", reason="this is what another engine does not do")
def test_vllm_refuses_what_selects(client: TestClient) -> None:
    answer = chat(client, "task", json.dumps({"mr": "once", "mood": "kind"}))
    assert answer.status_code == 400
    assert "foreword compose" in answer.json()["error"]["message"]
