"""The engine's cache of keys and values: a slot per request, written in place.

transformers' own caches grow by concatenation, a copy of everything at each step, and have one length
for all rows. Here each layer is one tensor with a place for every slot and token; a step writes the
new tokens where each row's own length says and reads a view.

Shapes: S slots, H key/value heads, T tokens that a slot has room for, D key dimension, E value
dimension; B rows of a step, Q new tokens per row, K columns that the step reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

BLOCK = 32
"""Columns are read in multiples of this: a kernel is made anew for each number that it has not seen."""

WASTE = 2
"""How many times the needed room may be before it is given back."""


def rounded(tokens: int) -> int:
    """The columns that hold so many tokens."""
    return -(-tokens // BLOCK) * BLOCK


@dataclass(frozen=True)
class Step:
    """Where one forward pass writes and reads.

    Attributes:
        slots: Slot of each row.
        starts: Tokens that each row has already, so the column of its first new one.
        queries: New tokens per row Q; a row with fewer writes garbage behind its end, which its next
            tokens overwrite and nobody sees.
        device: Where the keys and values are.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    queries: int
    device: torch.device

    @cached_property
    def columns(self) -> int:
        """Columns that the step reads, K: those of its longest row, and some that nobody sees."""
        return rounded(max(self.starts) + self.queries)

    @cached_property
    def run(self) -> slice | None:
        """The slots as a slice, if they are consecutive."""
        first = self.slots[0]
        consecutive = self.slots == tuple(range(first, first + len(self.slots)))
        return slice(first, first + len(self.slots)) if consecutive else None

    @cached_property
    def slot_B1(self) -> Tensor:
        """Slot of each row, int64."""
        return torch.tensor(self.slots, device=self.device)[:, None]

    @cached_property
    def place_BQ(self) -> Tensor:
        """Column of each new token, int64."""
        start_B = torch.tensor(self.starts, device=self.device)
        return start_B[:, None] + torch.arange(self.queries, device=self.device)


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

    def resize(self, room: int) -> None:
        """Give each slot room for so many tokens, no more and no less; the first ones are kept."""
        old, self.room = self.room, room
        if self.is_initialized:
            self.keys, self.values = (
                _resized(tensor, min(old, room), room) for tensor in (self.keys, self.values)
            )

    def put(self, slot: int, key_HPD: Tensor, value_HPE: Tensor) -> None:
        """Write a slot's first tokens."""
        length = key_HPD.shape[1]
        self.keys[slot, :, :length] = key_HPD
        self.values[slot, :, :length] = value_HPE

    def clear(self, slot: int) -> None:
        """Forget what a slot holds: what is not a number there would spoil its next request."""
        if self.is_initialized:
            self.keys[slot] = 0
            self.values[slot] = 0

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
        """Tokens of the longest row before the step."""
        return 0 if self.step is None else max(self.step.starts)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask, and the first one's place."""
        return rounded(self.get_seq_length() + query_length), 0

    def get_max_length(self) -> int:
        """No bound that a model should know of: the engine makes room."""
        return -1

    get_max_cache_shape = get_max_length


def _written(held: Tensor, new: Tensor, step: Step) -> Tensor:
    """Write new tokens (B, H, Q, D) into what is held (S, H, T, D), and give the rows' columns."""
    held[step.slot_B1, :, step.place_BQ] = new.transpose(1, 2)
    rows = held[step.run] if step.run is not None else held[step.slot_B1[:, 0]]
    return rows[:, :, : step.columns]


def _resized(tensor: Tensor, kept: int, room: int) -> Tensor:
    made = tensor.new_zeros(*tensor.shape[:2], room, tensor.shape[3])
    made[:, :, :kept] = tensor[:, :, :kept]
    return made


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
        """Write the next pass here, with room for it: for a step that nothing was fitted to."""
        self.reserve(step.columns)
        for layer in self.layers:
            layer.step = step

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in every slot."""
        if tokens > self.room:
            self._resize(rounded(tokens))

    def fit(self, tokens: int) -> None:
        """Make room for so many tokens in every slot, and give back much more than that.

        Where the room is what is read, keys and values are contiguous, and products with them faster.
        """
        if tokens > self.room or rounded(tokens) * WASTE <= self.room:
            self._resize(rounded(tokens))

    def _resize(self, room: int) -> None:
        self.room = room
        for layer in self.layers:
            layer.resize(room)

    def put(self, layer: int, slot: int, key_HPD: Tensor, value_HPE: Tensor) -> None:
        """Write the first tokens of a slot, in a cache that was run before."""
        self.reserve(key_HPD.shape[1])
        self.layers[layer].put(slot, key_HPD, value_HPE)

    def clear(self, slot: int) -> None:
        """Forget what a slot holds."""
        for layer in self.layers:
            layer.clear(slot)

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


def visible(step: Step, window: int | None) -> Tensor:
    """Which columns each new token sees: boolean (B, 1, Q, K), itself and what is before it.

    Args:
        step: The step.
        window: Columns that are seen at most, or None.
    """
    column_K = torch.arange(step.columns, device=step.device)
    place_BQ1 = step.place_BQ[:, :, None]
    seen_BQK = column_K <= place_BQ1
    if window is not None:
        seen_BQK &= column_K > place_BQ1 - window
    return seen_BQK[:, None]
