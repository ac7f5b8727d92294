"""MPNet (Song et al., NeurIPS 2020), whose modules attend by themselves and ask no cache.

While a model is attached, each module's forward is the one here: the same sums over keys and values
that a prefix may have joined, with columns for it in the mask and in the bias by distance.

Shapes: B batch, H heads, T tokens, J = P + T keys joined, D head dimension.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from foreword.attention.adapters.base import no_softmax_of_its_own
from foreword.attention.frame import AttentionCall
from foreword.attention.running import frame_of
from foreword.attention.strength import blended_softmax


class MPNet:
    """Self-attention of one layer."""

    relative = False

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module
        module.__dict__["forward"] = self.forward

    def remove(self) -> None:
        """Leave the module as it was found."""
        self.module.__dict__.pop("forward", None)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        """Output (B, T, H * D) and, if asked for, weights (B, H, T, J)."""
        module = self.module
        shape = (*hidden_states.shape[:2], -1, module.attention_head_size)
        query, key, value = (
            layer(hidden_states).view(shape).transpose(1, 2)
            for layer in (module.q, module.k, module.v)
        )
        frame, name = frame_of(module)
        frame.note(AttentionCall(name, key, value, None, query.shape[2]))
        site = frame.site(name)
        if frame.own(name):
            raise no_softmax_of_its_own(module)
        strengths = frame.strengths(site, key.shape[2], query.device)
        if site is not None:
            assert attention_mask is not None
            assert position_bias is not None
            attention_mask = frame.widened(attention_mask, site)
            position_bias = frame.widened_bias(name, position_bias, site, query.shape[2])
            key, value = frame.with_prefix(site, key, value)
        scores_BHTJ = query @ key.mT / math.sqrt(module.attention_head_size)
        for added in (position_bias, attention_mask):
            if added is not None:
                scores_BHTJ = scores_BHTJ + added
        made_BHTJ = (
            blended_softmax(scores_BHTJ, strengths).to(scores_BHTJ)
            if strengths
            else torch.softmax(scores_BHTJ, dim=-1)
        )
        weights_BHTJ = module.dropout(made_BHTJ)
        out = module.o((weights_BHTJ @ value).transpose(1, 2).flatten(2))
        return (out, weights_BHTJ) if output_attentions else (out,)
