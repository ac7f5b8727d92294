"""A router that is served as a model: each input's prefix is chosen by the input."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from foreword.engine import Engine
from foreword.errors import ForewordError, MismatchError, ServeError, StoreError
from foreword.router import Router
from foreword.serve import ServeOptions, create_app
from foreword.store import PrefixStore
from tests.serve.behind import Behind, smaller_backbone
from tests.serve.leaving import leave

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
NUMBERS = [f"{i}{i + 3}{7 * i}" for i in range(12)]
WORDS = [f"{a} {b} cake" for a in ("a", "the", "my") for b in ("red", "large", "sweet", "old")]
ASKED = {"numbers": NUMBERS[9], "words": WORDS[5]}
"""By prefix an input that is routed to it, which is checked below."""

OURS = pytest.mark.engines(
    "embedded", reason="vLLM computes no features; that it refuses routers is tested below"
)


@pytest.fixture(scope="module")
def store(behind: Behind) -> PrefixStore:
    backbone = behind.backbone
    behind.store.save("numbers", backbone.capture(backbone.tokens("text of numbers")))
    made = backbone.capture(backbone.tokens("words, words"))
    recipe = {"method": "prefix", "prompt": "{input} ->", "target": " {output}"}
    behind.store.save("words", made.with_meta(recipe=recipe))
    return behind.store


@pytest.fixture(scope="module")
def router(behind: Behind) -> Router:
    made = Router.fit(behind.backbone, {"numbers": NUMBERS[::2], "words": WORDS[::2]})
    found = made.route(behind.backbone, [*ASKED.values()])
    assert [one.name for one in found] == [*ASKED]
    return made


@pytest.fixture(scope="module")
def client(behind: Behind, store: PrefixStore, router: Router) -> Iterator[TestClient]:
    options = ServeOptions(queue=8, router=("router", router))
    with TestClient(create_app(*behind.again(), behind.registry(store), options)) as client:
        yield client


@pytest.fixture
def engine(behind: Behind) -> Engine:
    """An engine of the test's own, whose features it may watch."""
    return behind.embedded()


@pytest.fixture
def served(
    behind: Behind, engine: Engine, store: PrefixStore, router: Router
) -> Callable[..., FastAPI]:
    """Makes an application over that engine, of a server's options."""

    def made(**options: Any) -> FastAPI:
        given = ServeOptions(router=("router", router), **options)
        return create_app(engine.backbone, engine, behind.registry(store), given)

    return made


def never(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Future[torch.Tensor]]:
    """What is asked of an engine's features from now on, none of which is ever computed."""
    asked: list[Future[torch.Tensor]] = []

    def of(_: object) -> Future[torch.Tensor]:
        asked.append(Future())
        return asked[-1]

    monkeypatch.setattr(engine.features, "of", of)
    return asked


def counted(client: TestClient, name: str, finish: str) -> float:
    """How often a model's requests ended in this way."""
    label = f'foreword_requests_total{{finish="{finish}",model="{name}"}} '
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(label)) for line in lines if line.startswith(label))


