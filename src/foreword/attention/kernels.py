"""A plain attention kernel, for where it beats SDPA on a CPU in bfloat16.

These are short training passes, where SDPA's backward pass is slower in bfloat16 than in float32, and
decoding steps, where it is slow for few queries (benchmarks/LOG.md). Grouped matrix products with a
softmax in between do the same sums.

Shapes: B batch, H key/value heads, G query heads per key/value head, Q queries, K keys, D key dimension,
E value dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.attention.strength import Strength, blended_softmax

LONGEST = 512
"""Keys up to which the plain kernel trains faster; beyond, its scores cost too much memory."""

FEW = 16
"""Queries up to which the plain kernel is the faster one without gradients, for any number of keys."""


def pays(query: Tensor, key: Tensor) -> bool:
    """Whether `grouped_attention` is the better kernel for this call."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return False
    if key.shape[2] <= LONGEST:
        return True
    with_gradients = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
    return query.shape[2] <= FEW and not with_gradients


def softmax(scores: Tensor) -> Tensor:
    """A softmax over the last dimension whose sums are float32 at least.

    Without gradients the result has the dtype of the scores: sums are float32 inside, and rounding
    once is all that is left. With gradients it is float32, which the backward pass reads it in.
    """
    if scores.requires_grad:
        wide = torch.promote_types(scores.dtype, torch.float32)
        return torch.softmax(scores, dim=-1, dtype=wide)
    return torch.softmax(scores, dim=-1)


def grouped_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    strengths: Sequence[Strength] = (),
) -> Tensor:
    """Scaled dot-product attention (Vaswani et al., 2017, equation 1), heads grouped.

    Args:
        query: (B, H * G, Q, D).
        key: (B, H, K, D).
        value: (B, H, K, E).
        mask: Boolean (True: seen) or additive, (B or 1, H * G or 1, Q, K), or None.
        scaling: Factor of the scores; D**-0.5 by default.
        strengths: Of some of the keys.

    Returns:
        (B, Q, H * G, E), as attention functions of transformers return it. The softmax is computed in
        float32.
    """
    batch, heads, queries, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    scale = dim**-0.5 if scaling is None else scaling
    query_BHgD = (query * scale).reshape(batch, kv_heads, groups * queries, dim)
    scores = (query_BHgD @ key.transpose(-1, -2)).view(batch, heads, queries, keys)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    made = blended_softmax(scores, strengths) if strengths else softmax(scores)
    weights = made.to(value.dtype)
    weights_BHgK = weights.view(batch, kv_heads, groups * queries, keys)
    out = (weights_BHgK @ value).view(batch, heads, queries, value.shape[-1])
    return out.transpose(1, 2).contiguous()
