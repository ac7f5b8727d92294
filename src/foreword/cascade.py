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
    """Which rows each of R prefixes serves, as places in R groups of n rows.

    Attributes:
        rows: Rows of the largest group, n.
        order: The row at each of the R * n places, int64; a place that is left over has any row. None
            where the rows follow one another group by group, all of one size.
        place: The place of each row of the batch, int64 (B,), or None with `order`.
    """

    rows: int
    order: Tensor | None = None
    place: Tensor | None = None

    @classmethod
    def of(cls, row_of_B: Sequence[int], prefixes: int, device: torch.device) -> Groups:
        """Groups of rows by the prefix (0 to R - 1) that serves each."""
        members: list[list[int]] = [[] for _ in range(prefixes)]
        for row, prefix in enumerate(row_of_B):
            members[prefix].append(row)
        rows = max(map(len, members))
        order = [row for group in members for row in (*group, *[0] * (rows - len(group)))]
        place = [0] * len(row_of_B)
        for prefix, group in enumerate(members):
            for index, row in enumerate(group):
                place[row] = prefix * rows + index
        return cls(rows, *(torch.tensor(each, device=device) for each in (order, place)))

    def gathered(self, tensor_B: Tensor) -> Tensor:
        """Rows (B, ...) in their places (R * n, ...)."""
        return tensor_B if self.order is None else tensor_B.index_select(0, self.order)

    def scattered(self, tensor_N: Tensor) -> Tensor:
        """What is in the places (R * n, ...), back in the order of the rows (B, ...)."""
        return tensor_N if self.place is None else tensor_N.index_select(0, self.place)


def shared_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    prefix_key: Tensor,
    prefix_value: Tensor,
    groups: Groups,
    scaling: float | None = None,
    seen: Tensor | None = None,
) -> Tensor:
    """What `cascade_attention` computes, for few queries: one softmax over the scores of both parts.

    The scores are small then, so they are put side by side, and there is nothing to merge. Rows may be
    served by the prefixes in any order and number.

    Args:
        query: (B, H * G, Q, D).
        key: (B, H, K, D).
        value: (B, H, K, E).
        mask: For the call's own keys: boolean (True: seen) or additive, (B or 1, H * G or 1, Q, K),
            or None.
        prefix_key: (R, H, P, D), in the call's dtype.
        prefix_value: (R, H, P, E).
        groups: Which rows each prefix serves.
        scaling: Factor of the scores; D**-0.5 by default.
        seen: Which columns of each prefix are seen, boolean (R, 1, 1, P); None: all.

    Returns:
        (B, Q, H * G, E), as attention functions of transformers return it. The softmax is computed in
        float32 at least.
    """
    batch, heads, queries, dim = query.shape
    prefixes, kv_heads, length = prefix_key.shape[:3]
    each = heads // kv_heads * queries
    scale = dim**-0.5 if scaling is None else scaling
    query_BHgD = (query * scale).reshape(batch, kv_heads, each, dim)

    def by_prefix(tensor_BHgD: Tensor) -> Tensor:
        """(B, H, g, any) as (R, H, n * g, any)."""
        split = groups.gathered(tensor_BHgD).view(prefixes, groups.rows, kv_heads, each, -1)
        return split.transpose(1, 2).reshape(prefixes, kv_heads, groups.rows * each, -1)

    def by_row(tensor_RHN: Tensor) -> Tensor:
        """(R, H, n * g, any) as (B, H, g, any)."""
        split = tensor_RHN.view(prefixes, kv_heads, groups.rows, each, -1).transpose(1, 2)
        return groups.scattered(split.reshape(prefixes * groups.rows, kv_heads, each, -1))

    far = by_prefix(query_BHgD) @ prefix_key.transpose(-1, -2)
    if seen is not None:
        far = far.masked_fill(~seen, torch.finfo(far.dtype).min)
    near = query_BHgD @ key.transpose(-1, -2)
    if mask is not None:
        split = (batch, heads, queries, key.shape[2])
        near = (near.view(split) + _additive(mask, near.dtype)).view(near.shape)
    scores = torch.cat([by_row(far), near], dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype)
    out = weights[..., length:] @ value
    out = out + by_row(by_prefix(weights[..., :length]) @ prefix_value)
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
    on_cpu = query.device.type == "cpu" and _FLASH is not None
    return on_cpu and query.shape[-1] == other.shape[-1]
