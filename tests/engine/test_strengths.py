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
from tests.engine.test_engine import SMALL, TIE
from tests.oracle.families import STANDARD, attention_of
from tests.oracle.family import Family

STRENGTHS = (0.0, 0.35, 1.0, 1.4, -0.3)


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
