"""When memory ends the request that needs it fails alone, or all are told; who gets what there is."""

from __future__ import annotations

import itertools
import mmap
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch

import foreword
from foreword.engine import Completion, Engine, EngineClosed, Event, Limits, Request
from foreword.engine.request import completion
from foreword.engine.slots import engine as module
from foreword.engine.slots.growing import Growing
from foreword.engine.slots.runner import Row, Runner
from foreword.engine.slots.sampler import Draw
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.test_engine import SMALL, ask, check

FULL = "[enforce fail] DefaultCPUAllocator: can't allocate memory"


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


def beyond(room: int, monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """Have no memory for larger rooms."""
    made = Growing._made

    def limited(self: Growing, size: int) -> tuple[torch.Tensor, mmap.mmap | None]:
        if self.tensor.shape[2] > room:
            raise error(FULL)
        return made(self, size)

    monkeypatch.setattr(Growing, "_made", limited)


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, OSError])
@pytest.mark.parametrize(("prompt", "output"), [(200, 9), (100, 60)])
def test_a_request_that_there_is_no_memory_for_fails_alone(
    backbone: foreword.Backbone,
    monkeypatch: pytest.MonkeyPatch,
    prompt: int,
    output: int,
    error: type[Exception],
) -> None:
    """When it begins, or when it grows. The engine's thread ended, and clients under way hung."""
    few = [ask([3 + index] * 9, max_tokens=40) for index in range(4)]
    with Engine(backbone, SMALL) as engine:
        beyond(128, monkeypatch, error)
        large, *others = engine.generate([ask([7] * prompt, max_tokens=output), *few])
        monkeypatch.undo()
        again = engine.generate([ask([7] * prompt, max_tokens=output)])
    assert large.finish == "error"
    assert "no memory for the keys and values of" in large.error
    assert FULL in large.error
    for request, one in zip(few, others, strict=True):
        check(backbone, request, one)
    check(backbone, ask([7] * prompt, max_tokens=output), again[0])


