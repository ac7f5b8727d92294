"""Attention over prefixes that rows share, each computed against its one copy.

A softmax over the union of two sets of columns is the mean of the softmaxes over each, weighted by the
sums of their exponentials. So the queries of all rows meet the prefix in one matrix product per
key/value head, each row meets its own tokens apart, and the two are merged by their log-sum-exp.
Nothing of the prefix is copied, and the mask needs no columns for it.

Shapes: B batch, R prefixes (each serves n = B / R rows that follow one another), H key/value heads,
G query heads per key/value head, P prefix length, Q queries, K keys of the call, D key dimension,
E value dimension; N queries of all rows that one prefix serves, n * G * Q.

Source: Juravsky et al., "Hydragen: High-Throughput LLM Inference with Shared Prefixes", 2024
(arXiv 2402.05099), sections 3.1 (attention cut in two) and 3.2 (queries of all rows together).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foreword.attention.kernels import softmax
from foreword.attention.strength import Strength, blended_softmax
from foreword.fallbacks import note_fallback

COPIED = 640
"""Columns that the plain form copies, over all rows, from which on the merge is the faster one."""

FEW = 16
"""Queries up to which scores of every row and the whole prefix are small enough to be kept."""

SHORTEST = {1: 1, FEW: 64}
"""Shortest prefix that is merged, by the most queries that it holds for."""

SHORTEST_OF_MANY = 512
"""Shortest prefix that is merged for more queries, whose copies weigh less against their scores."""

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""What SDPA calls on a CPU. It gives the log-sum-exp, which SDPA keeps to itself."""


class Part(NamedTuple):
    """Attention over some of the columns.

    Attributes:
        out: Mean of the values under a softmax over these columns, (B, H * G, Q, E).
        lse: Logarithm of the sum of the exponentials of the scores, (B, H * G, Q, 1), float32 (or
            float64, like the queries).
    """

    out: Tensor
    lse: Tensor


def merge_pays(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    *,
    chosen: bool = False,
) -> bool:
    """Whether one copy of a prefix is right and faster than joining it to each row's keys.

    It is faster where the plain form would copy much; one row alone has nothing to share. Figures are
    in benchmarks/LOG.md. Away from the CPU only decoding is merged, whose scores are small: there no
    kernel gives the log-sum-exp on every device. Gradients would miss the log-sum-exp, and under
    torch.compile each length of a prefix would be compiled anew.

    Args:
        query: (B, H * G, Q, D).
        key: The call's own keys, (B, H, K, D).
        value: The call's own values, (B, H, K, E).
        prefix_key: (R, H, P, D), in any floating dtype.
        prefix_value: (R, H, P, E).
        chosen: Whether rows choose among the prefixes in any order, which for many queries only the
            plain form knows how to do.
    """
    if torch.compiler.is_compiling():
        return False
    rows, prefixes, length = query.shape[0], prefix_key.shape[0], prefix_key.shape[2]
    tensors = (query, key, value, prefix_key, prefix_value)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    queries, copied = query.shape[2], rows * (length + key.shape[2])
    if chosen:
        return queries <= FEW and rows == key.shape[0] > 1
    if queries > FEW and not _has_flash(query, value):
        return False
    shortest = next((n for most, n in SHORTEST.items() if queries <= most), SHORTEST_OF_MANY)
    return prefixes < rows == key.shape[0] and copied >= COPIED and length >= shortest


