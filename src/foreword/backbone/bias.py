"""Learned biases by distance (T5): columns for a prefix, at its own distance.

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
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class LearnedBias:
    """The biases of one stack.

    Args:
        table: The attention module that holds the stack's table, of which it takes the rule.
        of_decoder: Whether the stack is a decoder behind an encoder.
    """

    def __init__(self, table: nn.Module, *, of_decoder: bool) -> None:
        self.table: Any = table
        self.of_decoder = of_decoder

    def columns(self, place_BP: Tensor, position_BQ: Tensor, dtype: torch.dtype) -> Tensor:
        """Biases (B, H, Q, P) of tokens at places, for queries at positions."""
        table = self.table
        known = inspect.signature(table._relative_position_bucket).parameters
        options = {
            "bidirectional": not table.is_decoder,
            "num_buckets": table.relative_attention_num_buckets,
            "max_distance": table.relative_attention_max_distance,
        }
        bucket_BQP = table._relative_position_bucket(
            place_BP[:, None, :] - position_BQ[:, :, None],
            **{name: value for name, value in options.items() if name in known},
        )
        bias_BHQP: Tensor = table.relative_attention_bias(bucket_BQP).permute(0, 3, 1, 2)
        return bias_BHQP.to(dtype)


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
        if name not in stacks or not hasattr(module, "_relative_position_bucket"):
            continue
        if isinstance(getattr(module, "relative_attention_bias", None), nn.Embedding):
            bias = LearnedBias(module, of_decoder=stacks[name] == "decoder")
        if stacks[name] == "cross":
            found[name] = None
        elif bias is not None:
            found[name] = bias
    return found