def test_rows_are_drawn_one_by_one_where_there_is_no_memory_for_all(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was outside of what is guarded: one that was too large for memory ended the engine."""
    likeliest = module.likeliest

    def limited(logits_BV: torch.Tensor, draws: Sequence[Draw]) -> tuple[torch.Tensor, list[int]]:
        if len(draws) > 1:
            raise torch.OutOfMemoryError(FULL)
        return likeliest(logits_BV, draws)

    requests = [ask([3 + index] * 9, max_tokens=10) for index in range(4)]
    monkeypatch.setattr(module, "likeliest", limited)
    with Engine(backbone, SMALL) as engine:
        found = engine.generate(requests)
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


def test_a_lost_engine_tells_all_that_are_under_way(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that decode, that are computed, that wait, and that come too late; and who watches."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    requests = [ask([3 + index] * 20, max_tokens=100) for index in range(9)]
    watched = threading.Event()
    engine = Engine(backbone, SMALL)
    engine.when_lost(watched.set)
    run = engine.scheduler.chunks

    def failing() -> object:
        if engine.steps == 8:
            raise torch.OutOfMemoryError(FULL)
        return run()

    monkeypatch.setattr(engine.scheduler, "chunks", failing)
    found = engine.generate(requests)
    assert {(one.finish, one.error) for one in found} == {("error", f"the engine stopped: {FULL}")}
    assert {bool(one.tokens) for one in found} == {True, False}
    assert watched.wait(20)
    with pytest.raises(EngineClosed, match="the engine stopped: .*can't allocate"):
        engine.submit(requests[0], print)
    engine.close()
    assert engine.failure


def test_an_end_that_cannot_be_told_ends_nothing_else(backbone: foreword.Backbone) -> None:
    """An event loop that was closed: its sink raised, in the handler of what it had raised before."""

    def gone(_: Event) -> None:
        raise RuntimeError("Event loop is closed")

    with Engine(backbone, SMALL) as engine:
        engine.submit(ask([5, 6]), gone)
        (found,) = engine.generate([ask([5, 6])])
    check(backbone, ask([5, 6]), found)


# -- who gets it ---------------------------------------------------------------------------------


def together(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Answers to requests of which none begins before all are there."""
    gate, ended = threading.Event(), threading.Semaphore(0)
    found: list[list[Event]] = [[] for _ in requests]

    def note(events: list[Event], event: Event) -> None:
        events.append(event)
        if event.finish is not None:
            ended.release()

    engine._inbox.put(partial(gate.wait, 60))  # type: ignore[arg-type]
    for request, events in zip(requests, found, strict=True):
        engine.submit(request, partial(note, events))
    gate.set()
    for _ in requests:
        ended.acquire()
    return [completion(*pair) for pair in zip(requests, found, strict=True)]


def watching(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Rows that run, rows that wait for room and columns that there is memory for, at each pass."""
    seen: list[tuple[int, int, int]] = []
    run = Runner.run

    def watched(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
        scheduler = engine.scheduler
        seen.append((len(scheduler.running), scheduler.held_up, self.cache.tokens))
        return run(self, rows)

    monkeypatch.setattr(Runner, "run", watched)
    return seen


def test_what_chats_may_come_to_does_not_keep_others_out(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for four that fill the context; a request of 2 tokens waited a minute behind 24 such."""
    chats = [ask([3 + index] * 10, max_tokens=10_000) for index in range(6)]
    limits = Limits(rows=32, prompt_tokens=64, cache_tokens=1024)
    with Engine(backbone, limits) as engine:
        seen = watching(engine, monkeypatch)
        found = together(engine, [*chats, ask([5], max_tokens=2)])
    assert seen[0][0] == 7
    assert max(held_up for _, held_up, _ in seen) > 0
    assert max(tokens for _, _, tokens in seen) <= 1024
    for request, one in zip(chats, found, strict=False):
        assert len(one.tokens) == 246
        check(backbone, replace(request, sampling=replace(request.sampling, max_tokens=246)), one)


def test_nobody_begins_while_one_that_has_begun_waits_for_room(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones that kept coming would take what it waits for, for ever."""
    requests = [ask([3 + index] * 10, max_tokens=10_000) for index in range(3)]
    requests += [ask([5], max_tokens=2) for _ in range(40)]
    with Engine(backbone, Limits(rows=4, prompt_tokens=64, cache_tokens=512)) as engine:
        seen = watching(engine, monkeypatch)
        together(engine, requests)
    for (before, held_up, _), (after, *_) in itertools.pairwise(seen):
        assert not held_up or after <= before


@pytest.mark.parametrize("flat", [True, False])
def test_rows_on_many_shelves_give_what_they_give_alone(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    monkeypatch.setattr("foreword.engine.slots.cache.JOINED", 1)
    requests = [ask([7 + size % 5] * size, max_tokens=30) for size in (3, 110, 120, 150, 180, 210)]
    prefix = backbone.capture([9, 8, 7, 6, 5])
    requests += [ask([5] * 110, one, max_tokens=40) for one in (prefix, None)]
    with Engine(backbone, replace(SMALL, rows=8, prompt_tokens=200, copied=0)) as engine:
        engine.runner.is_flat = flat
        shelves: list[int] = []
        run = Runner.run

        def watched(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
            shelves.append(len({id(row.slot.shelf) for row in rows}))
            return run(self, rows)

        monkeypatch.setattr(Runner, "run", watched)
        found = together(engine, requests)
    assert max(shelves) == 3
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


# -- one prompt for several answers --------------------------------------------------------------


def test_a_prompt_that_several_ask_is_computed_once(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight answers to one prompt computed it eight times; those beyond the rows begin late."""
    prefix = backbone.capture([9, 8, 7])
    prompt = [7 * index % 80 + 3 for index in range(40)]

    def asked(seed: int) -> Request:
        drawn = {"temperature": 1.0, "seed": seed, "logprobs": 1, "prompt_logprobs": 2}
        return ask(prompt, prefix, max_tokens=6 + seed, **drawn)

    computed = 0
    run = Runner.run

    def watched(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
        nonlocal computed
        computed += sum(len(row.tokens) for row in rows if len(row.tokens) > 1)
        return run(self, rows)

    with Engine(backbone, replace(SMALL, prompt_tokens=64)) as engine:
        alone = [engine.generate([asked(seed)])[0] for seed in range(8)]
        monkeypatch.setattr(Runner, "run", watched)
        found = together(engine, [asked(seed) for seed in range(8)])
    assert computed == 40
    for one, other in zip(found, alone, strict=True):
        assert (one.tokens, one.text) == (other.tokens, other.text)
        assert one.prompt_logprobs is not None
        assert other.prompt_logprobs is not None
        assert [each.logprob for each in one.prompt_logprobs[1:]] == pytest.approx(
            [each.logprob for each in other.prompt_logprobs[1:]], abs=1e-4
        )


def test_who_computes_the_prompt_for_others_may_be_cancelled(backbone: foreword.Backbone) -> None:
    requests = [ask([5] * 200, max_tokens=4) for _ in range(3)]
    with Engine(backbone, SMALL) as engine:
        ended = threading.Event()
        engine.submit(requests[0], lambda event: ended.set() if event.finish else None)
        engine.cancel(requests[0].name)
        found = engine.generate(requests[1:])
        assert ended.wait(20)
    for request, one in zip(requests[1:], found, strict=True):
        check(backbone, request, one)


# -- as the system sees it -----------------------------------------------------------------------

WIDE = """
import gc, resource, torch
torch.set_num_threads(1)
import foreword
from foreword.engine import Engine, Limits
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.test_engine import ask

def memory(field):  # bytes
    return int(open("/proc/self/statm").read().split()[field]) * resource.getpagesize()

sizes = dict(num_key_value_heads=4, head_dim=64, max_position_embeddings=2**15)
backbone = foreword.Backbone(tiny_model(**sizes), byte_tokenizer(), name="wide")
A_TOKEN = 3 * 4 * 2 * 64 * 4  # layers, heads, keys and values, dimensions, bytes: 6 KiB
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WIDE + program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and limits of Linux")


@linux
def test_under_a_limit_of_the_address_space_the_engine_goes_on() -> None:
    """A request whose keys and values take 192 MiB, where there are 128 more."""
    told = run("""
import time
from foreword.engine.slots import inbox
inbox.PATIENCE = 0
with Engine(backbone, Limits(rows=4)) as engine:
    engine.generate([ask([3] * 300, max_tokens=2), ask([4], max_tokens=2)])
    while engine.runner.cache.bytes:
        time.sleep(0.01)
    most = memory(0) + 2**27
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    large, *others = engine.generate([
        ask([7] * (2**15 - 9), max_tokens=5), *(ask([i], max_tokens=30) for i in range(3, 6))])
    (again,) = engine.generate([ask([5], max_tokens=3)])
    print(large.finish, large.error)
    print([one.finish for one in others], again.finish, engine.accepts)
""")
    first, second = told.splitlines()
    assert first.startswith("error no memory for the keys and values of 32768 tokens (192 MiB)")
    assert "Cannot allocate memory" in first
    assert second == "['length', 'length', 'length'] length True"


@linux
def test_what_the_operator_allows_is_what_resident_memory_shows() -> None:
    """8,192 tokens of 6 KiB are 48 MiB: never much more, and given back by an idle engine."""
    told = run("""
import threading, time
from foreword.engine.slots.runner import Runner
limit = 8192
with Engine(backbone, Limits(rows=64, cache_tokens=limit)) as engine:
    engine.generate([ask([3] * 300, max_tokens=2) for _ in range(2)])
    gc.collect()
    before, peak, runs = memory(1), 0, Runner.run
    def watched(self, rows):
        global peak
        peak = max(peak, memory(1))
        assert self.cache.tokens <= limit
        return runs(self, rows)
    Runner.run = watched
    found = engine.generate([ask([i] * 40 * i, max_tokens=400 if i % 2 else 60)
                             for i in range(3, 13)] + [ask([5], max_tokens=200)] * 30)
    assert {one.finish for one in found} == {"length"}, found
    until = time.monotonic() + 30
    while memory(1) - before > 2**24 and time.monotonic() < until:
        time.sleep(0.05)
    print((peak - before) / (limit * A_TOKEN), (memory(1) - before) / 2**20)
""")
    share, kept = map(float, told.split())
    assert 0.6 < share < 1.35
    assert kept <= 16
