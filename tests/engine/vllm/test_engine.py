"""`VllmEngine` over a runtime that follows a script: no vLLM is needed."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, T5Config

import foreword
from foreword.engine import Event, Request, Sampling, Stats, Weighted
from foreword.engine.request import EngineClosed, NotServed
from foreword.engine.vllm.engine import DIED, VllmEngine
from foreword.engine.vllm.geometry import Found, Geometry, Reach
from foreword.engine.vllm.model import ServedModel
from foreword.errors import (
    BackboneError,
    DataError,
    MismatchError,
    ServeError,
    TooLong,
    UnsupportedModel,
)
from foreword.head import Head
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer
from tests.engine.vllm import tiny

PLACEHOLDER = 263
GEOMETRY = Geometry(3, 2, 32, 32, "a folder", (None, None, None))
"""The tiny model's, as its workers tell it."""
WAIT = 20.0


def output(tokens: str, finish: str | None = None, **more: Any) -> Any:
    """One of vLLM's outputs; a token is a byte of the tiny tokenizer."""
    ids = [tiny_id(letter) for letter in tokens]
    one = SimpleNamespace(token_ids=ids, finish_reason=finish, logprobs=more.get("logprobs"))
    return SimpleNamespace(outputs=[one], prompt_logprobs=more.get("prompt_logprobs"))


def tiny_id(letter: str) -> int:
    (token,) = byte_tokenizer()(letter, add_special_tokens=False)["input_ids"]
    return int(token)


@dataclass
class Scripted:
    """Gives what it was told to, and notes what it was asked."""

    outputs: list[Any] = field(default_factory=list)
    waits: bool = False
    has_died: bool = False
    stats: Stats = field(default_factory=lambda: Stats(3, 5, 9, 1000))
    cache_tokens: int = 512
    asked: list[Any] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    is_shut: bool = False
    reaches: Reach | Exception = field(default_factory=lambda: Reach(40))
    geometry: Geometry = GEOMETRY

    def check(self, sampling: Any) -> None:
        if sampling["top_k"] == 13:
            raise NotServed("top_k", "13 is unlucky")

    async def generate(self, asked: Any, sampling: Any, name: str) -> AsyncGenerator[Any]:
        self.asked.append((asked, sampling))
        try:
            for one in self.outputs:
                if isinstance(one, Exception):
                    raise one
                yield one
            while self.waits:
                await asyncio.sleep(0.01)
        finally:
            self.left.append(name)

    async def found(self) -> Found:
        if isinstance(self.reaches, Exception):
            raise self.reaches
        return Found(self.geometry, self.reaches)

    def shutdown(self) -> None:
        self.is_shut = True


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def model(backbone: foreword.Backbone, tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    folder = tiny.saved(backbone, tmp_path_factory.mktemp("model"))
    return ServedModel.read(str(folder), name="tiny", context=64)


@pytest.fixture(scope="module")
def prefix(backbone: foreword.Backbone) -> foreword.Prefix:
    return tiny.prefix(backbone, 5, 0)


@pytest.fixture
def runtime() -> Scripted:
    return Scripted([output("ab"), output("c", "length")])


@pytest.fixture
def store(tmp_path: Any, prefix: foreword.Prefix) -> PrefixStore:
    made = PrefixStore(tmp_path / "store")
    made.save("p", prefix)
    return made


@pytest.fixture
def engine(model: ServedModel, runtime: Scripted, store: PrefixStore) -> Iterator[VllmEngine]:
    made = VllmEngine(model, runtime, PLACEHOLDER, store)
    yield made
    made.close()
    assert runtime.is_shut


def asked(**sampling: Any) -> Request:
    return Request((5, 6), Sampling(**{"max_tokens": 8, "temperature": 0, **sampling}))


def events_of(engine: VllmEngine, *requests: Request) -> list[Event]:
    async def all_of_them() -> list[Event]:
        async with asyncio.timeout(WAIT):
            return [event async for event in engine.stream(*requests)]

    return asyncio.run(all_of_them())


def test_the_model_is_told_of_by_its_folder(model: ServedModel, backbone: Any) -> None:
    assert (model.kind, model.name, model.context) == ("decoder", "tiny", 64)
    assert (model.bos, model.vocabulary) == (backbone.bos, backbone.vocabulary)
    assert model.eos_ids == backbone.eos_ids
    assert model.tokenizer_digest == backbone.tokenizer_digest
    geometry = model.geometry
    assert (geometry.layers, geometry.kv_heads) == (len(backbone.sites), 2)
    assert (geometry.key_dim, geometry.value_dim) == (32, 32)
    folder = model.tokenizer.name_or_path
    assert ServedModel.read(folder).context == backbone.context
    assert ServedModel.read(folder).name == folder


def test_what_is_no_decoder_or_no_model_is_refused(tmp_path: Any) -> None:
    with pytest.raises(BackboneError, match="cannot read the config and the tokenizer"):
        ServedModel.read(str(tmp_path / "none"))
    T5Config().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="vLLM serves prefixes of decoders"):
        ServedModel.read(str(tmp_path))


