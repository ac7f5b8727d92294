"""The rows of a mixture have room together, and end together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

import foreword
from foreword.engine import Engine, Event, Limits, Weighted
from foreword.engine.checks import left_of, room_of
from foreword.engine.request import NotServed
from foreword.engine.slots.runner import Row, Runner
from foreword.errors import DataError, MismatchError, TooLong
from foreword.prefix import Prefix
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.mixed import SMALL, captured, drawn, fits, mix
from tests.engine.test_engine import ask, check, check_streams
from tests.engine.test_memory import beyond, together, watching


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def prefixes(backbone: foreword.Backbone) -> list[Prefix]:
    return captured(backbone)


# -- room ----------------------------------------------------------------------------------------


def test_mixtures_wait_for_room_for_all_of_their_branches(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And go on one by one where it is short; none holds what another needs to end."""
    one, two = prefixes[0], prefixes[2]
    requests = [mix([3 + n] * 9, (0.6, one), (0.7, two), max_tokens=150) for n in range(4)]
    requests += [ask([5] * 9, one, max_tokens=150), ask([6], max_tokens=3)]
    limits = Limits(rows=9, prompt_tokens=64, cache_tokens=900)
    with Engine(backbone, limits) as engine:
        seen = watching(engine, monkeypatch)
        found = together(engine, requests)
        assert engine.scheduler.is_idle
    assert max(held_up for _, held_up, _ in seen) > 0
    assert max(tokens for _, _, tokens in seen) <= 900
    assert 6 <= max(running for running, _, _ in seen) <= 9
    for request, each in zip(requests, found, strict=True):
        assert len(each.tokens) == request.sampling.max_tokens
        assert fits(backbone, request, each.tokens)


