"""Mixtures in the engine: several rows, one request; against each branch through transformers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import foreword
from foreword.branches import MAX_PREFIXES, Branch, branches_of
from foreword.engine import Engine, Limits, Request, Weighted
from foreword.engine.slots.job import Job, Mix
from foreword.engine.slots.runner import Row, Runner
from foreword.errors import DataError
from foreword.prefix import Prefix
from foreword.prompts import under_bos
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.mixed import SMALL, below_best, captured, drawn, fits, mix, mixture, said, written
from tests.engine.test_engine import ask
from tests.engine.test_memory import together
from tests.engine.test_seeds import HAS_TILES, WITHOUT_TILES
from tests.weights.test_packing import needs_onednn


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def prefixes(backbone: foreword.Backbone) -> list[Prefix]:
    return captured(backbone)


@pytest.mark.parametrize("copied", [0, 10, 100])
@pytest.mark.parametrize("seed", range(2))
def test_every_request_of_a_shifting_batch_gives_what_the_formula_gives(
    backbone: foreword.Backbone, prefixes: list[Prefix], seed: int, copied: int
) -> None:
    requests = drawn(seed, prefixes)
    with Engine(backbone, replace(SMALL, copied=copied)) as engine:
        found = engine.generate(requests)
        assert engine.scheduler.is_idle
        assert not any(shelf.slots for shelf in engine.runner.cache.shelves)
    mixed = 0
    for request, one in zip(requests, found, strict=True):
        assert one.error == ""
        assert len(one.tokens) == request.sampling.max_tokens
        assert fits(backbone, request, one.tokens)
        mixed += len(request.branches) > 1
    assert 6 <= mixed < len(requests)


def test_a_mixture_is_none_of_its_branches(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """Else the tests here could not fail."""
    one, other = prefixes[:2]
    requests = [mix([5, 9, 7], (1.3, one), (-0.6, other), max_tokens=12)]
    requests += [ask([5, 9, 7], prefix, max_tokens=12) for prefix in (one, other, None)]
    with Engine(backbone, SMALL) as engine:
        found = engine.generate(requests)
    assert len({each.tokens for each in found}) == 4
    assert below_best(backbone, requests[0], found[1].tokens) > 0.1


def test_drawn_tokens_are_those_of_the_formula(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    one, two, three, _ = prefixes

    def asked(seed: int) -> Request:
        options = {"temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": seed}
        return mix([5, 6, 7], (0.9, one), (0.5, two), (-0.4, three), **options)

    with Engine(backbone, SMALL) as engine:
        found = engine.generate([*drawn(1, prefixes, 5), *map(asked, range(4))])[5:]
        again = engine.generate([asked(2)])[0]
    assert [each.tokens for each in found] == [written(backbone, asked(seed)) for seed in range(4)]
    assert again.tokens == found[2].tokens
    assert len({each.tokens for each in found}) == 4


def test_log_probabilities_are_the_mixtures_and_penalties_change_what_is_chosen(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    parts = (0.8, prefixes[0]), (0.7, prefixes[1])
    with Engine(backbone, SMALL) as engine:
        found, forced, varied = engine.generate(
            [
                mix([8] * 9, *parts, logprobs=3, temperature=0.7, seed=0, max_tokens=6),
                mix([8], *parts, logit_bias={42: 1e4}),
                mix([8], *parts, max_tokens=40, frequency_penalty=1e3),
            ]
        )
    expected = mixture(backbone, mix([8] * 9, *parts), found.tokens)
    assert len(found.logprobs) == 6
    for place, one in enumerate(found.logprobs):
        top = torch.topk(expected[place], 3)
        assert one.token == found.tokens[place]
        assert one.logprob == pytest.approx(float(expected[place, one.token]), abs=1e-4)
        assert [token for token, _ in one.top] == top.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert set(forced.tokens) == {42}
    assert len(set(varied.tokens)) == 40


# -- what takes no part --------------------------------------------------------------------------


def test_branches_gather_what_is_equal_and_leave_out_what_counts_nothing() -> None:
    def of(*weighted: tuple[float, str]) -> list[tuple[float, str | None]]:
        return [(one.coefficient, one.under) for one in branches_of(weighted, str.lower)]

    assert of() == [(1.0, None)]
    assert of((1, "a")) == [(1.0, "a")]
    assert of((1, "a"), (0, "b")) == [(1.0, "a")]
    assert of((0, "b"), (1, "a")) == [(1.0, "a")]
    assert of((0, "a")) == [(1.0, None)]
    assert of((0.5, "a"), (0.5, "A")) == [(1.0, "a")]
    assert of((2, "a"), (-2, "A")) == [(1.0, None)]
    assert of((1.5, "a")) == [(1.5, "a"), (-0.5, None)]
    assert of((1, "a"), (-0.5, "b"), (0.25, "a")) == [(1.25, "a"), (-0.5, "b"), (0.25, None)]
    # Sums that are 1 or 0 but for rounding: 0.7 + 0.2 + 0.1 is 0.9999999999999999.
    assert [name for _, name in of((0.7, "a"), (0.2, "b"), (0.1, "c"))] == ["a", "b", "c"]
    assert of((0.1, "a"), (0.2, "a"), (-0.3, "a"), (1, "b")) == [(1.0, "b")]


def test_too_many_prefixes_and_weights_that_are_no_numbers_are_refused(
    prefixes: list[Prefix],
) -> None:
    prefix = prefixes[0]
    for weight in (float("nan"), float("inf"), "1", True, None):
        with pytest.raises(DataError, match="weight must be a finite number; found"):
            Weighted(prefix, weight)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="strength must be a finite number; found"):
            Weighted(prefix, strength=weight)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at most 8 prefixes; found 9"):
        mix([5], *[(0.1, prefix)] * (MAX_PREFIXES + 1))
    with pytest.raises(DataError, match="more than a number can hold"):
        mix([5], (1.7e308, prefix), (1.7e308, prefix))
    assert mix([5], *[(0.5, prefix)] * MAX_PREFIXES).branches == (
        Branch(4.0, Weighted(prefix, 0.5)),
        Branch(-3.0, None),
    )


def test_a_mixture_of_one_is_that_one_bit_for_bit(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And costs one row: a branch that counts nothing is not computed."""
    one, two = prefixes[:2]
    logits: list[torch.Tensor] = []
    rows: list[int] = []
    tell, run = Engine._tell, Runner.run

    def watched(self: Engine, job: Job, token: int, logits_V: torch.Tensor) -> None:
        logits.append(logits_V.clone())
        tell(self, job, token, logits_V)

    def counted(self: Runner, each: Sequence[Row]) -> list[torch.Tensor]:
        rows.append(len(each))
        return run(self, each)

    prompt = [7, 8, 9]
    under = [
        mix(prompt, (1, one), (0, two)),
        mix(prompt, (0, two), (1, one)),
        mix(prompt, (0.25, one), (0.75, one)),
        mix(prompt, (0.5, two), (1, one), (-0.5, two)),
        mix(prompt, (1, one)),
    ]
    alone = [mix(prompt, (0, one)), mix(prompt, (2, two), (-2, two))]
    with Engine(backbone, SMALL) as engine:
        monkeypatch.setattr(Engine, "_tell", watched)
        monkeypatch.setattr(Runner, "run", counted)
        for plain, mixed in ((ask(prompt, one), under), (ask(prompt), alone)):
            (expected,) = engine.generate([plain])
            own = torch.stack(logits)
            for request in mixed:
                logits.clear()
                (found,) = engine.generate([request])
                assert found.tokens == expected.tokens
                assert torch.equal(torch.stack(logits), own)
            logits.clear()
        assert set(rows) == {1}
        rows.clear()
        engine.generate([mix(prompt, (0.5, one), (0.25, one), (0.5, two))])
        assert set(rows) == {3}
        rows.clear()
        engine.generate([mix(prompt, (0.7, one), (0.2, two), (0.1, one))])
        assert set(rows) == {2}