def test_a_model_without_a_generation_config_ends_as_its_config_says(
    model: ServedModel, tmp_path: Any
) -> None:
    AutoConfig.from_pretrained(model.tokenizer.name_or_path).save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert ServedModel.read(str(tmp_path)).eos_ids == model.eos_ids


def test_prefixes_that_fit_are_told_from_others(
    model: ServedModel, prefix: foreword.Prefix, store: PrefixStore
) -> None:
    model.check(prefix)
    model.check(foreword.format.outline(store.path("p")), warn=False)
    model.check(store.outline("p"))
    with pytest.raises(MismatchError, match="another tokenizer"):
        model.check(prefix.with_meta(tokenizer="0" * 64))
    model.check(prefix.with_meta(tokenizer=""))
    with pytest.raises(MismatchError, match="gated"):
        model.check(prefix.with_meta(softmax="own"))
    other = tiny.backbone(num_key_value_heads=1)
    with pytest.raises(MismatchError, match="key/value heads"):
        model.check(tiny.prefix(other, 5, 0))


def test_a_prefix_with_a_head_writes_no_text(
    model: ServedModel, prefix: foreword.Prefix, store: PrefixStore
) -> None:
    head = Head("classify", ("a", "b"), "last", torch.zeros(2, 64), torch.zeros(2))
    with pytest.raises(MismatchError, match="carries a head"):
        model.check(replace(prefix, head=head))
    store.save("headed", replace(prefix, head=head))
    with pytest.raises(MismatchError, match="carries a head for 'classify'"):
        model.check(store.outline("headed"))


def test_tokens_and_text_come_as_vllm_gives_them(engine: VllmEngine, runtime: Scripted) -> None:
    events = events_of(engine, asked())
    assert [(len(e.tokens), e.text, e.finish) for e in events] == [
        (2, "ab", None),
        (1, "c", None),
        (0, "", "length"),
    ]
    prompt, sampling = runtime.asked[0]
    assert (prompt.token_ids, prompt.prefix, prompt.salt) == ((5, 6), None, None)
    assert sampling["stop_token_ids"] == [1]
    assert sampling["ignore_eos"]
    assert sampling["temperature"] == 0


def test_a_prefix_is_asked_for_by_name_and_digest(
    engine: VllmEngine, runtime: Scripted, prefix: foreword.Prefix, store: PrefixStore
) -> None:
    for known in (prefix, store.outline("p")):  # whole, or as its file describes it
        events_of(engine, replace(asked(), prefixes=(Weighted(known, name="p"),)))
        prompt, _ = runtime.asked.pop()
        assert prompt.token_ids == (PLACEHOLDER,) * 5 + (5, 6)
        assert (prompt.prefix.name, prompt.prefix.digest) == ("p", prefix.digest)


