"""What is asked of the engine, and what it answers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from foreword.branches import Branch, branches_of, check_finite
from foreword.described import Described
from foreword.errors import DataError, ServeError

FinishReason = Literal["stop", "length", "cancelled", "error"]

COLDEST = 1e-5
"""At a temperature below it the likeliest token is taken: logits divided by it could overflow."""

_numbers = itertools.count()


class EngineClosed(ServeError):
    """A request came to an engine that takes no more."""


class NotServed(DataError):
    """An engine cannot do what a field of a request asks for.

    Args:
        field: The field, by its name in `Sampling`, `Weighted` or `Request`.
        why: What is in the way, and what to do.
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field
        self.why = why


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are chosen; the names are those of OpenAI's API.

    Raises:
        DataError: A number is out of range.
    """

    max_tokens: int = 128
    """Most tokens to generate."""

    temperature: float = 1.0
    """Divides the logits before drawing; 0 takes the likeliest token."""

    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""

    top_k: int = 0
    """Draw from so many likeliest tokens; 0 for all."""

    seed: int | None = None
    """Seed of the drawing. With one, the same request draws alike whatever runs beside it.

    In float32 up to ties. In bfloat16 on a CPU to the bit, but under a prefix that rows share (above
    128 tokens), beside such a one in one chunk of prompts, and where a chunk has more than 512 columns:
    there kernels are chosen by what all rows need, and round otherwise. On a GPU it is not promised, nor
    in bfloat16 on a CPU with products of tiles (AMX)."""

    stop: tuple[str, ...] = ()
    """Texts that end the output; they are left out of it."""

    logprobs: int | None = None
    """How many likeliest tokens are reported with their log-probabilities at each place."""

    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these tokens."""

    presence_penalty: float = 0.0
    """Taken from the logits of tokens that were generated before."""

    frequency_penalty: float = 0.0
    """The same, once for each time."""

    ignore_eos: bool = False
    """Go on after the end of sequence, up to max_tokens."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DataError(f"max_tokens must be at least 1; found {self.max_tokens}")
        if not 0 <= self.temperature < math.inf:
            raise DataError(f"temperature must be at least 0; found {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p must be above 0 and at most 1; found {self.top_p}")
        for name in ("top_k", "logprobs", "prompt_logprobs"):
            found = getattr(self, name)
            if found is not None and found < 0:
                raise DataError(f"{name} must be at least 0; found {found}")
        if any(not text for text in self.stop):
            raise DataError("stop must hold no empty text")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < COLDEST

    @property
    def changes_logits(self) -> bool:
        """Whether logits are changed by what was generated or by a bias."""
        return bool(self.logit_bias or self.presence_penalty or self.frequency_penalty)


@dataclass(frozen=True)
class Weighted:
    """A prefix and how much of it.

    Raises:
        DataError: The weight or the strength is not a finite number.
    """

    prefix: Described
    """A `Prefix`; what its file says of it (`PrefixStore.outline`) is enough for engines whose workers
    read it themselves."""
    weight: float = 1.0
    """What its log-probabilities count in a mixture, any number; 1 alone is the prefix itself."""
    name: str = ""
    """What its store calls it, for engines whose workers read it there; empty for those of none."""
    strength: float = 1.0
    """How far it moves every attention output: 0 is the frozen model, 1 the prefix."""

    def __post_init__(self) -> None:
        check_finite("weight", self.weight)
        check_finite("strength", self.strength)


def branches_for(prefixes: Sequence[Weighted]) -> tuple[Branch[Weighted], ...]:
    """The forward passes that prefixes with weights take: each prefix once, and the backbone alone.

    Raises:
        DataError: There are too many prefixes, or their weights add up to no number.
    """
    if len(prefixes) == 1 and prefixes[0].weight == 1:
        return (Branch(1.0, prefixes[0]),)
    pairs = ((one.weight, one) for one in prefixes)
    return branches_of(pairs, lambda one: (one.prefix.digest, one.strength))


@dataclass(frozen=True)
class Request:
    """A prompt, its prefixes, and how to go on from it.

    Raises:
        DataError: The prompt is empty, or there are too many prefixes.
    """

    prompt: tuple[int, ...]
    """Token ids, at least one."""

    sampling: Sampling = field(default_factory=Sampling)
    prefixes: tuple[Weighted, ...] = ()
    """Prefixes in front of the prompt; none for the backbone alone. Several, or one of another weight
    than 1, are a mixture, at most 8: log p = (1 - sum w) log p(backbone) + sum w_i log p(prefix i),
    renormalised."""

    name: str = ""
    """What the request is called in errors and events; made up by default."""

    ends: frozenset[int] = frozenset()
    """Tokens that end its text, beside those of the backbone and of the prefix's training."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise DataError("a prompt needs at least one token; found none")
        _ = self.branches
        if not self.name:
            object.__setattr__(self, "name", f"request-{next(_numbers)}")

    @cached_property
    def branches(self) -> tuple[Branch[Weighted], ...]:
        """The forward passes that its tokens are chosen by, at least one."""
        return branches_for(self.prefixes)

    @property
    def leading(self) -> Weighted | None:
        """The first prefix that takes part; None where the backbone alone does."""
        return self.branches[0].under

    @property
    def prefix(self) -> Described | None:
        """The first prefix that takes part, or None: its training says how the text begins and ends."""
        return None if self.leading is None else self.leading.prefix


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities under the model, before temperature, bias and penalties.

    Attributes:
        token: The token that stands here.
        logprob: Its log-probability; NaN for a prompt's first token, which nothing comes before.
        top: The likeliest tokens and their log-probabilities, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Event:
    """What a request gives at once: some tokens and their text, or its end.

    Attributes:
        request: The request's name.
        tokens: New token ids.
        text: New text. Tokens and text need not come together: a character may take several tokens,
            and what might be the beginning of a stop text is held back.
        logprobs: For the new tokens, where they were asked for.
        finish: Why the request has ended, or None.
        prompt_logprobs: For the prompt's tokens, with the first event, where they were asked for.
        error: What went wrong, where finish is ``error``.
    """

    request: str
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: FinishReason | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str = ""


@dataclass(frozen=True)
class Completion:
    """All that a request gave, its events put together."""

    request: str
    tokens: tuple[int, ...]
    text: str
    finish: FinishReason
    prompt_tokens: int
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str = ""


def completion(request: Request, events: Sequence[Event]) -> Completion:
    """A request's events put together."""
    last = events[-1]
    assert last.finish is not None
    return Completion(
        request=request.name,
        tokens=tuple(token for event in events for token in event.tokens),
        text="".join(event.text for event in events),
        finish=last.finish,
        prompt_tokens=len(request.prompt),
        logprobs=tuple(one for event in events for one in event.logprobs),
        prompt_logprobs=next(
            (e.prompt_logprobs for e in events if e.prompt_logprobs is not None), None
        ),
        error=last.error,
    )