def test_branches_are_added_in_their_order_whoever_comes_first() -> None:
    """Sums of float32 in another order are other bits, and so other tokens."""
    coefficients = (0.9, -1.7, 1.1, 0.7)
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    found = []
    for order in itertools.permutations(range(4)):
        one = Mix(coefficients)
        *early, last = [one.hear(branch, logits[branch]) for branch in order]
        assert early == [None] * 3
        assert last is not None
        assert not one.said
        found.append(last)
    assert all(torch.equal(found[0], each) for each in found)
    expected = torch.tensor(coefficients, dtype=torch.float64) @ logits.double().log_softmax(dim=-1)
    torch.testing.assert_close(found[0].double(), expected, atol=1e-5, rtol=0)


def test_a_prefix_that_stands_for_a_mixture_is_served_as_one(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    one, two, three, _ = prefixes
    stands = foreword.concat(one.strength(1.2), two.strength(-0.5), combination="logits")
    options = {"temperature": 1.0, "seed": 2, "max_tokens": 40}
    with Engine(backbone, SMALL) as engine:
        found = engine.generate(
            [
                mix([7, 8], (1, stands), **options),
                mix([7, 8], (1.2, one), (-0.5, two), **options),
                mix([7, 8], (0.5, stands), (0.5, three), **options),
                mix([7, 8], (0.6, one), (-0.25, two), (0.5, three), **options),
            ]
        )
    assert found[0].tokens == found[1].tokens != found[2].tokens == found[3].tokens


# -- beside others -------------------------------------------------------------------------------


def watched_logits(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[torch.Tensor]]:
    """By request the logits that each of its tokens was chosen by."""
    seen: dict[str, list[torch.Tensor]] = {}
    tell = Engine._tell

    def watched(self: Engine, job: Job, token: int, logits_V: torch.Tensor) -> None:
        seen.setdefault(job.request.name, []).append(logits_V.clone())
        tell(self, job, token, logits_V)

    monkeypatch.setattr(Engine, "_tell", watched)
    return seen


@pytest.mark.skipif(not HAS_TILES, reason="this processor has no products of tiles")
def test_without_products_of_tiles_logits_are_the_same_too() -> None:
    name = "a_batch_gives_each_the_bits_that_it_has_alone"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", name, __file__]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, env=os.environ | WITHOUT_TILES, cwd=root, capture_output=True, text=True
    )
    assert "1 passed" in done.stdout, done.stdout[-2000:]