def test_what_follows_an_end_or_a_stop_text_is_left_out(
    engine: VllmEngine, runtime: Scripted
) -> None:
    runtime.outputs = [output("abcd"), output("efgh")]
    (event, end) = events_of(engine, asked(stop=("bc",)))
    assert (event.text + end.text, len(event.tokens), end.finish) == ("a", 3, "stop")
    one = output("abcd")
    one.outputs[0].token_ids[2] = 1
    runtime.outputs = [one]
    (event, end) = events_of(engine, asked())
    assert (event.text, event.tokens[-1], len(event.tokens), end.finish) == ("ab", 1, 3, "stop")
    one.outputs[0].finish_reason = "length"
    events = events_of(engine, asked(ignore_eos=True))
    assert (len(events[0].tokens), events[-1].finish) == (4, "length")
    assert runtime.asked[-1][1]["stop_token_ids"] == []


def test_log_probabilities_are_told_best_first(engine: VllmEngine, runtime: Scripted) -> None:
    def number(value: float) -> Any:
        return SimpleNamespace(logprob=value)

    found = [{tiny_id("a"): number(-3.0), 9: number(-1.0), 8: number(-2.0)}] * 2
    runtime.outputs = [
        output("aa", "length", logprobs=found, prompt_logprobs=[None, {6: number(-0.5)}])
    ]
    event, _ = events_of(engine, asked(logprobs=2, prompt_logprobs=1))
    assert [one.token for one in event.logprobs] == [tiny_id("a")] * 2
    assert event.logprobs[0].logprob == -3.0
    assert event.logprobs[0].top == ((9, -1.0), (8, -2.0))
    assert event.prompt_logprobs is not None
    first, second = event.prompt_logprobs
    assert first.logprob != first.logprob
    assert (second.token, second.top) == (6, ((6, -0.5),))


def test_sampling_is_said_in_vllms_words(engine: VllmEngine, runtime: Scripted) -> None:
    events_of(
        engine,
        asked(temperature=0.7, top_p=0.9, top_k=4, seed=-2, logit_bias={7: 1.5}),
        asked(presence_penalty=0.5, frequency_penalty=-0.5, seed=3),
    )
    first, second = (sampling for _, sampling in runtime.asked)
    assert (first["temperature"], first["top_p"], first["top_k"]) == (0.7, 0.9, 4)
    assert (first["seed"], first["logit_bias"]) == (2**63 - 2, {7: 1.5})
    assert (second["presence_penalty"], second["frequency_penalty"]) == (0.5, -0.5)
    assert (second["seed"], second["logit_bias"], second["max_tokens"]) == (3, None, 8)


def test_what_cannot_be_served_is_refused_before_it_is_asked(
    engine: VllmEngine, prefix: foreword.Prefix
) -> None:
    named = Weighted(prefix, name="p")
    stands = foreword.concat(prefix, prefix, combination="logits")
    under = replace(asked(prompt_logprobs=0), prefixes=(named,))

    def of(*weighted: Weighted) -> Request:
        return replace(asked(), prefixes=weighted)

    refused: list[tuple[Request, type[Exception], str]] = [
        (under, NotServed, "prompt_logprobs: .* never computes"),
        (replace(asked(), prefixes=(Weighted(prefix),)), MismatchError, "from its store by name"),
        (replace(asked(), prompt=(5,) * 64), TooLong, "context of 64 leaves no room"),
        (replace(asked(), prompt=(264,)), DataError, "token 264 is not in the vocabulary"),
        (asked(temperature=2.5), NotServed, "temperature: vLLM takes at most 2"),
        (asked(top_k=13), NotServed, "unlucky"),
        (of(Weighted(stands, name="p")), NotServed, "prefixes: a prefix that stands for a mixture"),
        (of(Weighted(prefix, 0.5, "p")), NotServed, "weight: a prefix at weight 0.5 is not served"),
        (
            of(Weighted(prefix, 1, "p", 2)),
            NotServed,
            "strength: a prefix at strength 2 is not served",
        ),
        (
            of(named, Weighted(prefix, 0)),
            NotServed,
            "prefixes: a mixture of 2 prefixes is not served",
        ),
    ]
    for request, kind, message in refused:
        with pytest.raises(kind, match=message):
            engine.check(request)
    assert engine.room(10, prefix) == 64 - 15
    assert engine.left(10, prefix) == 512 - 15
    assert engine.left(10, None) == 502


