"""The engine's cache of keys and values: a slot per request, written in place.

transformers' own caches grow by concatenation, a copy of everything at each step, and have one length
for all rows. Here each layer is one tensor with a place for every slot and column; a pass writes its
new tokens where each row's own length says and reads a view.

Shapes: S slots, H key/value heads, R columns that a slot has room for, D key dimension, E value
dimension; B rows of a pass, Q new tokens per row, K columns that they read; T new tokens of all rows.
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
class Rows:
    """Some rows of one forward pass, and where they write and read.

    Attributes:
        slots: Slot of each row.
        starts: Columns that each row has already, so the column of its first new token.
        sizes: New tokens of each.
        device: Where the keys and values are.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    device: torch.device

    @cached_property
    def queries(self) -> int:
        """New tokens of the longest row, Q."""
        return max(self.sizes)

    @cached_property
    def columns(self) -> int:
        """Columns that are read, K: those of the longest row, and some that nobody sees."""
        return rounded(max(self.starts) + self.queries)

    @cached_property
    def where(self) -> slice | Tensor:
        """The slots, as a slice if they are consecutive."""
        first = self.slots[0]
        if self.slots == tuple(range(first, first + len(self.slots))):
            return slice(first, first + len(self.slots))
        return torch.tensor(self.slots, device=self.device)

    def places(self, queries: int) -> Tensor:
        """Column of each row's first Q new tokens, int64 (B, Q), whether it has so many or not."""
        start_B = torch.tensor(self.starts, device=self.device)
        return start_B[:, None] + torch.arange(queries, device=self.device)

    def visible(self, window: int | None, queries: int, columns: int) -> Tensor:
        """Which columns each new token sees: boolean (B, 1, Q, K), itself and what is before it.

        Args:
            window: Columns that are seen at most, or None.
            queries: Tokens per row, Q.
            columns: How many columns there are, K.
        """
        column_K = torch.arange(columns, device=self.device)
        place_BQ1 = self.places(queries)[:, :, None]
        seen_BQK = column_K <= place_BQ1
        if window is not None:
            seen_BQK &= column_K > place_BQ1 - window
        return seen_BQK[:, None]


@dataclass(frozen=True)
class Step:
    """One forward pass, as the cache's layers see it: some groups of rows."""

    groups: tuple[Rows, ...]

    @property
    def held(self) -> int:
        """Columns of the longest row before the pass."""
        return max(max(rows.starts) for rows in self.groups)

    @property
    def columns(self) -> int:
        """Columns that the longest row needs."""
        return max(rows.columns for rows in self.groups)

    def written(self, held: Tensor, new: Tensor) -> Tensor:
        """Write new keys or values into what is held (S, H, R, D); what the model goes on with."""
        raise NotImplementedError


@dataclass(frozen=True)
class Padded(Step):
    """A pass over the rows (B, Q) of one group.

    A shorter row writes garbage behind its end, which its next tokens overwrite and nobody sees.
    """

    @cached_property
    def _where(self) -> tuple[Tensor, Tensor]:
        """Slot (B, 1) and column (B, Q) of each token, int64."""
        (rows,) = self.groups
        slot_B = torch.tensor(rows.slots, device=rows.device)
        return slot_B[:, None], rows.places(rows.queries)

    def written(self, held: Tensor, new: Tensor) -> Tensor:
        """New keys or values (B, H, Q, D); the rows' own from their first, (B, H, K, D)."""
        slot_B1, place_BQ = self._where
        held[slot_B1, :, place_BQ] = new.transpose(1, 2)
        return held[self.groups[0].where][:, :, : self.columns]


@dataclass(frozen=True)
class Flat(Step):
    """A pass over the tokens of all rows one after the other, as one row of T tokens."""

    @cached_property
    def _where(self) -> tuple[Tensor, Tensor]:
        """Slot and column of each of the rows' N tokens, int64."""
        slots: list[int] = []
        places: list[int] = []
        for rows in self.groups:
            for slot, start, size in zip(rows.slots, rows.starts, rows.sizes, strict=True):
                slots += [slot] * size
                places += range(start, start + size)
        device = self.groups[0].device
        return torch.tensor(slots, device=device), torch.tensor(places, device=device)

    def written(self, held: Tensor, new: Tensor) -> Tensor:
        """New keys or values (1, H, T, D); all that is held, (S, H, R, D), of which rows take theirs.

        Tokens behind those of the rows are padding.
        """
        slot_N, place_N = self._where
        held[slot_N, :, place_N] = new[0].transpose(0, 1)[: len(slot_N)]
        return held


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys (S, H, R, D) and values (S, H, R, E)."""

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
        """Write a pass's keys and values; what its attention goes on with (see `Step`)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.step is not None
        written = self.step.written
        return written(self.keys, key_states), written(self.values, value_states)

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
        """Columns of the longest row before the pass."""
        return 0 if self.step is None else self.step.held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask, and the first one's place."""
        return rounded(self.get_seq_length() + query_length), 0

    def get_max_length(self) -> int:
        """No bound that a model should know of: the engine makes room."""
        return -1

    get_max_cache_shape = get_max_length


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