class Groups(NamedTuple):
    """Which rows each of R prefixes serves, as places in R groups of n rows, for every head.

    Attributes:
        rows: Rows of the largest group, n.
        order: For each of the R * H * n places, group by group and head by head, which of the B * H
            rows' heads is there, int64; a place that is left over has any.
        place: The place of each of the B * H rows' heads, int64.
    """

    rows: int
    order: Tensor
    place: Tensor

    @classmethod
    def of(cls, row_of_B: Sequence[int], prefixes: int, heads: int, device: torch.device) -> Groups:
        """Groups of rows by the prefix (0 to R - 1) that serves each.

        Args:
            row_of_B: The prefix of each row.
            prefixes: How many there are, R.
            heads: Key/value heads, H.
            device: Where to make it.
        """
        row_of = torch.tensor(row_of_B)
        member_RB = row_of == torch.arange(prefixes)[:, None]
        rows = int(member_RB.sum(dim=1).max())
        index_B = (member_RB.cumsum(dim=1) - 1).gather(0, row_of[None])[0]
        head_H = torch.arange(heads)
        place_BH = (row_of[:, None] * heads + head_H) * rows + index_B[:, None]
        order = torch.zeros(prefixes * heads * rows, dtype=torch.long)
        order[place_BH.flatten()] = torch.arange(place_BH.numel())
        return cls(rows, order.to(device), place_BH.flatten().to(device))

    def gathered(self, tensor_N: Tensor) -> Tensor:
        """What the rows' heads have (B * H, g, any), by group and head (R * H, n * g, any)."""
        each, last = tensor_N.shape[1:]
        return tensor_N.index_select(0, self.order).view(-1, self.rows * each, last)

    def scattered(self, tensor_N: Tensor, each: int) -> Tensor:
        """What groups and heads have (R * H, n * g, any), by rows' heads (B * H, g, any)."""
        return tensor_N.view(-1, each, tensor_N.shape[-1]).index_select(0, self.place)


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    prefix_key: Tensor,
    prefix_value: Tensor,
    groups: Groups,
    scaling: float | None = None,
    strengths: Sequence[Strength] = (),
) -> Tensor:
    """What `cascade_attention` computes, for few queries: one softmax over the scores of both parts.

    The scores are small then, so they are put side by side, and there is nothing to merge. Rows may be
    served by the prefixes in any order and number.

    Args:
        query: (B, H * G, Q, D).
        key: (B, H, K, D).
        value: (B, H, K, E).
        mask: For the prefix's columns and the call's own, in this order: additive and finite,
            (B or 1, H * G or 1, Q, P + K), or None.
        prefix_key: (R, H, P, D), in the call's dtype.
        prefix_value: (R, H, P, E).
        groups: Which rows each prefix serves.
        scaling: Factor of the scores; D**-0.5 by default.
        strengths: Of some of both parts' columns.

    Returns:
        (B, Q, H * G, E), as attention functions of transformers return it. The sums of the softmax
        are float32 at least.
    """
    batch, heads, queries, dim = query.shape
    kv_heads, length = prefix_key.shape[1:3]
    each = heads // kv_heads * queries
    scale = dim**-0.5 if scaling is None else scaling
    query_NgD = (query * scale).reshape(batch * kv_heads, each, dim)
    far = torch.bmm(groups.gathered(query_NgD), prefix_key.flatten(0, 1).transpose(1, 2))
    near = query_NgD.view(batch, kv_heads, each, dim) @ key.transpose(-1, -2)
    scores = torch.cat([groups.scattered(far, each), near.flatten(0, 1)], dim=-1)
    if mask is not None or strengths:
        split = scores.view(batch, heads, queries, -1)
        split = split if mask is None else split + mask
        scores = (blended_softmax(split, strengths) if strengths else split).view(scores.shape)
    weights = (scores if strengths else softmax(scores)).to(value.dtype)
    own = weights[..., length:].view(batch, kv_heads, each, -1)
    shared = torch.bmm(groups.gathered(weights[..., :length]), prefix_value.flatten(0, 1))
    out = groups.scattered(shared, each).view(batch, kv_heads, each, -1).add_(own @ value)
    return out.view(batch, heads, queries, value.shape[-1]).transpose(1, 2).contiguous()


