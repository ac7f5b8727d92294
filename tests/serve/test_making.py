"""Sums and cascades of a request: what the backbone computes for them, beside requests that run."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

import foreword
from foreword.engine import Engine
from foreword.expressions import Mode
from foreword.serve import ServeOptions, create_app
from foreword.serve.composed import Model, Wanted
from foreword.serve.making import Making
from foreword.store import PrefixStore
from tests.serve.behind import Behind
from tests.serve.leaving import leave

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
ROWS = [{"mr": f"m{i}", "ref": f"r{i % 3}", "mood": ("kind", "rude")[i % 2]} for i in range(8)]

pytestmark = pytest.mark.engines(
    "embedded",
    reason="other engines compute nothing beside requests; test_composed has their refusals",
)


def trained(behind: Behind, seed: int, **more: Any) -> foreword.Prefix:
    fields = {"prompt": "{mr} ->", "target": " {ref}", "length": 6, "steps": 3, **more}
    settings = foreword.TrainSettings(**fields, seed=seed, lr=0.3, batch_size=2)
    rows = ROWS[seed % 3 :]
    return foreword.train(behind.backbone, rows, settings, store=behind.store).prefix


@pytest.fixture(scope="module")
def store(behind: Behind) -> PrefixStore:
    for seed, name in enumerate(("one", "two", "three")):
        behind.store.save(name, trained(behind, seed))
    behind.store.save("task", trained(behind, 4, length=5, attributes="mood", attribute_length=2))
    behind.store.save("other", trained(behind, 5, init_text="another start"))
    shown = trained(behind, 6, init="demonstrations", length=60)
    behind.store.save("shown", shown)
    behind.store.save("onward", trained(behind, 7, init="one", length=None))
    backbone = behind.backbone
    behind.store.save("captured", backbone.capture(backbone.tokens("a text")))
    return behind.store


@pytest.fixture
def engine(behind: Behind) -> Engine:
    """An engine of the test's own, which it may watch."""
    return behind.embedded()


@pytest.fixture
def served(behind: Behind, engine: Engine, store: PrefixStore) -> Callable[..., FastAPI]:
    """Makes an application over that engine, of a server's options."""

    def made(**options: Any) -> FastAPI:
        registry = behind.registry(store)
        return create_app(engine.backbone, engine, registry, ServeOptions(**options))

    return made


