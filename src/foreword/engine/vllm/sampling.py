"""From our `Sampling` to what vLLM samples with, field by field, and from its numbers to ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreword.data.written import Written
from foreword.engine.request import NotServed, Sampling, TokenLogprobs

HOTTEST = 2.0
"""Highest temperature that vLLM takes."""

SEEDS = 2**63
"""Seeds are below it; a negative one counts down from here, for vLLM takes -1 for none."""


def parameters(sampling: Sampling, written: Written) -> dict[str, Any]:
    """Arguments of ``vllm.SamplingParams``.

    Text is made here and not by vLLM, as under the embedded engine: stop texts are looked for in what a
    prefix's training counts as text. The ends, too, are those that training gave, not vLLM's own.

    Args:
        sampling: The request's options.
        written: How its text ends.

    Raises:
        NotServed: A field is out of vLLM's range.
    """
    if sampling.temperature > HOTTEST:
        raise NotServed(
            "temperature",
            f"vLLM takes at most {HOTTEST:g}; found {sampling.temperature:g}. Give a lower one",
        )
    return {
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if sampling.is_greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": None if sampling.seed is None else sampling.seed % SEEDS,
        "logprobs": sampling.logprobs,
        "prompt_logprobs": sampling.prompt_logprobs,
        "logit_bias": dict(sampling.logit_bias) or None,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop_token_ids": [] if sampling.ignore_eos else sorted(written.ends),
        "ignore_eos": True,  # of vLLM's own
        "detokenize": False,
    }


def told(
    tokens: Sequence[int], found: Sequence[Mapping[int, Any] | None], top: int
) -> tuple[TokenLogprobs, ...]:
    """Log-probabilities of tokens.

    Args:
        tokens: The tokens.
        found: For each by token id vLLM's numbers; None for a prompt's first.
        top: How many of the likeliest are told.
    """
    return tuple(
        _told(token, one, top) if one is not None else TokenLogprobs(token, float("nan"), ())
        for token, one in zip(tokens, found, strict=True)
    )


def _told(token: int, found: Mapping[int, Any], top: int) -> TokenLogprobs:
    numbers = {other: float(one.logprob) for other, one in found.items()}
    best = sorted(numbers.items(), key=lambda pair: -pair[1])[:top]
    return TokenLogprobs(token, numbers[token], tuple(best))
