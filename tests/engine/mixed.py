"""A mixture alone, without the engine: each branch through transformers, and the formula."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

import foreword
from foreword.engine import Limits, Request, Sampling, Weighted
from foreword.engine.slots.sampler import Draw, sample
from foreword.prefix import Prefix
from tests.engine.test_engine import ask

TIE = 1e-4
"""Log-probabilities nearer than this may come in either order."""
SMALL = Limits(rows=8, prompt_tokens=16, copied=10)
"""Of the prefixes here some are copied to their rows' slots, and some shared."""


def captured(backbone: foreword.Backbone) -> list[Prefix]:
    """Prefixes of 8, 29 and 1 virtual tokens, and one of 20 that moves the text up."""
    texts = ("one text", "another, longer text in front", "x", "offset by its length")
    made = [backbone.capture(backbone.tokens(text)) for text in texts[:3]]
    return [*made, backbone.capture(backbone.tokens(texts[3]), "offset")]


def mix(prompt: list[int], *parts: tuple[float, Prefix], **sampling: object) -> Request:
    options = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True, **sampling}
    held = tuple(Weighted(prefix, weight) for weight, prefix in parts)
    return Request(tuple(prompt), Sampling(**options), held)  # type: ignore[arg-type]


def drawn(seed: int, prefixes: list[Prefix], count: int = 16) -> list[Request]:
    """Requests of random lengths: mixtures of one to three prefixes, one prefix, and none."""
    choose = random.Random(seed)

    def one() -> Request:
        prompt = [choose.randrange(3, 90) for _ in range(choose.randrange(1, 40))]
        options = {"max_tokens": choose.randrange(1, 16)}
        if choose.random() < 0.3:
            return ask(prompt, choose.choice([None, *prefixes]), **options)
        taken = choose.sample(prefixes, choose.randrange(1, 4))
        return mix(prompt, *((choose.uniform(-0.7, 1.4), each) for each in taken), **options)

    return [one() for _ in range(count)]


def said(backbone: foreword.Backbone, prefix: Prefix | None, ids: Sequence[int]) -> Tensor:
    """Log-probabilities (T, V) of the token after each of some ids, float64."""
    with backbone.attached(prefix), torch.no_grad():
        given = torch.tensor([ids], device=backbone.device)
        logits: Tensor = backbone.model(input_ids=given, use_cache=False).logits[0]
    return logits.double().cpu().log_softmax(dim=-1)


def mixture(backbone: foreword.Backbone, request: Request, tokens: Sequence[int] = ()) -> Tensor:
    """Log p = (1 - sum w) log p(base) + sum w_i log p(prefix i), renormalised: (tokens + 1, V).

    Each prefix is at its strength.
    """
    ids = [*request.prompt, *tokens]
    weights = [one.weight for one in request.prefixes]
    total = (1 - sum(weights)) * said(backbone, None, ids)
    for one in request.prefixes:
        assert isinstance(one.prefix, Prefix)
        total = total + one.weight * said(backbone, one.prefix.strength(one.strength), ids)
    return total.log_softmax(dim=-1)[len(request.prompt) - 1 :]


def written(backbone: foreword.Backbone, request: Request) -> tuple[int, ...]:
    """The request's tokens, one after the other, under its own sampling."""
    draw = Draw.begin(request.sampling, torch.device("cpu"))
    tokens: list[int] = []
    for _ in range(request.sampling.max_tokens):
        tokens += sample(mixture(backbone, request, tokens)[-1:].float(), [draw])
    return tuple(tokens)


def below_best(backbone: foreword.Backbone, request: Request, tokens: Sequence[int]) -> float:
    """How far a request's tokens ever are below the best one of the mixture, in log-probability."""
    scores = mixture(backbone, request, tokens)[:-1]
    chosen = scores.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float((scores.amax(dim=-1) - chosen).max())


def fits(backbone: foreword.Backbone, request: Request, tokens: Sequence[int]) -> bool:
    """Whether tokens are those of the formula, but for ties."""
    return (
        tuple(tokens) == written(backbone, request) or below_best(backbone, request, tokens) < TIE
    )
