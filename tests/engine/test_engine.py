"""The engine: every request in a mixed, shifting batch gives what it gives alone."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

import foreword
from foreword.attention.bound import bind_rows
from foreword.engine import (
    Completion,
    Engine,
    EngineClosed,
    Event,
    Limits,
    Request,
    Sampling,
    Weighted,
)
from foreword.engine.slots import bank
from foreword.engine.slots.job import Job
from foreword.engine.slots.runner import Row, Runner
from foreword.errors import DataError, MismatchError, UnsupportedModel
from foreword.prefix import Prefix
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.lone import alone, generated
from tests.oracle.families import STANDARD, attention_of
from tests.oracle.family import Family
from tests.weights.test_packing import needs_onednn

TIE = 1e-4
"""Two best logits nearer than this may come in either order."""
SMALL = Limits(rows=5, prompt_tokens=16, copied=10)
"""Of the prefixes here some are copied to their rows' slots, and some shared."""


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def prefixes(backbone: foreword.Backbone) -> list[Prefix]:
    texts = ("one text", "another, longer text in front", "x", "offset by its length")
    made = [backbone.capture(backbone.tokens(text)) for text in texts[:3]]
    return [*made, backbone.capture(backbone.tokens(texts[3]), "offset")]


def ask(prompt: list[int], prefix: Prefix | None = None, **sampling: object) -> Request:
    options = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling}
    chosen = () if prefix is None else (Weighted(prefix),)
    return Request(tuple(prompt), Sampling(**options), chosen)  # type: ignore[arg-type]


def drawn(seed: int, prefixes: list[Prefix], count: int = 30) -> list[Request]:
    """Requests of random lengths and prefixes."""
    choose = random.Random(seed)
    return [
        ask(
            [choose.randrange(3, 90) for _ in range(choose.randrange(1, 40))],
            choose.choice([None, *prefixes]),
            max_tokens=choose.randrange(1, 24),
        )
        for _ in range(count)
    ]


def check(backbone: foreword.Backbone, request: Request, found: Completion) -> None:
    """The engine's tokens are `generate`'s, or differ at a tie only."""
    assert found.error == ""
    assert len(found.tokens) == request.sampling.max_tokens
    if found.tokens != generated(backbone, request):
        assert alone(backbone, request, found.tokens) <= TIE


@pytest.mark.parametrize("copied", [0, 10, 100])
@pytest.mark.parametrize("seed", range(4))
def test_every_request_of_a_shifting_batch_gives_what_it_gives_alone(
    backbone: foreword.Backbone, prefixes: list[Prefix], seed: int, copied: int
) -> None:
    requests = drawn(seed, prefixes)
    with Engine(backbone, replace(SMALL, copied=copied)) as engine:
        taken = [engine.runner.columns_of(prefix) for prefix in prefixes]
        found = engine.generate(requests)
    assert taken == [p.length if p.length <= copied else 0 for p in prefixes]
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


REFUSED = {"llama4_text"}
"""Families whose rows cannot be served in one batch."""


@pytest.mark.parametrize("family", STANDARD, ids=lambda family: family.name)
def test_families_are_served_right_or_refused_by_name(family: Family) -> None:
    backbone = foreword.Backbone(family.build(attention_of(family)))
    ids = list(range(5, 20))
    requests = drawn(0, [backbone.capture(ids[:5]), backbone.capture(ids)], count=10)
    if family.name in REFUSED:
        with pytest.raises(UnsupportedModel, match=f"family '{family.name}'.*mixed batches"):
            Engine(backbone, SMALL)
        return
    with Engine(backbone, SMALL) as engine:
        found = engine.generate(requests)
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


def test_the_backbone_is_left_as_it_was(backbone: foreword.Backbone) -> None:
    Engine(backbone, SMALL).close()
    assert "_foreword_attachment" not in backbone.model.__dict__


