"""Where the text stands: position_ids from the 2-D mask, moved up by the prefix's offset.

Models count positions by themselves when `position_ids` is absent, and then left padding counts too.
That is harmless without a prefix and rotary keys (only differences matter) and wrong with one.

Shapes: B batch, Q new tokens, T tokens seen and new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def text_positions(
    mask_BT: Tensor | None, batch: int, queries: int, past: int, device: torch.device
) -> Tensor:
    """Positions of the new tokens in their own text, first token 0: (B, Q) int64.

    Args:
        mask_BT: 2-D attention mask over past and new tokens, or None without padding.
        batch: B.
        queries: Q.
        past: Tokens in the cache.
        device: Where to make the positions.
    """
    if _covers(mask_BT, past + queries):
        assert mask_BT is not None
        counted_BT = mask_BT.to(device).long().cumsum(-1) - 1
        return counted_BT.clamp(min=0)[:, -queries:]
    return torch.arange(past, past + queries, device=device).expand(batch, -1)


def _covers(mask_BT: Any, tokens: int) -> bool:
    """Whether a mask is a 2-D one over so many tokens: not one made ready, for each layer type."""
    return isinstance(mask_BT, Tensor) and mask_BT.dim() == 2 and mask_BT.shape[1] == tokens


def text_slots(mask_BT: Tensor | None, positions_BQ: Tensor, past: int) -> Tensor:
    """How far behind its text's first token each new token stands, in slots: (B or 1, Q) int64.

    transformers counts windows and learned distances so: hidden tokens inside a text count, where its
    positions (from the mask) leave them out. Padding on the left counts in neither.

    Args:
        mask_BT: 2-D attention mask over past and new tokens, or None.
        positions_BQ: The new tokens' positions, which are their slots where there is no such mask.
        past: Tokens in the cache.
    """
    queries = positions_BQ.shape[-1]
    if not _covers(mask_BT, past + queries):
        return positions_BQ
    assert mask_BT is not None
    mask_BT = mask_BT.to(positions_BQ.device)
    first_B1 = (mask_BT != 0).int().argmax(dim=-1, keepdim=True)
    slot_T = torch.arange(past + queries, device=positions_BQ.device)
    return (slot_T - first_B1).clamp(min=0)[:, -queries:]


def moved(positions: Tensor, batch: int, offsets: tuple[int, ...]) -> Tensor:
    """Positions with each row's offset added; one offset serves all, or i serves row i // k.

    Args:
        positions: int64 (B or 1, Q), or (parts, B or 1, Q) where a token stands at several places, as
            in an image: all of them move alike.
        batch: B.
        offsets: Positions that text is moved up by.
    """
    if len(set(offsets)) == 1:
        return positions + offsets[0] if offsets[0] else positions
    offset_R1 = torch.tensor(offsets, device=positions.device)[:, None]
    wide = positions.expand(*positions.shape[:-2], batch, -1)
    return wide + offset_R1.repeat_interleave(batch // len(offsets), dim=0)


def one_part(positions: Tensor) -> Tensor:
    """Of positions in several parts (parts, B, Q) the first, which is that of the text: (B, Q)."""
    return positions[0] if positions.dim() == 3 else positions


def texts_of(call: Mapping[str, Any], known: Sequence[str]) -> tuple[Any, Any]:
    """What a call's first stack reads, and what a decoder behind an encoder does, if there is one.

    Where a call gives the decoder nothing, its input is made from the labels, or from the source.
    """

    def first(*names: str) -> Any:
        return next((call[name] for name in names if call.get(name) is not None), None)

    source = first("input_ids", "inputs_embeds")
    if "decoder_input_ids" not in known:
        return source, None
    decoded = first("decoder_input_ids", "decoder_inputs_embeds", "labels")
    if decoded is None or decoded.dim() == 1:  # a class for each row is no text
        decoded = source
    return (decoded if source is None else source), decoded