def cascade_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    prefix_key: Tensor,
    prefix_value: Tensor,
    scaling: float | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """Attention over a prefix and the call's own tokens, as one softmax over both.

    Args:
        query: (B, H * G, Q, D).
        key: (B, H, K, D).
        value: (B, H, K, E).
        mask: For the call's own keys: boolean (True: seen) or additive, (B or 1, H * G or 1, Q, K),
            or None.
        prefix_key: (R, H, P, D), in the call's dtype; prefix r serves rows r * n to (r + 1) * n - 1.
        prefix_value: (R, H, P, E).
        scaling: Factor of the scores; D**-0.5 by default.
        seen: Which columns of each prefix are seen, boolean (R, 1, 1, P); None: all.

    Returns:
        (B, Q, H * G, E), as attention functions of transformers return it. Where a query sees
        nothing of one part, the other is all that counts.

    Examples:
        >>> query, key = torch.randn(8, 6, 1, 16), torch.randn(8, 2, 5, 16)
        >>> prefix = torch.randn(1, 2, 100, 16)
        >>> cascade_attention(query, key, key, None, prefix, prefix).shape
        torch.Size([8, 1, 6, 16])
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    shared = _of_prefix(query, prefix_key, prefix_value, seen, scale)
    own = _of_row(query, key, value, mask, scale)
    return merged(shared, own).to(query.dtype).transpose(1, 2).contiguous()


def merged(first: Part, second: Part) -> Tensor:
    """The output under one softmax over both parts' columns, (B, H * G, Q, E), in the lse's dtype.

    The weights exp(lse_1) and exp(lse_2), divided by their sum, are sigmoids of the difference, which
    neither overflow nor divide by zero.
    """
    weight = torch.sigmoid(first.lse - second.lse)
    return torch.lerp(second.out.to(weight), first.out.to(weight), weight)


def _of_prefix(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scale: float
) -> Part:
    """Every row's attention over the prefix that serves it."""
    batch, heads, queries, dim = query.shape
    prefixes, kv_heads = key.shape[:2]
    split = (prefixes, batch // prefixes, kv_heads, heads // kv_heads * queries)
    folded_RHND = query.reshape(*split, dim).transpose(1, 2).reshape(prefixes, kv_heads, -1, dim)
    part = _attention(folded_RHND, key, value, seen, scale)

    def unfolded(tensor_RHN: Tensor) -> Tensor:
        back = tensor_RHN.reshape(prefixes, kv_heads, split[1], split[3], -1).transpose(1, 2)
        return back.reshape(batch, heads, queries, -1)

    return Part(unfolded(part.out), unfolded(part.lse))


def _of_row(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Part:
    """Every row's attention over its own tokens, without copies of the keys where Q is 1."""
    batch, heads, queries, dim = query.shape
    kv_heads = key.shape[1]
    if queries > 1 or (mask is not None and mask.shape[1] > 1):
        each = heads // kv_heads
        key, value = (_repeated(tensor, each) for tensor in (key, value))
        return _attention(query, key, value, mask, scale)
    part = _attention(query.reshape(batch, kv_heads, -1, dim), key, value, mask, scale)
    return Part(*(tensor.reshape(batch, heads, 1, -1) for tensor in part))


def _repeated(tensor_BHKD: Tensor, each: int) -> Tensor:
    return tensor_BHKD if each == 1 else tensor_BHKD.repeat_interleave(each, dim=1)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
) -> Part:
    """Attention with as many query heads as key heads, and its log-sum-exp."""
    additive = None if mask is None else _additive(mask, query.dtype)
    if _has_flash(query, value):
        assert _FLASH is not None
        out, lse = _FLASH(query, key, value, 0.0, False, attn_mask=additive, scale=scale)
        return Part(out, lse.unsqueeze(-1))
    return _plain(query, key, value, additive, scale)


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Part:
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = (query @ key.transpose(-1, -2)).to(wide) * scale
    if mask is not None:
        scores = scores + mask
    top = scores.amax(dim=-1, keepdim=True)
    weights = torch.exp(scores - top)
    total = weights.sum(dim=-1, keepdim=True)
    return Part((weights.to(value.dtype) @ value) / total, top + total.log())


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to be added to the scores, finite: a row of -inf alone would give no number."""
    hidden = torch.finfo(dtype).min
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, hidden)
    return mask.to(dtype).clamp(min=hidden)


def _has_flash(query: Tensor, other: Tensor) -> bool:
    """Whether the CPU's kernel takes these: queries, and values of the same dimension."""
    if query.device.type != "cpu":
        return False
    if _FLASH is None:
        note_fallback(
            "the CPU's flash kernel for prefixes that rows share",
            f"torch {torch.__version__} does not offer it, so scores are computed in plain products",
        )
        return False
    return query.shape[-1] == other.shape[-1]
