"""Strengths in the engine: a request of a mixed batch gives what its prefix, so strong, gives alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

import foreword
from foreword.description import Piece
from foreword.engine import Completion, Engine, Limits, Request, Sampling, Weighted
from foreword.errors import UnsupportedModel
from foreword.prefix import Prefix
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.lone import alone, generated
from tests.engine.mixed import fits, mix, mixture
from tests.engine.test_engine import SMALL, TIE, check_streams
from tests.engine.test_engine import ask as plainly
from tests.oracle.families import STANDARD, attention_of
from tests.oracle.family import Family

STRENGTHS = (0.0, 0.35, 1.0, 1.4, -0.3, 2.0)


def ask(prompt: Sequence[int], prefix: Prefix, strength: float, **options: object) -> Request:
    sampling = Sampling(**{"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **options})  # type: ignore[arg-type]
    return Request(tuple(prompt), sampling, (Weighted(prefix, strength=strength),))


def check(backbone: foreword.Backbone, request: Request, found: Completion) -> None:
    """The engine's tokens are those of the same prefix attached at this strength, or differ at a tie."""
    assert found.error == ""
    (one,) = request.prefixes
    assert isinstance(one.prefix, Prefix)
    lone = Request(request.prompt, request.sampling, (Weighted(one.prefix.strength(one.strength)),))
    if found.tokens != generated(backbone, lone):
        assert alone(backbone, lone, found.tokens) <= TIE


def drawn(seed: int, prefixes: Sequence[Prefix], count: int) -> list[Request]:
    choose = random.Random(seed)
    return [
        ask(
            [choose.randrange(3, 90) for _ in range(choose.randrange(1, 40))],
            choose.choice(prefixes),
            choose.choice(STRENGTHS),
            max_tokens=choose.randrange(1, 16),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def prefixes(backbone: foreword.Backbone) -> list[Prefix]:
    texts = (
        "one text",
        "another, longer text in front",
        "x",
        "offset",
        "own softmax",
        "two pieces",
    )
    made = [backbone.capture(backbone.tokens(text)) for text in texts]
    made[3] = backbone.capture(backbone.tokens(texts[3]), "offset")
    made[4] = made[4].with_meta(softmax="own")
    pieces = (Piece("a", 4, 0.5), Piece("b", 3, 0.0), Piece("c", made[5].length - 7))
    made[5] = made[5].with_meta(pieces=pieces)
    return made


@pytest.mark.parametrize("copied", [0, 10, 128], ids=["shared", "both", "copied"])
def test_every_strength_gives_what_it_gives_alone(
    backbone: foreword.Backbone, prefixes: list[Prefix], copied: int
) -> None:
    requests = drawn(1, prefixes, 40)
    with Engine(backbone, Limits(rows=6, prompt_tokens=16, copied=copied)) as engine:
        found = engine.generate(requests)
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


def test_in_bfloat16_other_strengths_change_no_bit(prefixes: list[Prefix]) -> None:
    backbone = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer(), name="tiny")
    texts = ("one text", "another one", "x")
    made = [backbone.capture(backbone.tokens(text)) for text in texts]
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 12}
    requests = [ask([5 + i, 7, 11], made[i % 3], STRENGTHS[i % 5], **options) for i in range(15)]
    with Engine(backbone, Limits(rows=8, copied=128)) as engine:
        together = engine.generate(requests)
    with Engine(backbone, Limits(rows=1, copied=128)) as engine:
        apart = engine.generate(requests)
    assert [one.tokens for one in together] == [one.tokens for one in apart]


