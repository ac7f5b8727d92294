"""Llama's attention under a prefix, written out from docs/format.md in plain matrix products.

Under strengths it is the mean over every choice of the prefix's pieces, each there with its strength as
the probability (which may be above 1, or below 0).

Shapes: B batch, H key/value heads, T tokens, P prefix length, D head dimension. Query heads are
grouped: each key/value head serves several.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from foreword.prefix import Prefix


def _choices(prefix: Prefix) -> Iterator[tuple[float, Tensor]]:
    """Every choice of a prefix's pieces: its weight, and which virtual tokens are there."""
    pieces = prefix.meta.pieces
    for choice in itertools.product([True, False], repeat=len(pieces)):
        pairs = list(zip(choice, pieces, strict=True))
        weight = prod(piece.strength if there else 1 - piece.strength for there, piece in pairs)
        columns = [there for there, piece in pairs for _ in range(piece.length)]
        yield weight, torch.tensor(columns or [True] * prefix.length)


@contextmanager
def by_hand(prefix: Prefix) -> Iterator[None]:
    """Replace the attention of every Llama by the formula, for rows without padding or cache."""
    at = {s.layer: kv for s, *kv in zip(prefix.sites, prefix.keys, prefix.values, strict=True)}
    own = prefix.meta.softmax == "own"

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, None]:
        batch, heads, tokens, dim = query.shape

        def per_query_head(tensor_HKD: Tensor) -> Tensor:
            repeated = tensor_HKD.repeat_interleave(heads // tensor_HKD.shape[-3], dim=-3)
            return repeated.expand(batch, -1, -1, -1)

        later_TT = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        key, value = per_query_head(key), per_query_head(value)
        scores = ((query @ key.mT) * dim**-0.5).masked_fill(later_TT, -torch.inf)
        if module.layer_idx not in at:
            out = scores.softmax(-1) @ value
            return out.transpose(1, 2), None
        prefix_key, prefix_value = map(per_query_head, at[module.layer_idx])
        to_prefix = (query @ prefix_key.mT) * dim**-0.5

        def over(there_P: Tensor) -> Tensor:
            seen, seen_value = to_prefix[..., there_P], prefix_value[..., there_P, :]
            if own:
                return scores.softmax(-1) @ value + seen.softmax(-1) @ seen_value
            weights = torch.cat([seen, scores], -1).softmax(-1)
            return weights @ torch.cat([seen_value, value], 2)

        out = sum(weight * over(there_P) for weight, there_P in _choices(prefix))
        assert isinstance(out, Tensor)
        return out.transpose(1, 2), None

    class Registry:
        def get_interface(self, *_: object) -> object:
            return attend

    before = modeling_llama.ALL_ATTENTION_FUNCTIONS
    modeling_llama.ALL_ATTENTION_FUNCTIONS = Registry()
    try:
        yield
    finally:
        modeling_llama.ALL_ATTENTION_FUNCTIONS = before