@needs_onednn
@pytest.mark.skipif(HAS_TILES, reason="products of tiles (AMX) do not promise it")
def test_a_batch_gives_each_the_bits_that_it_has_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtures, plain requests and requests without a prefix; in bfloat16, where a sum's order shows."""
    model = tiny_model(hidden_size=128, intermediate_size=2048).to(torch.bfloat16)
    backbone = foreword.Backbone(model, byte_tokenizer(), name="tiny")
    one, two = (backbone.capture(ids) for ids in ([9, 8, 7, 6], [5] * 30))
    kinds: list[tuple[tuple[float, Prefix], ...]] = [
        ((1.2, one), (-0.4, two)),
        ((1, one),),
        ((0.5, two),),
        (),
        ((0.3, one), (0.4, two)),
    ]
    seen = watched_logits(monkeypatch)
    requests = [
        mix(
            [3 + index] * (2 + 5 * index),
            *kinds[index % 5],
            temperature=1.0,
            seed=index,
            max_tokens=30,
        )
        for index in range(10)
    ]
    with Engine(backbone, Limits(rows=24)) as engine:
        alone = [engine.generate([request])[0].tokens for request in requests]
        logits = {name: torch.stack(each) for name, each in seen.items()}
        seen.clear()
        beside = [each.tokens for each in together(engine, requests)]
    assert beside == alone
    assert len(seen) == 10
    for name, each in seen.items():
        assert torch.equal(torch.stack(each), logits[name]), name


