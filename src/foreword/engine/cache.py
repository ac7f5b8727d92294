"""The engine's cache of keys and values: a slot per request, written in place.

transformers' own caches grow by concatenation, a copy of everything at each step, and have one length
for all rows. Here each layer is one tensor with a place for every slot and token; a step writes the
new tokens where each row's own length says and reads a view.

Shapes: S slots, H key/value heads, T tokens that a slot has room for, D key dimension, E value
dimension; B rows of a step, Q new tokens per row, K columns that the step reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

GROWTH = 256
"""Tokens by which the room of all slots grows at once."""


@dataclass(frozen=True)
class Step:
    """Where one forward pass writes and reads.

    Attributes:
        slots: Slot of each row.
        starts: Tokens that each row has already, so the column of its first new one.
        queries: New tokens per row Q; a row with fewer writes garbage behind its end, which its next
            tokens overwrite and nobody sees.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    queries: int

    @property
    def columns(self) -> int:
        """Columns that the step reads, K."""
        return max(self.starts) + self.queries

    @property
    def run(self) -> slice | None:
        """The slots as a slice, if they are consecutive."""
        first = self.slots[0]
        consecutive = self.slots == tuple(range(first, first + len(self.slots)))
        return slice(first, first + len(self.slots)) if consecutive else None


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys (S, H, T, D) and values (S, H, T, E)."""

    is_sliding = False

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.room = 0
        self.step: Step | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the tensors, with the heads, dimensions, dtype and device of the first call."""
        self.keys = self._room_for(key_states)
        self.values = self._room_for(value_states)
        self.is_initialized = True

    def _room_for(self, states: Tensor) -> Tensor:
        shape = (self.slots, states.shape[1], self.room, states.shape[3])
        return torch.zeros(shape, dtype=states.dtype, device=states.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write (B, H, Q, D) and (B, H, Q, E); what the rows have now, (B, H, K, D) and (B, H, K, E)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.step is not None
        return (
            _written(self.keys, key_states, self.step),
            _written(self.values, value_states, self.step),
        )

    def grow(self, room: int) -> None:
        """Give each slot room for so many tokens."""
        old = self.room
        self.room = room
        if self.is_initialized:
            self.keys, self.values = (_grown(t, old, room) for t in (self.keys, self.values))

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first tokens to another slot."""
        if self.is_initialized:
            for tensor in (self.keys, self.values):
                tensor[target, :, :length] = tensor[source, :, :length]

    def swap(self, one: int, two: int, length: int) -> None:
        """Exchange the first tokens of two slots."""
        if self.is_initialized:
            for tensor in (self.keys, self.values):
                kept = tensor[one, :, :length].clone()
                tensor[one, :, :length] = tensor[two, :, :length]
                tensor[two, :, :length] = kept

    def get_seq_length(self) -> int:
        """Columns that are in use before the step."""
        return 0 if self.step is None else max(self.step.starts)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask, and the first one's place."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No bound that a model should know of: the engine makes room."""
        return -1

    get_max_cache_shape = get_max_length


def _written(held: Tensor, new: Tensor, step: Step) -> Tensor:
    """Write new tokens (B, H, Q, D) into what is held (S, H, T, D), and give the rows' columns."""
    run = step.run
    if step.queries == 1:
        slots = torch.tensor(step.slots, device=held.device)
        held[slots, :, torch.tensor(step.starts, device=held.device)] = new[:, :, 0]
    else:
        for row, (slot, start) in enumerate(zip(step.slots, step.starts, strict=True)):
            held[slot, :, start : start + step.queries] = new[row]
    rows = held[run] if run is not None else held[list(step.slots)]
    return rows[:, :, : step.columns]


def _grown(tensor: Tensor, old: int, room: int) -> Tensor:
    bigger = tensor.new_zeros(*tensor.shape[:2], room, tensor.shape[3])
    bigger[:, :, :old] = tensor[:, :, :old]
    return bigger


class SlotCache(Cache):  # type: ignore[misc]
    """A cache of slots for a transformers model; `at` says where the next pass writes.

    Args:
        layers: Layers of the model that keep keys and values.
        slots: Rows that it has room for.
    """

    def __init__(self, layers: int, slots: int) -> None:
        super().__init__(layers=[SlotLayer(slots) for _ in range(layers)])
        self.room = 0

    def at(self, step: Step) -> None:
        """Write the next pass here, with room for it."""
        self.reserve(step.columns)
        for layer in self.layers:
            layer.step = step

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in every slot."""
        if tokens > self.room:
            self.room = -(-tokens // GROWTH) * GROWTH
            for layer in self.layers:
                layer.grow(self.room)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's first tokens to another slot."""
        for layer in self.layers:
            layer.move(source, target, length)

    def swap(self, one: int, two: int, length: int) -> None:
        """Exchange the first tokens of two slots."""
        for layer in self.layers:
            layer.swap(one, two, length)

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self.layers
            if layer.is_initialized
            for tensor in (layer.keys, layer.values)
        )


def visible(step: Step, window: int | None, device: torch.device) -> Tensor:
    """Which columns each new token sees: boolean (B, 1, Q, K), itself and what is before it.

    Args:
        step: The step.
        window: Columns that are seen at most, or None.
        device: Where to make it.
    """
    column_K = torch.arange(step.columns, device=device)
    start_B = torch.tensor(step.starts, device=device)
    place_BQ1 = (start_B[:, None] + torch.arange(step.queries, device=device))[:, :, None]
    seen_BQK = column_K <= place_BQ1
    if window is not None:
        seen_BQK &= column_K > place_BQ1 - window
    return seen_BQK[:, None]