def test_a_stream_that_is_left_ends_its_request(engine: VllmEngine, runtime: Scripted) -> None:
    runtime.outputs, runtime.waits = [output("a")], True

    async def leave() -> None:
        stream = engine.stream(asked())
        assert (await anext(stream)).text == "a"
        assert engine.stats == Stats(0, 1, 9, 1000)
        await stream.aclose()
        other = asked()
        stream = engine.stream(other)
        await anext(stream)
        engine.cancel(other.name)
        assert [event.finish async for event in stream] == ["cancelled"]

    asyncio.run(leave())
    assert len(runtime.left) == 2
    assert engine.stats == Stats(0, 0, 9, 0)


def test_a_request_that_is_cancelled_before_it_begins_is_told_so(
    engine: VllmEngine, runtime: Scripted
) -> None:
    found: list[Event] = []
    done = asyncio.run_coroutine_threadsafe(_at_once(engine, found), engine._loop)
    done.result(WAIT)
    assert [event.finish for event in found] == ["cancelled"]
    assert runtime.asked == []


async def _at_once(engine: VllmEngine, found: list[Event]) -> None:
    """In the engine's own thread, so that nothing comes between."""
    request = asked()
    engine.submit(request, found.append)
    engine.cancel(request.name)
    while not found:
        await asyncio.sleep(0.01)


def test_errors_of_vllm_end_their_request_alone(
    engine: VllmEngine, runtime: Scripted, prefix: foreword.Prefix, store: PrefixStore
) -> None:
    runtime.outputs = [RuntimeError("it broke")]
    (end,) = events_of(engine, asked())
    assert (end.finish, end.error) == ("error", "it broke")
    runtime.outputs = [output("", "error")]
    under = replace(asked(), prefixes=(Weighted(prefix, name="p"),))
    assert "vLLM failed the request" in events_of(engine, under)[-1].error
    store.save("p", prefix.with_meta(recipe={"a": 1}), overwrite=True)
    assert "was replaced" in events_of(engine, under)[-1].error
    content = store.save("p", prefix, overwrite=True).read_bytes()
    store.path("p").write_bytes(content[:-1] + b"\x01")
    assert "altered or damaged" in events_of(engine, under)[-1].error
    store.remove("p")
    assert "no prefix is called 'p'" in events_of(engine, under)[-1].error
    runtime.outputs = []
    assert events_of(engine, asked())[-1].finish == "error"
    runtime.outputs = [output("a", "abort")]
    assert events_of(engine, asked())[-1].finish == "error"  # nobody cancelled it here


def test_a_listener_that_fails_stops_nobody(engine: VllmEngine, runtime: Scripted) -> None:
    def sink(event: Event) -> None:
        raise RuntimeError("gone")

    engine.submit(asked(), sink)
    assert events_of(engine, asked())[-1].finish == "length"


def test_an_engine_whose_vllm_died_tells_everybody(engine: VllmEngine, runtime: Scripted) -> None:
    runtime.outputs, runtime.waits = [output("a")], True
    lost: list[str] = []
    engine.when_lost(lambda: lost.append("first"))

    async def lose() -> list[Event]:
        stream = engine.stream(asked())
        await anext(stream)
        runtime.has_died = True
        return [event async for event in stream]

    (end,) = asyncio.run(lose())
    assert (end.finish, end.error) == ("error", DIED)
    engine.when_lost(lambda: lost.append("later"))
    assert lost == ["first", "later"]
    assert (engine.accepts, engine.failure) == (False, DIED)
    with pytest.raises(EngineClosed, match="has died"):
        engine.check(asked())


def test_a_death_that_a_request_notices_first_is_told_at_once(
    engine: VllmEngine, runtime: Scripted
) -> None:
    async def lose() -> Event:
        runtime.outputs, runtime.has_died = [RuntimeError("a core died")], True
        async for event in engine.stream(asked()):
            return event
        raise AssertionError

    assert asyncio.run(lose()).error == DIED
    assert engine.failure == DIED


