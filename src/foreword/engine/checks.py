"""What every engine checks of a request, and how it tells that there is no room."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from foreword.described import Described
from foreword.engine.protocol import EngineClient
from foreword.engine.request import NotServed, Request, Weighted, branches_for
from foreword.errors import DataError, TooLong
from foreword.mixture import Mixture, is_mixture
from foreword.prefix import Prefix, check_prefix

CLOSED = "the engine takes no more requests: it is being closed"
"""Why an engine that is closed refuses."""


def room_after(context: int, size: int, prefix: Described | None) -> int:
    """Tokens that a context leaves after a prompt behind a prefix.

    Args:
        context: Most tokens, prefix and text together.
        size: Tokens of the prompt.
        prefix: The prefix, or None.

    Raises:
        TooLong: None.
    """
    length = prefix.length if prefix is not None else 0
    room = context - length - size
    if room < 1:
        raise TooLong(
            f"the prompt has {size} tokens and the prefix {length}; the backbone's context of "
            f"{context} leaves no room to go on. Shorten the prompt"
        )
    return room


def whole_prefix(request: Request) -> Prefix | None:
    """The prefix of a request with its tensors, for an engine that computes with them itself.

    Raises:
        PrefixError: What stands for it is no `Prefix`, such as what a file says of one.
    """
    prefix = request.prefix
    if prefix is None:
        return None
    check_prefix(prefix, f"the prefix of {request.name}")
    assert isinstance(prefix, Prefix)
    return prefix


def strength_of(request: Request) -> float:
    """The strength of a request's one prefix; 1 without any."""
    return 1.0 if request.leading is None else request.leading.strength


def check_tokens(request: Request, vocabulary: int) -> None:
    """Check that a request's tokens, and those that it favours, are in the vocabulary.

    Raises:
        DataError: One is not.
    """
    check_known(itertools.chain(request.prompt, request.sampling.logit_bias), vocabulary)


def check_known(tokens: Iterable[int], vocabulary: int) -> None:
    """Check that tokens are in the vocabulary.

    Raises:
        DataError: One is not.
    """
    wrong = next((token for token in tokens if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise DataError(f"token {wrong} is not in the vocabulary of {vocabulary}")


def room_of(engine: EngineClient, size: int, prefixes: Sequence[Weighted]) -> int:
    """Tokens that the context leaves after a prompt of `size` tokens behind a request's prefixes.

    Args:
        engine: The engine.
        size: Tokens of the prompt.
        prefixes: Those of the request, as in `Request.prefixes`.

    Raises:
        TooLong: None.
    """
    return min(engine.room(size, one) for one in _each(prefixes))


def left_of(engine: EngineClient, size: int, prefixes: Sequence[Weighted]) -> int:
    """Tokens that memory leaves after a prompt of `size` tokens, in each row of a request."""
    each = _each(prefixes)
    if len(each) == 1:
        return engine.left(size, each[0])
    whole = engine.left(0, None)
    taken = sum(whole - engine.left(size + 1, one) for one in each)  # one more: a branch's own BOS
    return (whole - taken) // len(each)


def _each(prefixes: Sequence[Weighted]) -> list[Described | None]:
    """What the branches of a request run under."""
    branches = branches_for(opened_prefixes(prefixes))
    return [None if branch.under is None else branch.under.prefix for branch in branches]


def opened_prefixes(prefixes: Sequence[Weighted]) -> tuple[Weighted, ...]:
    """The prefixes of a request, where one that stands for a mixture is that mixture's prefixes."""
    found: list[Weighted] = []
    for one in prefixes:
        if is_mixture(one.prefix) and isinstance(one.prefix, Prefix):
            parts = Mixture.of(one.prefix).parts
            found += [replace(one, prefix=part, weight=one.weight * w) for w, part in parts]
        else:
            found.append(one)
    return tuple(found)


def opened(request: Request) -> Request:
    """A request under the prefixes of the mixtures that its own stand for; else itself."""
    if not any(is_mixture(one.prefix) for one in request.prefixes):
        return request
    return replace(request, prefixes=opened_prefixes(request.prefixes))


def refuse_mixture(request: Request) -> None:
    """Check that a request has one prefix as it is, or none, for engines that serve nothing else.

    Raises:
        NotServed: It has several, or a weight or a strength other than 1.
    """
    instead = "is not served by vLLM; use Foreword's own engine (--engine embedded)"
    if len(request.prefixes) > 1:
        raise NotServed("prefixes", f"a mixture of {len(request.prefixes)} prefixes {instead}")
    for one in request.prefixes:
        if is_mixture(one.prefix):
            raise NotServed("prefixes", f"a prefix that stands for a mixture {instead}")
        if one.weight != 1:
            raise NotServed("weight", f"a prefix at weight {one.weight:g} {instead}")
        if one.strength != 1:
            raise NotServed("strength", f"a prefix at strength {one.strength:g} {instead}")