def test_a_prompt_is_computed_once_for_each_prefix_that_it_stands_behind(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether branches of mixtures ask for it, or requests of one prefix, or of none."""
    one, two = prefixes[:2]
    prompt = [7 * index % 80 + 3 for index in range(40)]
    requests = [
        mix(prompt, (0.5, one), (0.7, two), max_tokens=9),
        ask(prompt, one, max_tokens=5),
        mix(prompt, (1.5, two), max_tokens=7),
        ask(prompt, None, max_tokens=12),
        mix(prompt, (0.5, one), (0.7, two), max_tokens=9, temperature=1.0, seed=3),
    ]
    computed = 0
    run = Runner.run

    def watched(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
        nonlocal computed
        computed += sum(len(row.tokens) for row in rows if len(row.tokens) > 1)
        return run(self, rows)

    for rows in (12, 4):  # all at once, and some only when others have ended
        with Engine(backbone, replace(SMALL, rows=rows, prompt_tokens=64)) as engine:
            alone = [engine.generate([request])[0] for request in requests]
            monkeypatch.setattr(Runner, "run", watched)
            computed = 0
            found = together(engine, requests)
            monkeypatch.setattr(Runner, "run", run)
        assert computed == 3 * 40 or rows == 4
        assert [each.tokens for each in found] == [each.tokens for each in alone]
        for request, each in zip(requests, found, strict=True):
            assert fits(backbone, request, each.tokens)


def test_a_branch_whose_prompt_takes_longer_is_waited_for(
    backbone: foreword.Backbone, prefixes: list[Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are computed 16 tokens at a time, one after the other; nothing is decoded meanwhile."""
    prompt = [7 * index % 80 + 3 for index in range(60)]
    request = mix(prompt, (0.7, prefixes[1]), (0.9, prefixes[0]), max_tokens=5)
    sizes: list[list[int]] = []
    run = Runner.run

    def watched(self: Runner, rows: Sequence[Row]) -> list[torch.Tensor]:
        sizes.append([len(row.tokens) for row in rows])
        return run(self, rows)

    with Engine(backbone, SMALL) as engine:
        monkeypatch.setattr(Runner, "run", watched)
        (found,) = engine.generate([request])
    first = sizes.index([1, 1, 1])
    assert sum(map(sum, sizes[:first])) == 3 * 60
    assert sizes[first:] == [[1, 1, 1]] * 4
    assert fits(backbone, request, found.tokens)


# -- prompts -------------------------------------------------------------------------------------


def begun() -> foreword.Backbone:
    """A backbone whose tokenizer begins every text with <s>."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return foreword.Backbone(tiny_model(), tokenizer, name="tiny")


def test_each_branch_has_the_bos_that_its_prefix_leaves_to_the_input() -> None:
    """A captured text carries the BOS; beside it the backbone alone needs one of its own."""
    backbone = begun()
    carries = backbone.capture("one text")
    leaves = backbone.capture([9, 8, 7])
    assert (carries.meta.bos, leaves.meta.bos, backbone.bos) == ("prefix", "input", "input")
    bare, own = [5, 6, 7], [0, 5, 6, 7]
    with Engine(backbone, SMALL) as engine:
        found = engine.generate(
            [
                mix(bare, (1.4, carries), (-0.7, leaves), max_tokens=20),
                mix(own, (-0.7, leaves), (1.4, carries), max_tokens=20),
            ]
        )
    assert found[0].tokens == found[1].tokens
    ids: list[int] = []
    for _ in range(20):
        total = (
            1.4 * said(backbone, carries, [*bare, *ids])[-1]
            - 0.7 * said(backbone, leaves, [*own, *ids])[-1]
            + 0.3 * said(backbone, None, [*own, *ids])[-1]
        )
        ids.append(int(total.argmax()))
    assert found[0].tokens == tuple(ids)


def test_a_prompt_is_moved_between_bos_policies() -> None:
    backbone = begun()
    carries, leaves = backbone.capture("one text"), backbone.capture([9, 8, 7])
    none = leaves.with_meta(bos="none")
    assert under_bos(backbone, [5, 6], carries, leaves) == [0, 5, 6]
    assert under_bos(backbone, [5, 6], carries, None) == [0, 5, 6]
    assert under_bos(backbone, [0, 5, 6], carries, None) == [0, 5, 6]
    assert under_bos(backbone, [0, 5, 6], None, carries) == [5, 6]
    assert under_bos(backbone, [5, 6], leaves, none) == [5, 6]
    assert under_bos(backbone, [0], leaves, carries) == [0]
    assert under_bos(backbone, [0, 5], carries, none) == [0, 5]
    assert under_bos(backbone, [5, 6], leaves, None) == [5, 6]
    plain = foreword.Backbone(tiny_model())
    assert under_bos(plain, [5, 6], carries, None) == [5, 6]