@pytest.fixture
def work(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the engine was asked to compute, by what it is called."""
    asked: list[str] = []
    real = engine.features.made

    def made(work: Callable[[], Any], what: str) -> Future[Any]:
        asked.append(what)
        return real(work, what)

    monkeypatch.setattr(engine.features, "made", made)
    return asked


def never(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[Future[Any]]:
    """What an engine is asked to compute from now on, none of which is ever done."""
    asked: list[Future[Any]] = []

    def made(*_: object) -> Future[Any]:
        asked.append(Future())
        return asked[-1]

    monkeypatch.setattr(engine.features, "made", made)
    return asked


@pytest.fixture(scope="module")
def client(behind: Behind, store: PrefixStore) -> Iterator[TestClient]:
    with TestClient(create_app(*behind.again(), behind.registry(store))) as client:
        yield client


def until(condition: Callable[[], object]) -> None:
    """Wait for something that other threads do; it takes far less than the time that is given."""
    late = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < late
        time.sleep(0.005)


def complete(client: TestClient, model: str, **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": "m1 ->", "logprobs": 2, **GREEDY, **more}
    return client.post("/v1/completions", json=body)


def choice(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["choices"][0]
    return found


def check_alike(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Check that two answers are one, to rounding."""
    assert found["text"] == wanted["text"]
    one, other = (each["logprobs"]["token_logprobs"] for each in (found, wanted))
    assert one == pytest.approx(other, abs=1e-4)


EXPRESSIONS: list[tuple[str, Mode]] = [
    ("one + two", "sum"),
    ("one + 0.5*(two - three)", "sum"),
    ("2*one", "sum"),
    ("-one", "sum"),
    ("one[:3] + two[:3]", "sum"),
    ("1.5*task[mood=kind]", "sum"),
    ("one + two", "cascade"),
    ("0.5*one + two + captured", "cascade"),
    ("one[2:4] + captured", "cascade"),
    ("captured + task[mood=kind]", "cascade"),
    ("0.5*one", "cascade"),
]


@pytest.mark.parametrize(("model", "mode"), EXPRESSIONS)
def test_the_answer_is_that_of_the_saved_composition(
    client: TestClient, behind: Behind, store: PrefixStore, model: str, mode: Mode
) -> None:
    made = foreword.compose(model, store.load, mode=mode, backbone=behind.backbone)
    store.save("saved", made, overwrite=True)
    for strength in (1.0, 0.6):
        wanted = choice(complete(client, "saved", strength=strength))
        found = complete(client, model, mode=mode, strength=strength)
        check_alike(choice(found), wanted)
        assert "foreword-notice" not in found.headers
    if strength != 1:
        plain = choice(complete(client, "one"))
        assert wanted["logprobs"] != plain["logprobs"]


def test_a_stream_is_of_the_composition_and_so_is_a_chat(client: TestClient) -> None:
    for mode in ("sum", "cascade"):
        whole = complete(client, "one + two", mode=mode).json()["choices"][0]["text"]
        found = complete(client, "one + two", mode=mode, stream=True)
        pieces = [json.loads(one[6:]) for one in found.text.split("\n\n")[:-2]]
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole
        asked = {"model": "one + two", "mode": mode, **GREEDY}
        messages = [{"role": "user", "content": "m1"}]
        told = client.post("/v1/chat/completions", json={**asked, "messages": messages})
        assert told.json()["choices"][0]["message"]["content"] == whole


def test_it_is_made_once(served: Callable[..., FastAPI], work: list[str]) -> None:
    """Starts, too: other weights of the same prefixes are computed without the backbone."""
    with TestClient(served()) as client:
        first = choice(complete(client, "one + two", mode="sum"))
        assert work == ["the start of one", "the start of two"]
        assert choice(complete(client, "one + two", mode="sum")) == first
        complete(client, "0.3*two - one", mode="sum")
        assert len(work) == 2
        complete(client, "one + two", mode="cascade")
        assert work[2:] == ["the place of one + two"] * 2 + ["one + two"]
        complete(client, "one+two", mode="cascade", strength=0.5)
        assert len(work) == 5


def test_of_two_at_once_the_first_makes_it(
    served: Callable[..., FastAPI], engine: Engine, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, wanting, real = threading.Event(), [], Making.made

    def counted(self: Making, wanted: Wanted) -> Coroutine[Any, Any, Model]:
        wanting.append(wanted.model)
        return real(self, wanted)

    monkeypatch.setattr(Making, "made", counted)
    with TestClient(served()) as client, ThreadPoolExecutor(2) as aside:
        engine._inbox.put(lambda: held.wait(60) and None)
        both = [aside.submit(complete, client, "one + two", mode="sum") for _ in range(2)]
        until(lambda: len(wanting) == 2)
        held.set()
        first, second = (choice(one.result(60)) for one in both)
    check_alike(first, second)
    assert work == ["the start of one", "the start of two"]


def test_a_prefix_that_is_replaced_is_the_new_one(client: TestClient, store: PrefixStore) -> None:
    store.save("changing", store.load("one"))
    before = choice(complete(client, "changing + two", mode="sum"))
    store.save("changing", store.load("three"), overwrite=True)
    after = choice(complete(client, "changing + two", mode="sum"))
    store.remove("changing")
    check_alike(after, choice(complete(client, "three + two", mode="sum")))
    assert after["logprobs"] != before["logprobs"]


def test_requests_go_on_meanwhile(
    behind: Behind, served: Callable[..., FastAPI], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start is computed between two steps of theirs, by the engine's thread alone."""
    threads, steps = set(), []
    real = engine.backbone.capture

    def capture(*given: Any) -> foreword.Prefix:
        threads.add(threading.current_thread().name)
        steps.append(engine.steps)
        return real(*given)

    monkeypatch.setattr(engine.backbone, "capture", capture)
    long = {"max_tokens": 120, "ignore_eos": True, "logprobs": 0}
    with TestClient(served()) as client, ThreadPoolExecutor(2) as aside:
        wanted = choice(complete(client, "three", **long))
        running = aside.submit(complete, client, "three", **long)
        until(lambda: engine.scheduler.begun)
        choice(complete(client, "one + two + three", mode="sum"))
        check_alike(choice(running.result(60)), wanted)
    assert threads == {"foreword-engine"}
    assert len(set(steps)) == len(steps) == 3


def test_a_notice_tells_of_unseen_values_and_no_warning_does(client: TestClient) -> None:
    """A warning in the server's process is nothing that a client sees."""
    beside = {"sum": "1.5*", **dict.fromkeys(("cascade", "concat", "logits"), "task[mood=kind] + ")}
    for mode in beside:
        found = complete(client, f"{beside[mode]}task[mood=sly]", mode=mode)
        assert found.status_code == 200, found.text
        assert found.headers["foreword-notice"].startswith("task was trained for mood = 'kind', ")
        again = complete(client, f"{beside[mode]}task[mood=odd]", mode=mode)
        assert "and not for 'odd'" in again.headers["foreword-notice"]
        check_alike(choice(again), choice(found))


@pytest.mark.parametrize(
    ("model", "mode", "said"),
    [
        ("captured + one", "sum", "captured: the start of this prefix cannot be recomputed"),
        ("one + other", "sum", "one and other: .* different keys and values"),
        ("one + one[:2]", "sum", r"one and one\[:2\]: a sum needs prefixes of the same length"),
        ("one + shown", "sum", "shown: it started from demonstrations, .*foreword compose"),
        ("one + onward", "sum", "onward: it started from 'one', .*foreword compose"),
        (
            "one + long",
            "sum",
            "long: its start takes 40 tokens .* at most 32 are read.*foreword compose",
        ),
        ("one + liar", "sum", "liar: its start takes 1000000000 tokens"),
        ("2*captured", "sum", "captured: .* cannot be recomputed.* --mode concat"),
        ("one + ranged", "sum", "ranged: .* cannot be recomputed: layers '0-999999'"),
        ("one + task", "sum", r"is composed with some of them: write task\[mood=kind\]"),
        ("one + task", "cascade", r"is composed with some of them: write task\[mood=kind\]"),
        ("one + task[size=3]", "sum", "no attribute 'size'"),
        ("one + two[4:9]", "cascade", "6 virtual tokens"),
        (
            " + ".join(f"0.{i}*long[{i}:40]" for i in range(1, 9)),
            "cascade",
            "virtual tokens, and the",
        ),
        ("one + mixed", "cascade", "mixed"),
    ],
)
def test_what_cannot_be_made_says_why(
    client: TestClient, behind: Behind, store: PrefixStore, model: str, mode: str, said: str
) -> None:
    one, two = store.load("one"), store.load("two")
    if "long" in model:
        store.save("long", trained(behind, 0, length=40), overwrite=True)
    if "liar" in model:
        recipe = {**one.meta.recipe, "length": 10**9}
        store.save("liar", one.with_meta(recipe=recipe), overwrite=True)
    if "ranged" in model:
        recipe = {**one.meta.recipe, "layers": "0-999999"}
        store.save("ranged", one.with_meta(recipe=recipe), overwrite=True)
    if "mixed" in model:
        both = foreword.concat(one, two.strength(0.5), combination="logits")
        store.save("mixed", both, overwrite=True)
    answer = complete(client, model, mode=mode)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "model"), error
    assert re.search(said, error["message"]), error["message"]


def test_a_plain_control_prefix_is_refused_whatever_was_asked_before(client: TestClient) -> None:
    """What is left of a selection that no piece is for was kept as the plain name."""
    for mode, form in (("concat", "{} + two"), ("cascade", "{} + two"), ("sum", "2*{}")):
        assert complete(client, form.format("task[mood=sly]"), mode=mode).status_code == 200
        answer = complete(client, form.format("task"), mode=mode)
        assert answer.status_code == 400
        assert "write task[mood=kind]" in answer.json()["error"]["message"]


@pytest.mark.parametrize("mode", ["concat", "cascade", "logits"])
def test_a_long_selection_is_composed_as_a_short_one(client: TestClient, mode: str) -> None:
    short, long = (f"task[mood={'x' * size}] + two" for size in (3, 251))
    check_alike(
        choice(complete(client, long, mode=mode)), choice(complete(client, short, mode=mode))
    )


def test_it_takes_of_the_requests_time_and_holds_its_places(
    served: Callable[..., FastAPI], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(served(queue=2, seconds=5.0)) as client, ThreadPoolExecutor(1) as aside:
        with monkeypatch.context() as patch:
            asked = never(engine, patch)
            waiting = aside.submit(complete, client, "one + two", mode="sum", n=2)
            until(lambda: asked)
            assert complete(client, "one").status_code == 429
            assert waiting.result(60).status_code == 504
        assert asked[0].cancelled()
        counted = client.get("/metrics").text
        assert 'foreword_requests_total{finish="timeout",model="(composition)"} 2.0' in counted
        assert "one + two" not in counted
        assert complete(client, "one + two", mode="sum").status_code == 200


def test_a_client_that_goes_away_calls_it_off(
    served: Callable[..., FastAPI], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = served(queue=1)
    body = json.dumps({"model": "one + two", "mode": "sum", "prompt": "m1 ->", **GREEDY}).encode()
    with monkeypatch.context() as patch:
        asked = never(engine, patch)
        asyncio.run(asyncio.wait_for(leave(app, body, lambda: bool(asked)), 20))
    assert asked[0].cancelled()
    with TestClient(app) as client:
        assert complete(client, "one + two", mode="sum").status_code == 200


def test_what_fails_is_told_and_the_server_goes_on(
    served: Callable[..., FastAPI], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(served()) as client:
        with monkeypatch.context() as patch:
            patch.setattr(engine.backbone, "capture", lambda *_: 1 / 0)
            answer = complete(client, "one + two", mode="sum")
        assert answer.status_code == 500
        assert "the start of one could not be computed: division by zero" in answer.text
        assert complete(client, "one + two", mode="sum").status_code == 200