def complete(client: TestClient, model: str, prompt: Any, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": prompt, **GREEDY, **more}
    return client.post("/v1/completions", json=body)


def chat(client: TestClient, model: str, *turns: tuple[str, str], **more: Any) -> httpx.Response:
    messages = [{"role": role, "content": content} for role, content in turns]
    body = {"model": model, "messages": messages, **GREEDY, **more}
    return client.post("/v1/chat/completions", json=body)


def told(answer: httpx.Response) -> dict[str, Any]:
    """An answer's body without what is of its own."""
    assert answer.status_code == 200, answer.text
    return {key: value for key, value in answer.json().items() if key not in ("id", "created")}


@OURS
@pytest.mark.parametrize("name", [*ASKED])
@pytest.mark.parametrize("more", [{}, {"strength": 0.5}, {"n": 2, "seed": 1}, {"logprobs": 1}])
def test_a_completion_is_that_of_the_prefix_it_is_routed_to(
    client: TestClient, behind: Behind, name: str, more: dict[str, Any]
) -> None:
    wanted = complete(client, name, ASKED[name], **more)
    ids = behind.backbone.tokens(ASKED[name])
    for prompt in (ASKED[name], [ASKED[name]]):
        found = complete(client, "router", prompt, **more)
        assert told(found) == told(wanted)
        assert found.headers["foreword-routed"] == name
    assert told(complete(client, "router", ids, **more)) == told(
        complete(client, name, ids, **more)
    )
    assert "foreword-routed" not in wanted.headers


@OURS
def test_each_prompt_of_a_list_is_routed_by_itself(client: TestClient) -> None:
    names = ["words", "numbers", "words"]
    found = complete(client, "router", [ASKED[name] for name in names], n=2)
    assert found.headers["foreword-routed"] == "words, numbers, words"
    assert found.json()["model"] == "router"
    texts = [choice["text"] for choice in found.json()["choices"]]
    wanted = {name: complete(client, name, ASKED[name]).json() for name in ASKED}
    assert texts == [wanted[name]["choices"][0]["text"] for name in names for _ in range(2)]
    usage = [wanted[name]["usage"]["prompt_tokens"] for name in names]
    assert found.json()["usage"]["prompt_tokens"] == sum(usage)


@OURS
@pytest.mark.parametrize("name", [*ASKED])
def test_a_chat_is_routed_by_the_users_last_message(client: TestClient, name: str) -> None:
    asked = ("user", ASKED[name])
    found = chat(client, "router", asked)
    assert told(found) == told(chat(client, name, asked))
    assert found.headers["foreword-routed"] == name


@OURS
def test_what_was_said_before_does_not_count(client: TestClient) -> None:
    turns = (
        ("system", WORDS[0]),
        ("user", WORDS[1]),
        ("assistant", "yes"),
        ("user", ASKED["numbers"]),
    )
    assert told(chat(client, "router", *turns)) == told(chat(client, "numbers", *turns))


@OURS
def test_a_stream_is_routed_and_says_so(client: TestClient) -> None:
    found = complete(client, "router", ASKED["words"], stream=True)
    assert found.headers["foreword-routed"] == "words"
    pieces = [json.loads(one[6:]) for one in found.text.split("\n\n")[:-2]]
    assert {piece["model"] for piece in pieces} == {"words"}
    text = "".join(piece["choices"][0]["text"] for piece in pieces)
    assert text == complete(client, "words", ASKED["words"]).json()["choices"][0]["text"]


@OURS
def test_features_are_of_what_a_router_is_fitted_on_and_no_more_than_a_step_takes(
    behind: Behind,
    served: Callable[..., FastAPI],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a JSON object the values; what is written is under the prefix as under its name."""
    asked: list[list[int]] = []
    of = engine.features.of
    monkeypatch.setattr(engine.features, "of", lambda ids: asked.append(ids) or of(ids))
    row = json.dumps({"input": ASKED["words"], "more": 3})
    long = " ".join(WORDS)
    tokens = behind.backbone.tokens
    with TestClient(served()) as client:
        found = chat(client, "router", ("user", row))
        assert told(found) == told(chat(client, "words", ("user", row)))
        assert complete(client, "router", row).status_code == 200
        assert told(complete(client, "router", long)) == told(complete(client, "words", long))
        assert engine.features.most == 32
    values = tokens(f"{ASKED['words']}\n3")
    assert asked == [values, values, tokens(long)[:32]]


@OURS
def test_an_input_longer_than_the_context_is_routed_by_its_beginning_and_refused(
    client: TestClient,
) -> None:
    error = complete(client, "router", "1" * 1000).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


@OURS
def test_the_router_is_a_model_beside_the_others(client: TestClient) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["tiny", "router", "numbers", "words"]
    assert client.get("/v1/models/router").json() == listed[1]
    assert (listed[1]["root"], listed[1]["parent"]) == ("tiny", "tiny")


@OURS
def test_metrics_count_prefixes_and_the_log_tells_both(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    before = {name: counted(client, name, "length") for name in ASKED}
    with caplog.at_level("INFO", logger="foreword.serve"):
        complete(client, "router", [*ASKED.values(), ASKED["words"]], ignore_eos=True)
    more = {name: counted(client, name, "length") - before[name] for name in ASKED}
    assert more == {"numbers": 1, "words": 2}
    assert 'model="router"' not in client.get("/metrics").text
    (line,) = (vars(one) for one in caplog.records if "model" in vars(one))
    assert (line["model"], line["routed"]) == ("router", ["numbers", "words"])


@OURS
@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"messages": [{"role": "system", "content": "x"}]}, "messages", "the user; found none"),
        ({"prompt": [[9999]]}, None, "token 9999 is not in the vocabulary"),
        ({"prompt": [-1]}, None, "token -1 is not in the vocabulary"),
        ({"prompt": []}, "prompt", "expected at least one"),
        ({"prompt": ["3", ""]}, "prompt", "prompt: input 2: its text has no tokens"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages", "its text has no tokens"),
        ({"prompt": "3", "strength": 1000}, "strength", ""),
        ({"prompt": ["3"] * 9}, "n", "9 choices are asked for, and 8 allowed"),
    ],
)
def test_what_cannot_be_routed_is_refused(
    client: TestClient, body: dict[str, Any], param: str | None, said: str
) -> None:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    answer = client.post(path, json={"model": "router", **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]


@OURS
def test_a_conversation_with_a_prefix_of_templates_is_refused_by_the_prefixs_name(
    client: TestClient,
) -> None:
    answer = chat(client, "router", ("system", "x"), ("user", ASKED["words"]))
    assert answer.status_code == 400
    assert "the prefix 'words' was trained with a prompt template" in answer.text


@OURS
def test_a_prefix_may_come_and_go(client: TestClient, store: PrefixStore) -> None:
    prefix = store.load("numbers")
    store.remove("numbers")
    try:
        answer = complete(client, "router", ASKED["numbers"])
        assert complete(client, "router", ASKED["words"]).status_code == 200
    finally:
        store.save("numbers", prefix)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert "the router 'router' sends this input to 'numbers'" in error["message"]
    assert complete(client, "router", ASKED["numbers"]).status_code == 200


@OURS
def test_no_prefix_takes_the_routers_name(client: TestClient, store: PrefixStore) -> None:
    file = {"file": store.path("words").read_bytes()}
    answer = client.put("/v1/prefixes/router", files=file)
    assert answer.status_code == 400
    assert "'router' is the router's name" in answer.text


@OURS
def test_inputs_that_wait_hold_their_places(
    served: Callable[..., FastAPI],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All choices, until the time is up; what waited is called off, counted, and frees its place."""
    app = served(queue=4, seconds=5.0)
    with TestClient(app) as client, ThreadPoolExecutor(1) as aside:
        with monkeypatch.context() as patch:
            asked = never(engine, patch)
            waiting = aside.submit(complete, client, "router", ["3", "4"], n=2)
            while len(asked) < 2:
                time.sleep(0.01)
            assert complete(client, "numbers", "3").status_code == 429
            assert waiting.result().status_code == 504
        assert [one.cancelled() for one in asked] == [True, True]
        assert counted(client, "router", "timeout") == 4
        assert complete(client, "numbers", ["3", "4"], n=2).status_code == 200


@OURS
def test_routing_takes_of_the_requests_time(
    served: Callable[..., FastAPI],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It had the whole time for itself, and the answer as much again."""
    seconds, held = 4.0, threading.Event()
    with TestClient(served(seconds=seconds)) as client:
        of = engine.features.of

        def late(ids: list[int]) -> Future[torch.Tensor]:
            found, real = Future[torch.Tensor](), of(ids).result(60)

            def give() -> None:
                engine._inbox.put(lambda: held.wait(60) and None)
                found.set_result(real)

            threading.Timer(0.75 * seconds, give).start()
            return found

        monkeypatch.setattr(engine.features, "of", late)
        began = time.monotonic()
        answer = complete(client, "router", ASKED["numbers"])
        took = time.monotonic() - began
        held.set()
        assert answer.status_code == 504
        assert seconds <= took < 1.6 * seconds
        assert counted(client, "numbers", "timeout") == 1


@OURS
def test_the_first_token_is_counted_from_before_routing(
    behind: Behind,
    served: Callable[..., FastAPI],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with TestClient(served()) as client:
        found = engine.features.of(behind.backbone.tokens(ASKED["numbers"])).result(60)
        slow: Future[torch.Tensor] = Future()
        monkeypatch.setattr(engine.features, "of", lambda _: slow)
        threading.Timer(0.5, slow.set_result, [found]).start()
        assert complete(client, "router", ASKED["numbers"]).status_code == 200
        label = "foreword_time_to_first_token_seconds_sum "
        (line,) = (one for one in client.get("/metrics").text.splitlines() if label in one)
        assert float(line.removeprefix(label)) > 0.45


@OURS
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_its_input_is_routed_leaves_nothing(
    served: Callable[..., FastAPI],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stream: bool,
) -> None:
    """Its place was held, and its inputs kept their turns, until the time was over."""
    asked = never(engine, monkeypatch)
    app = served(queue=2, seconds=60.0)
    body = {"model": "router", "prompt": ["3", "4"], "stream": stream, **GREEDY}
    content = json.dumps(body).encode()
    with caplog.at_level("INFO", logger="foreword.serve"):
        asyncio.run(asyncio.wait_for(leave(app, content, lambda: len(asked) == 2), 20))
    assert [one.cancelled() for one in asked] == [True, True]
    (line,) = (vars(one) for one in caplog.records if "model" in vars(one))
    assert (line["message"], line["status"], line["ended"]) == ("left", 499, "cancelled")
    with TestClient(app) as client:
        assert complete(client, "numbers", ["3", "4"]).status_code == 200


@OURS
def test_what_cannot_be_computed_is_told(
    served: Callable[..., FastAPI],
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with TestClient(served()) as client:
        with monkeypatch.context() as patch:
            patch.setattr(engine.features, "_computed", lambda _: 1 / 0)
            answer = complete(client, "router", "3")
        assert answer.status_code == 500
        assert "features could not be computed: division by zero" in answer.text
        assert complete(client, "router", "3").status_code == 200


@OURS
def test_a_router_that_cannot_be_served_is_refused_at_start(
    behind: Behind, store: PrefixStore, router: Router
) -> None:
    other = smaller_backbone()
    elsewhere = Router.fit(other, {"numbers": NUMBERS, "words": WORDS})
    refused: list[tuple[str, Router, type[ForewordError], str]] = [
        ("router", elsewhere, MismatchError, "was fitted on 'smaller'"),
        ("words", router, StoreError, "a prefix has the router's name 'words'"),
        ("tiny", router, ServeError, "has the backbone's name 'tiny'"),
    ]
    for name, one, refusal, message in refused:
        options = ServeOptions(router=(name, one))
        with pytest.raises(refusal, match=message):
            create_app(behind.served, behind.engine, behind.registry(store), options)


@pytest.mark.engines("vllm", "scripted", reason="these engines compute no features")
def test_an_engine_without_features_serves_no_router(behind: Behind, router: Router) -> None:
    options = ServeOptions(router=("router", router))
    with pytest.raises(ServeError, match="computes no features of texts"):
        create_app(behind.served, behind.engine, behind.registry(), options)
