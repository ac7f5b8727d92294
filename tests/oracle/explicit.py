"""A second reference: attention written out, with the prefix's tensors put in by hand.

For what `past_key_values` cannot carry (a cache of latents, keys that layers share) and for models
whose other layers cannot see a text as a prefix. Nothing here goes through Foreword's attention.

Shapes: B batch, H key/value heads, G query heads per key/value head, P prefix length, Q queries,
K keys, D key dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from foreword.prefix import Site
from tests.oracle.reference import nll

_NAME = "oracle_explicit"
_given: dict[nn.Module, tuple[Tensor, Tensor, int | None]] = {}
"""By attention module: prefix keys (H, P, D) and values, and the window that may drop them."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if module in _given:
        batch = key.shape[0]
        *parts, window = _given[module]
        prefix = [part[None].expand(batch, -1, -1, -1) for part in parts]
        key, value = torch.cat([prefix[0], key], 2), torch.cat([prefix[1], value], 2)
        columns = _seen(prefix[0].shape[2], attention_mask.shape[2], window)
        columns = columns.expand(*attention_mask.shape[:3], -1)
        attention_mask = torch.cat([columns, attention_mask], dim=-1)
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    weights = torch.softmax(query @ key.transpose(2, 3) * scale + attention_mask, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _seen(length: int, queries: int, window: int | None) -> Tensor:
    """An additive mask (Q, P) of a prefix that ends where the text begins."""
    distance = torch.arange(queries)[:, None] + length - torch.arange(length)[None]
    near = torch.ones_like(distance, dtype=torch.bool) if window is None else distance < window
    return torch.zeros(distance.shape).masked_fill(~near, torch.finfo(torch.float32).min)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, eager_mask)


@contextmanager
def explicit(
    model: PreTrainedModel,
    sites: Sequence[Site],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    visible: bool = True,
) -> Iterator[None]:
    """Run a block with the prefix written into every attention call.

    With `visible` every query sees it, else only those within the site's window.
    """
    modules = dict(model.named_modules())
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = _NAME
        for site, key, value in zip(sites, keys, values, strict=True):
            _given[modules[site.name]] = (key, value, None if visible else site.window)
        yield
    finally:
        _given.clear()
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def explicit_logits(
    model: PreTrainedModel,
    sites: Sequence[Site],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    row: Tensor,
    *,
    visible: bool = True,
) -> Tensor:
    """Logits (T, V) of one row, uncached, its text starting at position 0."""
    with explicit(model, sites, keys, values, visible=visible):
        output = model(input_ids=row[None], use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def explicit_gradients(
    model: PreTrainedModel,
    sites: Sequence[Site],
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    row: Tensor,
    *,
    visible: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """NLL of a row, and its gradient in every key and value."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*keys, *values)]
    half = len(keys)
    logits = explicit_logits(model, sites, leaves[:half], leaves[half:], row, visible=visible)
    loss = nll(logits, row)
    return loss.detach(), list(torch.autograd.grad(loss, leaves))
