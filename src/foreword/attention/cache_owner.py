"""Caches belong to the prefix that their tokens were computed under."""

from __future__ import annotations

from typing import Any

from transformers import Cache

from foreword.attention.bound import Bound
from foreword.errors import CacheError

_OWNER = "_foreword_owner"
"""Attribute of a cache: identity of the prefix that its tokens were computed under."""


def held_tokens(cache: Any, bound: Bound | None) -> int:
    """Number of tokens in a cache that a pass under `bound` goes on with; 0 without a cache.

    Raises:
        CacheError: Its tokens were computed under another prefix, or under none.
    """
    if cache is None:
        return 0
    past = int(cache.get_seq_length())
    owner = getattr(cache, _OWNER, None)
    if past and owner != _identity(bound):
        holder = "without a prefix" if owner in (None, "none") else f"under prefix {owner[:12]}"
        raise CacheError(
            f"this cache holds {past} tokens computed {holder}, but the model now runs under "
            f"{_identity(bound)[:12]!r}; start from an empty cache after changing the prefix"
        )
    setattr(cache, _OWNER, _identity(bound))
    return past


def own_caches(output: Any, bound: Bound | None) -> None:
    """Mark the caches in a model's output as computed under `bound`."""
    for cache in _caches(output):
        setattr(cache, _OWNER, _identity(bound))


def _identity(bound: Bound | None) -> str:
    return "none" if bound is None else bound.identity


def _caches(output: Any) -> list[Cache]:
    if isinstance(output, tuple):
        return [part for part in output if isinstance(part, Cache)]
    cache = getattr(output, "past_key_values", None)
    return [cache] if isinstance(cache, Cache) else []
