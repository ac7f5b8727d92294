"""What a recipe records of a prefix that was made from others: of which, how, and where they started.

The record is ``recipe["composition"]``, an object of three entries:

- ``mode``: ``sum``, ``interpolation``, ``concat``, ``cascade`` or ``slice``;
- ``of``: the prefixes, each by its digest (``prefix``) and, where it has one, its ``weight`` or the
  ``tokens`` that were taken, from the first to before the last;
- ``start``: what the start of the result is recomputed from, beside the recipe; null where it cannot be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.description import PrefixMeta

COMPOSITION = "composition"
"""Name of the record in a recipe."""

KEPT = ("longest_target", "target_specials")
"""What training measured that reading and writing under a prefix need; the rest is of the parents."""

Term = dict[str, Any]


def composed(
    first: PrefixMeta,
    mode: str,
    of: Sequence[Term],
    start: Mapping[str, Any] | None,
    **changes: Any,
) -> PrefixMeta:
    """The meta of a prefix made from others: the first one's, with the record and the parents.

    Args:
        first: Meta of the first prefix, whose templates stay.
        mode: How they were put together.
        of: What they are.
        start: What `begun` says of the first; None where the result has another start.
        **changes: Fields of the meta that are others than the first one's.
    """
    recipe = {name: value for name, value in first.recipe.items() if name != "peft"}
    recipe[COMPOSITION] = {"mode": mode, "of": list(of), "start": start}
    training = {name: first.training[name] for name in KEPT if name in first.training}
    parents = tuple(dict.fromkeys(term["prefix"] for term in of))
    return dataclasses.replace(first, recipe=recipe, training=training, parents=parents, **changes)


def begun(meta: PrefixMeta, length: int) -> Mapping[str, Any] | None:
    """What a prefix's start is recomputed from, beside its recipe: None where nothing says it.

    Returns:
        ``parents``, digests of those that training started from; ``data``, the digest of the training
        rows or None; ``tokens``, which of the start's virtual tokens are the prefix's.
    """
    record = meta.recipe.get(COMPOSITION)
    if record is None:
        if "init" not in meta.recipe:
            return None
        data = meta.training.get("data")
        return {"parents": list(meta.parents), "data": data, "tokens": [0, length]}
    start = record.get("start") if isinstance(record, dict) else None
    return start if _is_start(start, length) else None


def cut(start: Mapping[str, Any] | None, first: int, end: int) -> Mapping[str, Any] | None:
    """What `begun` says of the virtual tokens from `first` to before `end`."""
    if start is None:
        return None
    origin = start["tokens"][0]
    return {**start, "tokens": [origin + first, origin + end]}


def _is_start(start: Any, length: int) -> bool:
    """Whether a record is what `begun` gives; a file may say anything."""
    if not isinstance(start, dict) or set(start) != {"parents", "data", "tokens"}:
        return False
    parents, data, tokens = start["parents"], start["data"], start["tokens"]
    if not isinstance(parents, list) or not all(isinstance(one, str) for one in parents):
        return False
    if not isinstance(tokens, list) or [type(one) for one in tokens] != [int, int]:
        return False
    fits: bool = tokens[0] >= 0 and tokens[1] - tokens[0] == length
    return fits and isinstance(data, str | None)


def terms(meta: PrefixMeta, digest: str, weight: float = 1.0) -> list[Term]:
    """A prefix as terms of a sum: itself, or what it is a sum of, each times a weight."""
    record = meta.recipe.get(COMPOSITION)
    if isinstance(record, dict) and record.get("mode") == "sum" and _are_terms(record.get("of")):
        return [{**term, "weight": weight * term["weight"]} for term in record["of"]]
    return [{"prefix": digest, "weight": weight}]


def _are_terms(of: Any) -> bool:
    return isinstance(of, list) and all(
        isinstance(term, dict)
        and set(term) == {"prefix", "weight"}
        and isinstance(term["prefix"], str)
        and type(term["weight"]) is float
        for term in of
    )


def merged(listed: Sequence[Term]) -> list[Term]:
    """Terms of a sum with each prefix once, at the sum of its weights."""
    weights: dict[str, float] = {}
    for term in listed:
        weights[term["prefix"]] = weights.get(term["prefix"], 0.0) + term["weight"]
    return [{"prefix": digest, "weight": weight} for digest, weight in weights.items()]
