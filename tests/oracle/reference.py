"""The plain reference: the text in the model's context, row by row, with every mask spelled out.

Nothing here goes through Foreword's attention. Shapes: P text (prefix) tokens, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tests.oracle.families import Family


def full_mask(
    length: int, row: int, window: int | None, visible: bool, *, chunked: bool = False
) -> Tensor:
    """Which of P + T columns each of P + T positions sees: boolean (1, 1, P + T, P + T).

    With `visible` the first P columns are never dropped by the window. A chunked window cuts the row
    at its own multiples, wherever the row starts, and the text likewise.
    """
    total = length + row
    query, key = torch.arange(total)[:, None], torch.arange(total)[None, :]
    seen = key <= query
    if window is not None and chunked:
        chunk = torch.cat([torch.arange(length), torch.arange(row)]) // window
        near = chunk[:, None] == chunk[None, :]
        seen = seen & near
        seen[length:, :length] = True
    elif window is not None:
        near = query - key < window
        seen = seen & (near | (key < length) if visible else near)
    return seen[None, None]


def as_model_takes_it(family: Family, model: PreTrainedModel, seen: Tensor) -> Tensor:
    """A boolean mask in the form of the model's attention implementation."""
    if model.config._attn_implementation == "eager":
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return seen


def masks(
    family: Family, model: PreTrainedModel, length: int, row: int, *, visible: bool, rows: int
) -> Tensor | dict[str, Tensor] | None:
    """The last `rows` queries' masks in the form in which this family takes ready-made ones."""

    def make(window: int | None) -> Tensor:
        seen = full_mask(length, row, window, visible, chunked=family.chunked)[:, :, -rows:]
        return as_model_takes_it(family, model, seen)

    if family.masks in ("none", "own"):
        return None
    if family.masks == "single":
        return make(family.window)
    windowed = "chunked_attention" if family.chunked else "sliding_attention"
    return {"full_attention": make(None), windowed: make(family.window)}


@contextmanager
def windows(
    family: Family, model: PreTrainedModel, length: int, *, visible: bool
) -> Iterator[None]:
    """With `visible`, keep the windows in a model's own buffers from dropping the first columns."""
    if family.masks != "own" or not visible:
        yield
        return
    local = [m for m in model.modules() if "bias" in m._buffers and m.attention_type == "local"]
    before = [module.bias for module in local]
    for module in local:
        size = module.bias.shape[-1]
        first = (torch.arange(size) < length) & torch.ones(size, size, dtype=torch.bool).tril()
        module.bias = module.bias | first
    try:
        yield
    finally:
        for module, own in zip(local, before, strict=True):
            module.bias = own


def in_context(
    family: Family, model: PreTrainedModel, text: Tensor, row: Tensor, *, visible: bool
) -> Tensor:
    """Logits (T, V) that the model gives on a row with the text in front of it."""
    ids = torch.cat([text, row])[None]
    mask = masks(family, model, len(text), len(row), visible=visible, rows=ids.shape[1])
    positions = torch.arange(ids.shape[1])[None]
    with torch.no_grad(), windows(family, model, len(text), visible=visible):
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return output.logits[0, len(text) :].float()


def gradients_through_cache(
    family: Family,
    model: PreTrainedModel,
    keys: list[Tensor],
    values: list[Tensor],
    row: Tensor,
    *,
    first_position: int,
    visible: bool,
) -> tuple[Tensor, list[Tensor]]:
    """NLL of a row, and its gradient in keys and values handed over as `past_key_values`."""
    length = keys[0].shape[1]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*keys, *values)]
    cache = DynamicCache()
    half = len(keys)
    for layer in range(half):
        cache.update(leaves[layer][None], leaves[half + layer][None], layer)
    mask = masks(family, model, length, len(row), visible=visible, rows=len(row))
    positions = torch.arange(first_position, first_position + len(row))[None]
    with windows(family, model, length, visible=visible):
        logits = model(
            input_ids=row[None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).logits
    loss = nll(logits[0], row)
    return loss.detach(), list(torch.autograd.grad(loss, leaves))


def nll(logits: Tensor, row: Tensor) -> Tensor:
    """Summed negative log-likelihood of a row's tokens after its first."""
    return torch.nn.functional.cross_entropy(logits[:-1].float(), row[1:], reduction="sum")
