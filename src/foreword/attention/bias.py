"""Learned biases by distance (T5, MPNet): columns for a prefix, at its own distance.

Virtual token j of a prefix of length L stands at j - L, before the text's position 0, and its bias is
that of its distance to the query, as if it were a token there. Attention to an encoder's output has
none, so there a prefix has none either.

Source: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer", JMLR 2020, section 2.1 (relative position embeddings shared by a stack's layers).

Shapes: B batch, H heads, P prefix length, Q queries.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreword.attention.signature import parameters_of


class LearnedBias:
    """The biases of one stack.

    Args:
        table: The module that holds the stack's table, of which it takes the rule: a layer's attention
            (T5), or the stack itself (MPNet).
        of_decoder: Whether the stack is a decoder behind an encoder.
    """

    def __init__(self, table: nn.Module, *, of_decoder: bool) -> None:
        self.table: Any = table
        self.of_decoder = of_decoder

    def columns(self, place_BP: Tensor, position_BQ: Tensor, dtype: torch.dtype) -> Tensor:
        """Biases (B, H, Q, P) of tokens at places, for queries at positions."""
        bucket_BQP = self._bucket(place_BP[:, None, :] - position_BQ[:, :, None])
        bias_BHQP: Tensor = self.table.relative_attention_bias(bucket_BQP).permute(0, 3, 1, 2)
        return bias_BHQP.to(dtype)

    def _bucket(self, distance: Tensor) -> Tensor:
        """The table's row for each distance of a key from its query."""
        table = self.table
        if hasattr(table, "relative_position_bucket"):
            return cast("Tensor", table.relative_position_bucket(distance))
        known = inspect.signature(table._relative_position_bucket).parameters
        options = {
            "bidirectional": not table.is_decoder,
            "num_buckets": table.relative_attention_num_buckets,
            "max_distance": table.relative_attention_max_distance,
        }
        given = {name: value for name, value in options.items() if name in known}
        return cast("Tensor", table._relative_position_bucket(distance, **given))


def biases_of(
    names: Mapping[nn.Module, str], stacks: Mapping[str, str]
) -> dict[str, LearnedBias | None]:
    """The biases of each attention module that has any; None for one whose biases are zero.

    Args:
        names: The model's modules, in order, and their names. A stack is a model of its own
            (`PreTrainedModel`); its first layer holds the table, or each layer one of its own.
        stacks: The stack of each site, by the module's name.
    """
    found: dict[str, LearnedBias | None] = {}
    bias: LearnedBias | None = None
    for module, name in names.items():
        if isinstance(module, PreTrainedModel):
            bias = None
        has_table = isinstance(getattr(module, "relative_attention_bias", None), nn.Embedding)
        if has_table and hasattr(module, "relative_position_bucket"):
            bias = LearnedBias(module, of_decoder=False)
        if name not in stacks or not _takes_bias(module):
            continue
        if has_table:
            bias = LearnedBias(module, of_decoder=stacks[name] == "decoder")
        if stacks[name] == "cross":
            found[name] = None
        elif bias is not None:
            found[name] = bias
    return found


def _takes_bias(module: nn.Module) -> bool:
    """Whether an attention module adds biases by distance to its scores."""
    return hasattr(module, "_relative_position_bucket") or "position_bias" in parameters_of(
        type(module)
    )