def test_closing_waits_for_what_was_taken(engine: VllmEngine, runtime: Scripted) -> None:
    found: list[Event] = []
    engine.submit(asked(), found.append)
    engine.close()
    assert found[-1].finish == "length"
    with pytest.raises(EngineClosed, match="being closed"):
        engine.submit(asked(), found.append)
    engine.cancel("anything")


def test_a_start_without_vllm_says_what_to_do(
    model: ServedModel, store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreword.engine.vllm import launch

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServeError, match="not installed here.*pip install"):
        launch.Launch(model.tokenizer.name_or_path, store).start()


@pytest.mark.parametrize(
    ("reach", "message"),
    [
        (Reach(4), "5 virtual tokens and position policy 'free'; vLLM serves at most 4 of that"),
        (Reach(0, "absolute positions"), "serves none of that policy on this model: absolute pos"),
    ],
)
def test_what_workers_cannot_turn_is_refused_before_it_is_asked(
    model: ServedModel, store: PrefixStore, prefix: foreword.Prefix, reach: Reach, message: str
) -> None:
    """Its requests ended with status 500."""
    runtime = Scripted([output("a", "length")], reaches=reach)
    engine = VllmEngine(model, runtime, PLACEHOLDER, store)
    try:
        with pytest.raises(MismatchError, match=message):
            engine.check(Request((5, 6), prefixes=(Weighted(prefix, name="p"),)))
        with pytest.raises(MismatchError, match=r"policy 'offset' \(Backbone.moved\)"):
            engine.model.check(prefix)
        engine.check(
            Request((5, 6), prefixes=(Weighted(prefix.with_meta(positions="offset"), name="p"),))
        )
    finally:
        engine.close()


def test_a_prompt_that_begins_with_the_placeholder_is_refused_without_a_prefix(
    engine: VllmEngine, prefix: foreword.Prefix
) -> None:
    """The connector would let it fail: it takes it for one whose prefix was lost."""
    with pytest.raises(DataError, match="begins with the placeholder"):
        engine.check(Request((PLACEHOLDER, 5)))
    engine.check(Request((5, PLACEHOLDER)))
    engine.check(Request((PLACEHOLDER, 5), prefixes=(Weighted(prefix, name="p"),)))


def test_what_workers_found_counts_whatever_the_config_says(
    model: ServedModel, store: PrefixStore, prefix: foreword.Prefix
) -> None:
    """Flags of vLLM's may change windows, and configs have their own names for numbers of heads."""
    other = replace(model, geometry=replace(model.geometry, kv_heads=1, windows=(16, 16, 16)))
    with pytest.raises(MismatchError):
        other.check(prefix)
    engine = VllmEngine(other, Scripted(), PLACEHOLDER, store)
    try:
        engine.model.check(prefix)
        assert engine.model.geometry == replace(GEOMETRY, model=model.name)
        assert engine.model.geometry.size(4) == 3 * 2 * (32 + 32) * 4
    finally:
        engine.close()


def test_what_breaks_a_request_is_told_as_an_error(
    engine: VllmEngine,
    runtime: Scripted,
    prefix: foreword.Prefix,
    store: PrefixStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was told as cancelled, which clients read as an end like any other."""

    def broken(self: PrefixStore, name: str) -> None:
        raise MemoryError("no room")

    runtime.outputs = [output("", "error")]
    monkeypatch.setattr(PrefixStore, "outline", broken)
    under = replace(asked(), prefixes=(Weighted(prefix, name="p"),))
    event = events_of(engine, under)[-1]
    assert (event.finish, event.error) == ("error", "no room")


def test_an_engine_whose_workers_do_not_tell_does_not_start(
    model: ServedModel, store: PrefixStore
) -> None:
    runtime = Scripted(reaches=RuntimeError("they are gone"))
    with pytest.raises(ServeError, match="vLLM did not start: they are gone"):
        VllmEngine(model, runtime, PLACEHOLDER, store)
    assert runtime.is_shut
