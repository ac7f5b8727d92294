"""From logits to tokens: each row under its own request's options.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.engine.request import Sampling, TokenLogprobs

CANDIDATES = 1024
"""Likeliest tokens among which top_p is looked for first: a sort of the whole vocabulary is slow."""


@dataclass
class Draw:
    """What one row is drawn with, and what it has drawn.

    Attributes:
        sampling: The request's options.
        generator: Where its random numbers come from.
        counts: How often each token was generated.
    """

    sampling: Sampling
    generator: torch.Generator
    counts: Counter[int]

    @classmethod
    def begin(cls, sampling: Sampling, device: torch.device) -> Draw:
        """A row's first draw."""
        generator = torch.Generator(device)
        if sampling.seed is None:
            generator.seed()
        else:
            generator.manual_seed(sampling.seed)
        return cls(sampling, generator, Counter())


class Stack:
    """Logits of a step's rows as one tensor, in memory that is used again.

    A new one for each step would be several megabytes that the system maps, and takes back, each time:
    two milliseconds of a step of 36 (benchmarks/LOG.md).
    """

    def __init__(self) -> None:
        self._held = torch.empty(0, 0)

    def of(self, rows: Sequence[Tensor]) -> Tensor:
        """Logits (V,) of each row as float32 (B, V), until the next call."""
        first = rows[0]
        held = self._held
        if len(held) < len(rows) or held.shape[1:] != first.shape or held.device != first.device:
            held = torch.empty(len(rows), *first.shape, device=first.device)
        self._held = held
        for to_V, logits_V in zip(held, rows, strict=False):
            to_V.copy_(logits_V)
        return held[: len(rows)]


def sample(logits_BV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """The next token of each row, float32 logits; counts it."""
    changed_BV, best = likeliest(logits_BV, draws)
    return [
        chosen(changed_V, token, draw)
        for changed_V, token, draw in zip(changed_BV, best, draws, strict=True)
    ]


def likeliest(logits_BV: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, list[int]]:
    """Logits with the rows' biases and penalties, and each row's best token; draws nothing."""
    changed_BV = _changed(logits_BV, draws)
    best: list[int] = changed_BV.argmax(dim=-1).tolist()
    return changed_BV, best


def chosen(changed_V: Tensor, best: int, draw: Draw) -> int:
    """The next token of a row, by its changed logits and their best token; counts it."""
    token = best if draw.sampling.is_greedy else _drawn(changed_V, draw)
    draw.counts[token] += 1
    return token


def _changed(logits_BV: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits with the rows' biases and penalties."""
    if not any(draw.sampling.changes_logits for draw in draws):
        return logits_BV
    logits_BV = logits_BV.clone()
    for logits_V, draw in zip(logits_BV, draws, strict=True):
        sampling = draw.sampling
        _add(logits_V, dict(sampling.logit_bias))
        if sampling.presence_penalty or sampling.frequency_penalty:
            _add(
                logits_V,
                {
                    token: -sampling.presence_penalty - sampling.frequency_penalty * count
                    for token, count in draw.counts.items()
                },
            )
    return logits_BV


def _add(logits_V: Tensor, amounts: dict[int, float]) -> None:
    if amounts:
        tokens = torch.tensor(list(amounts), device=logits_V.device)
        logits_V[tokens] += torch.tensor(list(amounts.values()), device=logits_V.device)


def _drawn(logits_V: Tensor, draw: Draw) -> int:
    """A token at random; the largest of log-probability plus Gumbel noise (Gumbel, 1954)."""
    sampling = draw.sampling
    scaled_V = logits_V / sampling.temperature
    kept_V = _kept(scaled_V, sampling.top_k, sampling.top_p)
    noise_V = torch.empty_like(scaled_V).exponential_(generator=draw.generator)
    return int((kept_V - noise_V.log()).argmax())


def _kept(logits_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """The logits with all but the kept tokens' at -inf; the likeliest one is always kept."""
    size = logits_V.shape[-1]
    if 0 < top_k < size:
        least = torch.topk(logits_V, top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, -torch.inf)
    if top_p < 1:
        probabilities_V = torch.softmax(logits_V, dim=-1)
        values, indices = torch.topk(probabilities_V, min(CANDIDATES, size))
        if float(values.sum()) < top_p:
            values, indices = torch.sort(probabilities_V, descending=True)
        kept = indices[values.cumsum(-1) - values < top_p]
        only_V = torch.full_like(logits_V, -torch.inf)
        only_V[kept] = logits_V[kept]
        logits_V = only_V
    return logits_V


def logprobs_of(logits_V: Tensor, token: int, top: int) -> TokenLogprobs:
    """Log-probabilities of a token and of the likeliest ones, under the model as it is."""
    logprobs_V = torch.log_softmax(logits_V.float(), dim=-1)
    best = torch.topk(logprobs_V, top)
    pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs_V[token]), pairs)
