"""Masks with columns for virtual tokens, and the windows that masks were made with.

Shapes: B batch, R rows of prefixes (1 or a divisor of B), P prefix length, Q queries, K keys of the
call.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

MaskWindows = dict[int, tuple[Tensor, int | None]]
"""By a mask's id: the mask, kept alive so that the id stays its own, and its window."""


class _Here(threading.local):
    """Where this thread notes the windows of masks, while somebody wants to know them."""

    def __init__(self) -> None:
        self.noted: list[MaskWindows] = []


_here = _Here()


@contextmanager
def noting_windows() -> Iterator[MaskWindows]:
    """Note the windows of the masks that a block makes."""
    windows: MaskWindows = {}
    _here.noted.append(windows)
    try:
        yield windows
    finally:
        _here.noted.remove(windows)


def note_window(mask: Tensor, window: int | None) -> None:
    """Say which window (in tokens) a mask was made with, to whoever wants to know."""
    for windows in _here.noted:
        windows[id(mask)] = (mask, window)


def virtual_places(width: int, length_R: Tensor) -> Tensor:
    """Where virtual tokens stand before the text's position 0: int64 (R, P).

    Args:
        width: Columns P.
        length_R: True length L of each row's prefix, int64. Virtual token j stands at j - L; at and
            after 0 there are columns that nobody sees.
    """
    return torch.arange(width, device=length_R.device) - length_R[:, None]


def filled_columns(width: int, length_R: Tensor) -> Tensor:
    """Which of P columns hold a virtual token: boolean (R, 1, 1, P)."""
    column_P = torch.arange(width, device=length_R.device)
    return (column_P < length_R[:, None])[:, None, None, :]


def within_window(position_BQ: Tensor, place_BP: Tensor, window: int) -> Tensor:
    """Which virtual tokens are fewer than `window` tokens before each query: boolean (B, 1, Q, P)."""
    return position_BQ[:, None, :, None] - place_BP[:, None, None, :] < window


def join_columns(columns: Tensor, mask: Tensor) -> Tensor:
    """Put columns (R, 1, Q or 1, P) in front of a mask (B or 1, heads or 1, Q, K).

    Both are boolean (True: seen) or additive (0: seen); so is what they make, additive if one is.
    """
    if mask.dtype != torch.bool and columns.dtype == torch.bool:
        columns = as_additive(columns, mask.dtype)
    if columns.dtype != torch.bool and mask.dtype == torch.bool:
        mask = as_additive(mask, columns.dtype)
    batch = max(columns.shape[0], mask.shape[0])
    heads, queries = mask.shape[1], mask.shape[2]
    columns = columns.expand(batch, heads, queries, -1)
    return torch.cat([columns, mask.expand(batch, -1, -1, -1)], dim=-1)


def without_columns(mask: Tensor, hidden: Tensor) -> Tensor:
    """A mask, boolean or additive, (B or 1, heads or 1, Q, J), without columns (B, 1, 1, J)."""
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def biased(seen: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Columns (B, 1, Q or 1, P) of which some are seen, with a bias (B, 1, 1, P); additive, finite."""
    least = torch.finfo(dtype).min
    return (as_additive(seen, dtype) + bias.to(dtype).clamp(min=least)).clamp(min=least)


def as_additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: seen) as one that is added to the scores."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