def test_the_ends_are_the_backbone_and_the_prefix(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    options = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
    for prefix in prefixes:
        with Engine(backbone, SMALL) as engine:
            none, plain, off, whole = engine.generate(
                [
                    Request((3, 4, 5), options),
                    Request((3, 4, 5), options, (Weighted(prefix),)),
                    ask((3, 4, 5), prefix, 0.0),
                    ask((3, 4, 5), prefix, 1.0),
                ]
            )
        assert off.tokens == none.tokens
        assert whole.tokens == plain.tokens


def held(prompt: Sequence[int], *parts: Weighted) -> Request:
    """A request under prefixes with weights and strengths, which reports log-probabilities."""
    sampling = Sampling(max_tokens=9, temperature=0.0, ignore_eos=True, logprobs=2)
    return Request(tuple(prompt), sampling, parts)


@pytest.mark.parametrize("copied", [0, 10, 128], ids=["shared", "both", "copied"])
def test_a_batch_of_strengths_modes_and_none_gives_each_what_it_has_alone(
    backbone: foreword.Backbone, prefixes: list[Prefix], copied: int
) -> None:
    one, two, short, *_ = prefixes
    control = foreword.concat(
        one, two, short, names=["", "tone=polite", "tone=rude"], combination="control"
    )
    kinds = [
        (Weighted(one, strength=0.35),),
        (Weighted(two, strength=-0.3),),
        (Weighted(one, 1.3), Weighted(two, -0.6)),
        (Weighted(foreword.concat(one.strength(0.5), two.strength(1.3))),),
        (Weighted(foreword.cascade(backbone, two.strength(0.7), one)),),
        (Weighted(control.select({"tone": "rude"}), strength=0.6),),
        (Weighted(one, 0.8, strength=0.4), Weighted(two, -0.5, strength=1.5)),
        (Weighted(one, 0.5), Weighted(one, 0.7, strength=0.2)),
        (Weighted(two),),
        (),
    ]
    requests = [
        held([3 + 5 * i % 80] * (1 + 7 * i % 30), *kind) for i, kind in enumerate([*kinds, *kinds])
    ]
    with Engine(backbone, Limits(rows=24, prompt_tokens=16, copied=copied)) as engine:
        together = engine.generate(requests)
        apart = [engine.generate([request])[0] for request in requests]
    for request, found, lone in zip(requests, together, apart, strict=True):
        assert found.tokens == lone.tokens
        assert fits(backbone, request, found.tokens)
        wanted = mixture(backbone, request, found.tokens)[:-1]
        for place, beside, said_alone in zip(wanted, found.logprobs, lone.logprobs, strict=True):
            assert beside.logprob == pytest.approx(said_alone.logprob, abs=1e-4)
            assert beside.logprob == pytest.approx(float(place[beside.token]), abs=1e-4)
    assert len({found.tokens for found in together}) > len(kinds)


def test_a_mixture_of_strengths_writes_as_without_the_engine(spelled: foreword.Backbone) -> None:
    one, two = (spelled.capture(text) for text in ("one text", "another, longer text in front"))
    prompt, sampling = "a few words", Sampling(max_tokens=12, temperature=0.0, ignore_eos=True)
    parts = (Weighted(one, 0.8, strength=0.4), Weighted(two, -0.5, strength=1.5))
    live = foreword.Mixture(((0.8, one.strength(0.4)), (-0.5, two.strength(1.5))))
    spelled.model.generation_config.eos_token_id = None
    options = foreword.GenerateOptions(max_new_tokens=12)
    ((wanted,),) = foreword.generate(spelled, [prompt], live, options)
    with Engine(spelled, SMALL) as engine:
        found, at_full = engine.generate(
            [
                Request(tuple(spelled.tokens(prompt)), sampling, parts),
                mix(spelled.tokens(prompt), (0.8, one), (-0.5, two), max_tokens=12),
            ]
        )
    assert found.text.strip() == wanted
    assert at_full.tokens != found.tokens


def test_a_strength_streams_what_it_gives_at_once(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    request = ask((5, 6, 7), prefixes[0], 0.35, max_tokens=20)
    found = check_streams(backbone, SMALL, ask((8, 9), prefixes[1], 1.4, max_tokens=200), request)
    check(backbone, request, found)
    with Engine(backbone, SMALL) as engine:
        (whole,) = engine.generate([plainly([5, 6, 7], prefixes[0], max_tokens=20)])
    assert found.tokens != whole.tokens


def test_requests_that_begin_alike_at_other_strengths_share_nothing(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    prompt = list(range(3, 30))
    requests = [ask(prompt, prefixes[0], value) for value in (0.2, 0.8, 0.2, 1.0)]
    with Engine(backbone, Limits(rows=4)) as engine:
        found = engine.generate(requests)
    assert found[0].tokens == found[2].tokens
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


@pytest.mark.parametrize("family", STANDARD, ids=str)
def test_families_that_are_served_have_strengths(family: Family) -> None:
    backbone = foreword.Backbone(family.build(attention_of(family)), name="tiny")
    try:
        engine = Engine(backbone, Limits(rows=4, copied=4))
    except UnsupportedModel:
        pytest.skip("this family is not served in mixed batches")
    made = [backbone.capture([5, 6, 7]), backbone.capture([8, 9, 10, 11, 12, 13])]
    requests = drawn(2, made, 8)
    with engine:
        found = engine.generate(requests)
    for request, one in zip(requests, found, strict=True):
        check(backbone, request, one)


def test_what_cannot_stand_in_front_of_a_text_is_refused(backbone: foreword.Backbone) -> None:
    whole = backbone.capture(list(range(3, 15)))
    control = whole.with_meta(pieces=(Piece("", 6), Piece("a=b", 6)), combination="control")
    many = whole.with_meta(pieces=tuple(Piece("", 2, 0.5) for _ in range(6)))
    with Engine(backbone, SMALL) as engine:
        with pytest.raises(UnsupportedModel, match=r"prefix\.select"):
            engine.check(ask([3], control, 1.0))
        with pytest.raises(UnsupportedModel, match="6 pieces at strengths"):
            engine.check(ask([3], many, 1.0))
