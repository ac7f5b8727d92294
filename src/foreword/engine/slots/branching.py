"""From a request to its branches: one request for each forward pass that its tokens are chosen by."""

from __future__ import annotations

from dataclasses import replace

from foreword.backbone.served import Served
from foreword.engine.request import NotServed, Request, Weighted
from foreword.prompts import under_bos


def branch_requests(request: Request, backbone: Served) -> tuple[Request, ...]:
    """The request of each branch, under its own prefix alone; of a plain request itself.

    The branches differ in their prefixes, and in the BOS of their prompts where one prefix carries it
    and another leaves it to the input.

    Args:
        request: The request, whose prompt is that of its leading prefix.
        backbone: The backbone.

    Raises:
        NotServed: Something is asked for that a mixture does not have.
    """
    if len(request.branches) == 1:
        return (request,) if _is_plain(request) else (_alone(request, request.leading),)
    if request.sampling.prompt_logprobs is not None:
        raise NotServed(
            "prompt_logprobs",
            "log-probabilities of a prompt under a mixture of prefixes are not told; leave them out, or "
            "ask for one prefix",
        )
    made = []
    for branch in request.branches:
        own = None if branch.under is None else branch.under.prefix
        prompt = under_bos(backbone, request.prompt, request.prefix, own)
        made.append(replace(_alone(request, branch.under), prompt=tuple(prompt)))
    return tuple(made)


def _is_plain(request: Request) -> bool:
    return len(request.prefixes) <= 1 and all(one.weight == 1 for one in request.prefixes)


def _alone(request: Request, one: Weighted | None) -> Request:
    """The same request under one prefix at full weight, or under none."""
    return replace(request, prefixes=() if one is None else (replace(one, weight=1.0),))
