"""The HTTP server on vLLM against the one on the embedded engine, on a CPU: `make test-vllm`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import foreword
from foreword.engine import Engine, EngineClient, Limits, Request, Sampling, Weighted
from foreword.serve import ServeOptions, create_app
from foreword.serve.remote import RemotePrefixes
from foreword.serve.residency import Residency
from foreword.store import PrefixStore
from tests.engine.vllm import tiny

WAIT = 60.0
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
PROMPTS = ["once upon", "a", "The quick brown fox jumps over the lazy dog. " * 2]
NAMES = ("tiny", "free", "offset", "trained")


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def store(backbone, tmp_path_factory) -> PrefixStore:
    made = PrefixStore(tmp_path_factory.mktemp("store"))
    made.save("free", tiny.prefix(backbone, 37, 0))
    made.save("offset", tiny.prefix(backbone, 64, 1, "offset"))
    recipe = {"method": "prefix", "prompt": "{mr} ->", "target": " {ref}"}
    made.save("trained", tiny.prefix(backbone, 16, 2).with_meta(recipe=recipe))
    return made


@pytest.fixture(scope="module")
def engine(backbone, store, tmp_path_factory) -> EngineClient:
    return tiny.launched(backbone, tmp_path_factory.mktemp("model"), store)[1]


@pytest.fixture(scope="module")
def clients(backbone, store, engine) -> Iterator[dict[str, openai.OpenAI]]:
    """The official client of each server, over the same store."""
    served = {
        "embedded": (
            backbone,
            Engine(backbone, Limits(rows=8, prompt_tokens=64)),
            Residency(store),
        ),
        "vllm": (engine.model, engine, RemotePrefixes(store)),
    }
    with ExitStack() as stack:
        made = {}
        for name, (model, own, registry) in served.items():
            app = create_app(model, own, registry, ServeOptions(queue=64))
            http = stack.enter_context(TestClient(app))
            made[name] = openai.OpenAI(
                base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0
            )
        yield made


def whole(client: openai.OpenAI, model: str, **asked: Any) -> list[tuple[str, str]]:
    answer = client.completions.create(model=model, **{**GREEDY, **asked})
    return [(choice.text, choice.finish_reason) for choice in answer.choices]


def in_pieces(client: openai.OpenAI, model: str, **asked: Any) -> list[tuple[str, str]]:
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    for chunk in client.completions.create(model=model, stream=True, **{**GREEDY, **asked}):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    return [(texts[index], ends[index]) for index in sorted(texts)]


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize("ask", [whole, in_pieces])
def test_greedy_texts_are_those_of_the_embedded_engine(clients, model, ignore_eos, ask) -> None:
    asked = {"prompt": PROMPTS, "n": 2, "extra_body": {"ignore_eos": ignore_eos}}
    expected = ask(clients["embedded"], model, **asked)
    for _ in range(2):  # the second time vLLM has blocks of them
        assert ask(clients["vllm"], model, **asked) == expected
    assert len(expected) == 2 * len(PROMPTS)


@pytest.mark.parametrize("model", ["tiny", "free"])
def test_tokens_and_their_log_probabilities_are_the_same(clients, model) -> None:
    told = [
        client.completions.create(model=model, prompt="once upon", logprobs=3, **GREEDY)
        for client in clients.values()
    ]
    one, other = (answer.choices[0].logprobs for answer in told)
    assert one.tokens == other.tokens
    assert one.token_logprobs == pytest.approx(other.token_logprobs, abs=1e-4)
    assert [list(top) for top in one.top_logprobs] == [list(top) for top in other.top_logprobs]
    assert told[0].usage == told[1].usage  # placeholders are not counted


def test_options_that_change_the_choice_mean_the_same(clients) -> None:
    plain = whole(clients["vllm"], "free", prompt=PROMPTS)
    letter = plain[0][0][3]
    for options in (
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"logit_bias": {"72": 4.0, "101": -2.0}},
        {"stop": [letter]},
    ):
        texts = [whole(one, "free", prompt=PROMPTS, **options) for one in clients.values()]
        assert texts[0] == texts[1], options
        assert texts[0] != plain, options


def test_the_end_that_training_appended_ends_a_text(clients) -> None:
    asked = {"prompt": PROMPTS, "logit_bias": {"1": 30.0}}
    for client in clients.values():
        assert whole(client, "trained", **asked) == [("", "stop")] * len(PROMPTS)
        going_on = whole(client, "trained", **asked, extra_body={"ignore_eos": True})
        assert going_on == [("", "length")] * len(PROMPTS)


def test_the_likeliest_tokens_alone_are_drawn_from(clients) -> None:
    greedy = whole(clients["embedded"], "free", prompt=PROMPTS)
    for options in ({"extra_body": {"top_k": 1}}, {"top_p": 1e-6}):
        drawn = whole(clients["vllm"], "free", prompt=PROMPTS, **{"temperature": 1.0, **options})
        assert drawn == greedy, options


def test_a_seed_draws_alike_and_choices_of_one_request_differ(clients) -> None:
    asked = {"prompt": "once", "temperature": 1.0, "seed": 7, "n": 3}
    first, second = (whole(clients["vllm"], "free", **asked) for _ in range(2))
    assert first == second
    assert len({text for text, _ in first}) > 1


def test_a_prompts_log_probabilities_are_told_without_a_prefix_and_refused_under_one(
    clients,
) -> None:
    asked = {"prompt": "once upon", "echo": True, "logprobs": 2, **GREEDY}
    one, other = (
        client.completions.create(model="tiny", **asked).choices[0].logprobs
        for client in clients.values()
    )
    assert one.tokens == other.tokens
    assert one.token_logprobs[1:] == pytest.approx(other.token_logprobs[1:], abs=1e-4)
    with pytest.raises(openai.BadRequestError) as refused:
        clients["vllm"].completions.create(model="free", **asked)
    assert refused.value.param == "echo"


def test_what_vllm_does_not_take_is_refused_by_its_field(clients) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        whole(clients["vllm"], "free", prompt="a", temperature=3.0)
    assert refused.value.param == "temperature"


def test_chats_are_answered_as_by_the_embedded_engine(clients) -> None:
    turns = [{"role": "user", "content": "hi"}]
    for model in ("tiny", "free", "trained"):
        texts = {
            client.chat.completions.create(model=model, messages=turns, **GREEDY)
            .choices[0]
            .message.content
            for client in clients.values()
        }
        assert len(texts) == 1, model


def test_the_server_reads_no_tensors(clients, backbone, store, monkeypatch) -> None:
    """Its workers, in processes of their own, do."""
    prefix = tiny.prefix(backbone, 20, 14)
    store.save("unread", prefix)
    wanted = whole(clients["embedded"], "unread", prompt=PROMPTS)

    def refused(*_: object) -> None:
        raise AssertionError("a whole file was read")

    monkeypatch.setattr(foreword.format, "load", refused)
    assert whole(clients["vllm"], "unread", prompt=PROMPTS) == wanted
    told = clients["vllm"]._client.get("/v1/prefixes/unread").json()
    assert (told["digest"], told["bytes"]) == (prefix.digest, prefix.nbytes)
    assert (told["length"], told["resident"]) == (20, None)


def test_a_file_whose_tensors_are_damaged_fails_its_request_alone(clients, backbone, store) -> None:
    """Its header is whole, so that a worker finds out; once it is replaced it is served."""
    path = store.save("harmed", tiny.prefix(backbone, 20, 15))
    good = path.read_bytes()
    path.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    for _ in range(2):
        with pytest.raises(openai.InternalServerError, match="altered or damaged"):
            whole(clients["vllm"], "harmed", prompt="once")
    with pytest.raises(openai.APIError, match="altered or damaged"):
        in_pieces(clients["vllm"], "harmed", prompt="once")
    beside = whole(clients["vllm"], "free", prompt="once")
    assert beside == whole(clients["embedded"], "free", prompt="once")
    store.path("harmed").unlink()
    path.write_bytes(good)
    found = whole(clients["vllm"], "harmed", prompt="once")
    assert found == whole(clients["embedded"], "harmed", prompt="once")


def figures(client: openai.OpenAI) -> dict[str, float]:
    """What `/metrics` says of prefixes."""
    lines = client._client.get("/metrics").text.splitlines()
    pairs = [line.removeprefix("foreword_").split() for line in lines if "_prefix" in line]
    return {pair[0]: float(pair[1]) for pair in pairs if len(pair) == 2}


def test_what_workers_do_with_prefixes_is_told_in_metrics(clients, backbone, store) -> None:
    """A prefix of 20 is less than a block, so that it is written for each request."""
    client = clients["vllm"]
    store.save("counted", tiny.prefix(backbone, 20, 16))
    spoilt = store.save("spoilt", tiny.prefix(backbone, 20, 17))
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"\x01")
    before = figures(client)
    whole(client, "counted", prompt="once", n=3)
    whole(client, "counted", prompt="again")
    whole(client, "tiny", prompt="again")
    with pytest.raises(openai.InternalServerError):
        whole(client, "spoilt", prompt="once")
    wanted = {
        "resident_prefixes": 1,
        "prefix_misses": 1,
        "prefix_hits": 3,
        "prefix_failures": 1,
        "prefix_written_bytes": 4 * 20 * 3 * 2 * 2 * 32 * 4,  # layers, kinds, heads, dimension
    }
    until = time.monotonic() + WAIT
    while True:
        after = figures(client)
        found = {name: after[name] - before[name] for name in wanted}
        if found == wanted or time.monotonic() > until:
            break
        time.sleep(0.05)
    assert found == wanted
    assert after["prefix_read_seconds"] > before["prefix_read_seconds"]
    assert after["prefix_write_seconds"] > before["prefix_write_seconds"]
    assert "prefix_failures" not in figures(clients["embedded"])


def test_a_prefix_that_is_replaced_is_never_served_under_its_old_contents(
    clients, backbone, store
) -> None:
    old, new = tiny.prefix(backbone, 20, 10), tiny.prefix(backbone, 20, 11)
    store.save("changing", old)
    before = whole(clients["vllm"], "changing", prompt="once upon")
    assert before == whole(clients["embedded"], "changing", prompt="once upon")
    store.save("changing", new, overwrite=True)
    after = whole(clients["vllm"], "changing", prompt="once upon")
    assert after == whole(clients["embedded"], "changing", prompt="once upon")
    assert after != before


async def events_of(engine, *requests: Request) -> list[foreword.engine.Event]:
    return [event async for event in engine.stream(*requests)]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_another_digest_than_the_servers_fails_the_request_and_no_other(
    engine, backbone, store, clients, anyio_backend
) -> None:
    """The store was changed after the server read the prefix."""
    meant = tiny.prefix(backbone, 20, 12)
    store.save("raced", tiny.prefix(backbone, 20, 13))
    sampling = Sampling(max_tokens=4, temperature=0)
    raced = Request((5, 6), sampling, (Weighted(meant, name="raced"),))
    gone = replace(raced, prefixes=(Weighted(meant, name="gone"),), name="gone")
    fine = Request((5, 6), replace(sampling, ignore_eos=True))
    events = await events_of(engine, raced, gone, fine)
    ends = {event.request: event for event in events if event.finish}
    assert ends[raced.name].finish == ends["gone"].finish == "error"
    assert "was replaced" in ends[raced.name].error
    assert "no prefix is called 'gone'" in ends["gone"].error
    assert ends[fine.name].finish == "length"
    assert sum(len(event.tokens) for event in events) == 4


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stream_that_is_left_early_is_aborted(engine, clients, anyio_backend) -> None:
    """None of the rest of its 200 tokens is computed, each of which takes vLLM a step."""
    request = Request((5, 6), Sampling(max_tokens=200, temperature=0, ignore_eos=True))
    before = engine.stats.steps
    stream = engine.stream(request)
    assert (await anext(stream)).tokens
    await stream.aclose()
    until = time.monotonic() + WAIT
    steps = -1
    while engine._jobs or steps != engine.stats.steps:
        steps = engine.stats.steps
        assert time.monotonic() < until
        time.sleep(0.5)
    assert 0 < steps - before < 200
    left = Request((5, 6), request.sampling, name="cancelled")
    stream = engine.stream(left)
    await anext(stream)
    engine.cancel("cancelled")
    assert [event.finish async for event in stream if event.finish] == ["cancelled"]


def test_an_engine_that_dies_is_told_to_requests_and_watchers(clients, engine) -> None:
    """Last: nothing is served after it."""
    lost = []
    engine.when_lost(lambda: lost.append(True))
    (process,) = engine._runtime._llm.engine_core.resources.engine_manager.processes
    stream = clients["vllm"].completions.create(
        model="free",
        prompt="once",
        max_tokens=200,
        stream=True,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="has died"):
        for _ in stream:
            pass
    until = time.monotonic() + WAIT
    while not lost:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not engine.accepts
    assert clients["vllm"]._client.get("/health").status_code == 503
    with pytest.raises(openai.InternalServerError) as refused:
        whole(clients["vllm"], "free", prompt="a")
    assert refused.value.status_code == 503
