"""What every engine checks of a request, and how it tells that there is no room."""

from __future__ import annotations

import itertools

from foreword.described import Described
from foreword.engine.request import Request
from foreword.errors import DataError, TooLong
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


def check_tokens(request: Request, vocabulary: int) -> None:
    """Check that a request's tokens, and those that it favours, are in the vocabulary.

    Raises:
        DataError: One is not.
    """
    named = itertools.chain(request.prompt, request.sampling.logit_bias)
    wrong = next((token for token in named if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise DataError(f"token {wrong} is not in the vocabulary of {vocabulary}")