def test_a_mixture_begins_with_all_of_its_rows_or_none(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [mix([3 + n, 4], (0.5, prefixes[0]), max_tokens=4 + n) for n in range(5)]
    with Engine(backbone, replace(SMALL, rows=5)) as engine:
        seen = watching(engine, monkeypatch)
        found = together(engine, requests)
    assert {running for running, _, _ in seen} == {2, 4}
    assert [len(each.tokens) for each in found] == [4, 5, 6, 7, 8]


def test_running_requests_are_counted_once(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    counted = []
    with Engine(backbone, SMALL) as engine:
        ended = threading.Event()

        def sink(event: Event) -> None:
            counted.append(engine.stats.running)
            if event.finish:
                ended.set()

        engine.submit(mix([5], (0.5, prefixes[0]), (0.1, prefixes[1]), max_tokens=3), sink)
        assert ended.wait(20)
    assert counted[:3] == [1, 1, 1]


def test_what_can_never_have_room_is_refused(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    one, two = prefixes[:2]
    with Engine(backbone, Limits(rows=2, cache_tokens=200)) as engine:
        engine.check(
            mix([3] * 9, (0.5, one), max_tokens=80)
        )  # 9 + 80 twice, and the prefix's columns
        with pytest.raises(
            TooLong, match="output of 2 branches may come to 226 tokens; .* for 200"
        ):
            engine.check(mix([3] * 9, (0.5, one), max_tokens=100))
        with pytest.raises(
            NotServed, match="prefixes: .* computed in 3 rows, and the engine runs 2"
        ):
            engine.check(mix([3], (0.5, one), (0.2, two), max_tokens=1))
        with pytest.raises(TooLong, match="leaves no room"):
            engine.check(mix([3] * 230, (0.5, one), (0.5, two)))


def test_output_ends_at_the_context_of_the_longest_branch(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    request = mix([3] * 200, (0.5, prefixes[0]), (0.2, prefixes[1]), max_tokens=10_000)
    with Engine(backbone, SMALL) as engine:
        (found,) = engine.generate([request])
    assert found.finish == "length"
    assert len(found.tokens) == 256 - 200 - prefixes[1].length


def test_the_room_of_a_mixture_is_told_before_it_is_asked(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """With all that `left_of` says a request is taken, and with ten tokens a row more it is not."""
    prefixes = [*prefixes[:2], prefixes[3]]
    held = tuple(Weighted(one, 0.4) for one in prefixes)
    plain = held[0]
    with Engine(backbone, Limits(rows=4, cache_tokens=500)) as engine:
        assert room_of(engine, 9, held) == 256 - 9 - 29
        assert room_of(engine, 9, ()) == 256 - 9
        assert left_of(engine, 9, (replace(plain, weight=1),)) == 500 - 9 - 8
        assert left_of(engine, 9, ()) == 500 - 9
        left = left_of(engine, 9, held)
        assert left == (500 - 4 * 10 - 8 - 29 - 20) // 4
        parts = [(0.4, one) for one in prefixes]
        engine.check(mix([3] * 9, *parts, max_tokens=left))
        with pytest.raises(TooLong, match="4 branches"):
            engine.check(mix([3] * 9, *parts, max_tokens=left + 10))


# -- the end -------------------------------------------------------------------------------------


def test_what_is_not_served_is_refused_by_name(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    one, two = prefixes[:2]
    smaller = foreword.Backbone(tiny_model(num_hidden_layers=2), byte_tokenizer(), name="smaller")
    with Engine(backbone, SMALL) as engine:
        with pytest.raises(NotServed, match="prompt_logprobs: .* mixture") as refused:
            engine.check(mix([3], (0.5, one), prompt_logprobs=1))
        assert refused.value.field == "prompt_logprobs"
        engine.check(mix([3], (1, one), (0, two), prompt_logprobs=1))
        with pytest.raises(MismatchError, match="made on 'smaller'"):
            engine.check(mix([3], (0.5, one), (0.5, smaller.capture([5, 6]))))
        with pytest.raises(DataError, match="token 999 is not"):
            engine.check(mix([999], (0.5, one)))


def test_cancelling_frees_every_row(backbone: foreword.Backbone, prefixes: list[Prefix]) -> None:
    """Before it has a place, while it decodes, and beside others, who go on."""
    others = drawn(3, prefixes, 6)
    long = [mix([9, 8, 7], (0.5, one), (0.2, prefixes[0]), max_tokens=150) for one in prefixes[1:]]
    events: list[Event] = []
    ended, begun = threading.Event(), threading.Event()

    def sink(event: Event) -> None:
        events.append(event)
        if event.tokens:
            begun.set()
        if sum(one.finish is not None for one in events) == len(long):
            ended.set()

    with Engine(backbone, SMALL) as engine:
        for request in long:
            engine.submit(request, sink)
        assert begun.wait(20)
        for request in long:
            engine.cancel(request.name)
        found = engine.generate(others)
        assert ended.wait(20)
        assert engine.scheduler.is_idle
        assert not any(shelf.slots for shelf in engine.runner.cache.shelves)
    assert [one.finish for one in events if one.finish] == ["cancelled"] * 3
    for request, one in zip(others, found, strict=True):
        assert fits(backbone, request, one.tokens)


def test_streaming_gives_the_same_and_leaving_early_cancels(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    parts = (0.8, prefixes[0]), (0.6, prefixes[1])
    request = mix([5, 6, 7], *parts, max_tokens=20)
    found = check_streams(backbone, SMALL, mix([8, 9], *parts, max_tokens=200), request)
    assert fits(backbone, request, found.tokens)


def test_a_branch_that_fails_ends_its_request_once_and_no_other(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = drawn(5, prefixes, 6)
    poisoned = mix([5, 96, 7], (0.5, prefixes[0]), (0.6, prefixes[1]), max_tokens=9)
    run = Runner.run

    def failing(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
        for row in rows:  # one branch of three, the shared prefix's
            if 96 in row.tokens and row.front.shared is not None:
                raise RuntimeError("boom")
        return run(self, rows)

    events: list[Event] = []
    with Engine(backbone, SMALL) as engine:
        monkeypatch.setattr(Runner, "run", failing)
        engine.submit(poisoned, events.append)
        found = engine.generate(requests)
        assert not any(shelf.slots for shelf in engine.runner.cache.shelves)
    assert [(one.finish, one.error) for one in events] == [("error", "boom")]
    for request, one in zip(requests, found, strict=True):
        assert fits(backbone, request, one.tokens)


def test_no_slot_keeps_what_is_not_a_number(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    values = tuple(torch.full_like(value, 3e38) for value in prefixes[0].values)
    wild = Prefix(prefixes[0].sites, prefixes[0].keys, values, prefixes[0].meta)
    requests = [ask([3 + index], max_tokens=3) for index in range(SMALL.rows)]
    with Engine(backbone, SMALL) as engine:
        bad = engine.generate([mix([3, 4], (0.3, prefixes[2]), (0.4, wild)) for _ in range(3)])
        found = engine.generate(requests)
    assert {(one.finish, one.error) for one in bad} == {
        ("error", "the model's logits are not numbers")
    }
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


def test_a_mixture_that_there_is_no_memory_for_fails_alone(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it begins, and when it grows; its other rows are given back."""
    few = [ask([3 + index] * 9, max_tokens=40) for index in range(2)]
    large = [mix([7] * size, (0.5, prefixes[0]), max_tokens=60) for size in (150, 100)]
    with Engine(backbone, SMALL) as engine:
        beyond(128, monkeypatch, RuntimeError)
        *failed, one, two = engine.generate([*large, *few])
        assert not any(shelf.slots for shelf in engine.runner.cache.shelves)
        monkeypatch.undo()
        again = engine.generate(large)
    for each in failed:
        assert each.finish == "error"
        assert "no memory for the keys and values of" in each.error
    check(backbone, few[0], one)
    check(backbone, few[1], two)
    for request, each in zip(large, again, strict=True):
        assert fits(backbone, request, each.tokens)