def test_cancelled_requests_end_and_leave_the_others_alone(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    requests = drawn(7, prefixes, count=16)
    long = [ask([9, 8, 7], prefix, max_tokens=150) for prefix in prefixes]
    events: list[Event] = []
    ended = threading.Event()

    def sink(event: Event) -> None:
        events.append(event)
        if sum(one.finish is not None for one in events) == len(long):
            ended.set()

    with Engine(backbone, SMALL) as engine:
        for request in long:
            engine.submit(request, sink)
        for request in long:
            engine.cancel(request.name)
        found = engine.generate(requests)
        assert ended.wait(20)
    assert {event.finish for event in events} == {None, "cancelled"} or {
        event.finish for event in events
    } == {"cancelled"}
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


def test_a_prefix_replaced_under_its_name_never_mixes_with_the_old_one(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """Two prefixes of one length, as before and after a replacement, side by side."""
    one = prefixes[0]
    two = Prefix(one.sites, one.keys, tuple(-5 * value for value in one.values), one.meta)
    requests = [ask([4, 5, 6], prefix, max_tokens=12) for prefix in (one, two, one, two)]
    with Engine(backbone, SMALL) as engine:
        found = engine.generate(requests)
    assert found[0].tokens == found[2].tokens != found[1].tokens == found[3].tokens
    for request, each in zip(requests, found, strict=True):
        check(backbone, request, each)


def test_a_failing_row_harms_no_other(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = drawn(3, prefixes, count=9)
    poisoned = requests[4].name
    tell = Engine._tell

    def failing(self: Engine, job: Job, *rest: object) -> None:
        if job.request.name == poisoned:
            raise RuntimeError("boom")
        tell(self, job, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "_tell", failing)
    with Engine(backbone, SMALL) as engine:
        found = engine.generate(requests)
    assert (found[4].finish, found[4].error) == ("error", "boom")
    for index in {*range(9)} - {4}:
        check(backbone, requests[index], found[index])


def test_a_pass_that_fails_is_run_again_row_by_row(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = drawn(3, prefixes, count=9)
    poison = 96  # no other request has this token
    requests[4] = ask([5, poison, 7], prefixes[0])
    run = Runner.run

    def failing(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
        if any(poison in row.tokens for row in rows):
            raise RuntimeError("boom")
        return run(self, rows)

    with Engine(backbone, SMALL) as engine:
        monkeypatch.setattr(Runner, "run", failing)
        found = engine.generate(requests)
    assert (found[4].finish, found[4].error) == ("error", "boom")
    for index in {*range(9)} - {4}:
        check(backbone, requests[index], found[index])


def test_what_is_not_a_number_ends_with_its_request(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """Its keys and values must not reach who has the slot after it."""
    wild = Prefix(
        prefixes[0].sites,
        prefixes[0].keys,
        tuple(torch.full_like(value, 3e38) for value in prefixes[0].values),
        prefixes[0].meta,
    )
    requests = [ask([3 + index], max_tokens=3) for index in range(SMALL.rows)]
    with Engine(backbone, SMALL) as engine:
        bad = engine.generate([ask([3, 4, 5], wild, max_tokens=20) for _ in range(SMALL.rows)])
        found = engine.generate(requests)
        # One that takes the place of a bad one while it runs itself.
        bad += engine.generate([ask([3, 4, 5], wild), *requests])[:1]
        found += engine.generate([ask([3, 4, 5], wild), *requests])[1:]
    assert {(one.finish, one.error) for one in bad} == {
        ("error", "the model's logits are not numbers")
    }
    for request, one in zip([*requests, *requests], found, strict=True):
        check(backbone, request, one)


@pytest.mark.parametrize("flat", [True, False])
def test_rows_give_the_same_in_one_flat_pass_and_padded_in_two(
    backbone: foreword.Backbone, prefixes: list[Prefix], flat: bool
) -> None:
    requests = drawn(8, prefixes, count=12)
    with Engine(backbone, SMALL) as engine:
        assert engine.runner.is_flat
        engine.runner.is_flat = flat
        found = engine.generate(requests)
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


def test_the_groups_of_a_step_share_one_stack(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    stacked = []

    def counted(*args: object) -> object:
        stacked.append(1)
        return bind_rows(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(bank, "bind_rows", counted)
    one = bank.Bank(backbone.sites)
    for _ in range(3):  # one row that begins beside three that decode
        one.hold(prefixes)
        assert one.bound(prefixes[:3]).row_of_B != one.bound(prefixes[3:]).row_of_B
    assert not one.bound([None, None]).parts
    assert len(stacked) == 1


def test_memory_follows_the_tokens_that_are_there(
    backbone: foreword.Backbone, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One long request made every slot as long: 770 tokens took 1,125 MiB."""
    monkeypatch.setattr("foreword.engine.slots.inbox.PATIENCE", 0.01)
    with Engine(backbone, replace(SMALL, rows=32)) as engine:
        one = sum(each.bytes for each in engine.runner.cache.widths.values())
        engine.generate([ask([3] * 150, max_tokens=20), *[ask([5], max_tokens=20)] * 3])
        until = time.monotonic() + 30
        while engine.runner.cache.bytes and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.runner.cache.bytes == 0
    assert max(sizes) <= one * 4 * 192


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes in bytes of the engine's cache at each pass."""
    found: list[int] = []
    run = Runner.run

    def watched(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
        found.append(self.cache.bytes)
        return run(self, rows)

    monkeypatch.setattr(Runner, "run", watched)
    return found


@needs_onednn
def test_in_bfloat16_with_packed_weights_answers_are_near_the_models() -> None:
    """No token is further below the best one than bfloat16's rounding moves logits."""
    half = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer(), name="tiny")
    texts = ("one text", "another, longer text")
    requests = drawn(9, [half.capture(half.tokens(text)) for text in texts], count=8)
    with Engine(half, SMALL) as engine:
        found = engine.generate(requests)
    for request, one in zip(requests, found, strict=True):
        assert one.error == ""
        assert alone(half, request, one.tokens) <= 0.25


def test_an_engine_whose_thread_fails_says_so_to_everyone(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine = Engine(backbone, SMALL)
    monkeypatch.setattr(engine.scheduler, "chunks", lambda: 1 / 0)
    found = engine.generate([ask([3, 4])])
    assert (found[0].finish, found[0].error) == ("error", "the engine stopped: division by zero")
    with pytest.raises(EngineClosed):
        engine.submit(ask([3]), print)
    engine.close()


def test_closing_ends_what_was_accepted(backbone: foreword.Backbone) -> None:
    events: list[Event] = []
    engine = Engine(backbone, SMALL)
    for _ in range(9):
        engine.submit(ask([3, 4, 5]), events.append)
    engine.close()
    assert [event.finish for event in events if event.finish] == ["length"] * 9
    with pytest.raises(EngineClosed, match="takes no more"):
        engine.submit(ask([3]), events.append)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (lambda: ask([3] * 256), "leaves no room"),
        (lambda: ask([3, 999]), "token 999 is not in the vocabulary of 258"),
        (lambda: ask([3], logit_bias={700: 1.0}), "token 700 is not"),
        (lambda: ask([]), "at least one token"),
        (lambda: ask([3], max_tokens=0), "max_tokens must be at least 1"),
        (lambda: ask([3], top_p=0.0), "top_p must be above 0"),
        (lambda: ask([3], temperature=-1.0), "temperature must be at least 0"),
        (lambda: ask([3], logprobs=-1), "logprobs must be at least 0"),
        (lambda: ask([3], stop=("",)), "no empty text"),
    ],
)
def test_bad_requests_are_refused_before_they_run(
    backbone: foreword.Backbone, request_: Callable[[], Request], message: str
) -> None:
    with Engine(backbone, SMALL) as engine, pytest.raises(DataError, match=message):
        engine.generate([request_()])


def test_what_is_checked_is_what_would_be_taken(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    smaller = foreword.Backbone(tiny_model(num_hidden_layers=2), byte_tokenizer(), name="smaller")
    with Engine(backbone, SMALL) as engine:
        engine.check(ask([3], prefixes[0], max_tokens=10_000))
        assert engine.scheduler.is_idle
        with pytest.raises(DataError, match="token -1 is not"):
            engine.check(ask([3, -1]))
        with pytest.raises(MismatchError, match="made on 'smaller'"):
            engine.check(ask([3], smaller.capture([5, 6])))
        head = foreword.Head("classify", ("a", "b"), "last", torch.zeros(2, 32), torch.zeros(2))
        with pytest.raises(MismatchError, match="carries a head for 'classify'"):
            engine.check(ask([3], prefixes[0].to(torch.float32).with_head(head)))
    with pytest.raises(EngineClosed, match="takes no more"):
        engine.check(ask([3]))


def test_output_ends_at_the_context(backbone: foreword.Backbone, prefixes: list[Prefix]) -> None:
    request = ask([3] * 200, prefixes[1], max_tokens=10_000)
    with Engine(backbone, SMALL) as engine:
        (found,) = engine.generate([request])
    assert found.finish == "length"
    assert len(found.tokens) == 256 - 200 - prefixes[1].length


def test_requests_wait_for_room_and_then_run(backbone: foreword.Backbone) -> None:
    """Room for 300 tokens: two of up to 150 at once, or one that may fill the context of 256."""
    requests = [ask([3] * 50, max_tokens=100) for _ in range(4)] + [ask([3] * 9, max_tokens=10_000)]
    seen = []
    with Engine(backbone, Limits(rows=5, prompt_tokens=64, cache_tokens=300)) as engine:
        admit = engine.scheduler.admit

        def watched() -> None:
            admit()
            seen.append(len(engine.scheduler.running))

        engine.scheduler.admit = watched  # type: ignore[method-assign]
        found = engine.generate(requests)
    assert [len(one.tokens) for one in found] == [100, 100, 100, 100, 247]
    assert max(seen) == 2


def test_a_request_that_can_never_have_room_is_refused(backbone: foreword.Backbone) -> None:
    with (
        Engine(backbone, Limits(cache_tokens=200)) as engine,
        pytest.raises(DataError, match="may come to 256 tokens; the engine has room for 200"),
    ):
        engine.generate([ask([3], max_tokens=999)])


def check_streams(
    backbone: foreword.Backbone, limits: Limits, left: Request, request: Request
) -> Completion:
    """Leave one stream early and read another to its end, which gives what it gives at once."""

    async def streams(engine: Engine) -> list[Event]:
        async for _ in engine.stream(left):
            break
        return [event async for event in engine.stream(request)]

    with Engine(backbone, limits) as engine:
        events = asyncio.run(streams(engine))
        until = time.monotonic() + 10
        while not engine.scheduler.is_idle and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.scheduler.is_idle
        (found,) = engine.generate([request])
    assert tuple(t for event in events for t in event.tokens) == found.tokens
    assert "".join(event.text for event in events) == found.text
    assert sum(event.finish is not None for event in events) == 1
    return found


def test_streaming_gives_the_same_and_leaving_early_cancels(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    request = ask([5, 6, 7], prefixes[0], max_tokens=20)
    check_streams(backbone, SMALL, ask([8, 9], max_tokens=200), request)


def test_a_long_prompt_does_not_stall_those_that_decode(backbone: foreword.Backbone) -> None:
    """While a prompt of 160 tokens is computed by 16 at a time, the other goes on at every step."""
    order: list[str] = []
    done = threading.Event()

    def sink(event: Event) -> None:
        order.append(event.request)
        if event.finish and event.request == long.name:
            done.set()

    short, long = ask([3, 4], max_tokens=60), ask([7] * 160, max_tokens=1)
    with Engine(backbone, SMALL) as engine:
        engine.submit(short, sink)
        engine.submit(long, sink)
        assert done.wait(20)
    assert order.index(long.name) >= 8


def test_drawing_depends_on_the_seed_alone(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    def request(seed: int | None) -> Request:
        return ask([5, 6], prefixes[0], temperature=1.0, top_p=0.9, top_k=50, seed=seed)

    with Engine(backbone, SMALL) as engine:
        (first,) = engine.generate([request(1)])
        crowd = engine.generate([*drawn(1, prefixes, count=6), request(1), request(2)])
    assert first.tokens == crowd[-2].tokens != crowd[-1].tokens


@pytest.fixture
def logits_of(backbone: foreword.Backbone) -> Callable[[list[int]], torch.Tensor]:
    def run(ids: list[int]) -> torch.Tensor:
        with backbone.attached(None), torch.no_grad():
            found: torch.Tensor = backbone.model(input_ids=torch.tensor([ids])).logits[0]
        return torch.log_softmax(found.float(), dim=-1)

    return run


def test_log_probabilities_are_the_models(
    backbone: foreword.Backbone, logits_of: Callable[[list[int]], torch.Tensor]
) -> None:
    prompt = [7 * i % 80 + 3 for i in range(40)]
    request = ask(prompt, logprobs=3, prompt_logprobs=2, temperature=0.7, seed=0, max_tokens=5)
    with Engine(backbone, SMALL) as engine:
        (found,) = engine.generate([request])
    expected = logits_of([*prompt, *found.tokens])
    assert found.prompt_logprobs is not None
    told = [*found.prompt_logprobs[1:], *found.logprobs]
    assert len(found.prompt_logprobs) == 40
    for place, one in enumerate(told):
        top = torch.topk(expected[place], len(one.top))
        assert one.token == [*prompt, *found.tokens][place + 1]
        assert one.logprob == pytest.approx(float(expected[place, one.token]), abs=1e-4)
        assert [token for token, _ in one.top] == top.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert {len(one.top) for one in found.logprobs} == {3}


def test_bias_and_penalties_change_what_is_chosen(backbone: foreword.Backbone) -> None:
    with Engine(backbone, SMALL) as engine:
        forced, plain, varied = engine.generate(
            [
                ask([5], logit_bias={42: 1e4}),
                ask([5], max_tokens=40),
                ask([5], max_tokens=40, frequency_penalty=1e3),
            ]
        )
    assert set(forced.tokens) == {42}
    assert len(set(plain.tokens)) < 40
    assert len(set(varied.tokens)) == 40


def test_the_end_of_sequence_ends_a_request(backbone: foreword.Backbone) -> None:
    (eos,) = backbone.eos_ids
    with Engine(backbone, SMALL) as engine:
        found, on = engine.generate(
            [
                ask([5], logit_bias={eos: 1e4}, ignore_eos=False),
                ask([5], logit_bias={eos: 1e4}, max_tokens=4),
            ]
        )
    assert (found.tokens, found.text, found.finish) == ((eos,), "", "stop")
    assert (on.tokens, on.finish) == ((eos,) * 4, "length")
