"""A shelf: slots for requests of like length, one tensor of keys and one of values per layer.

The slots that are in use are the first ones, without a gap, and of those the ones that decode are in
front, so that a step reads them as one view.

Shapes: S slots, H key/value heads, R columns that a slot has room for, D key dimension, E value
dimension, P columns of a prefix.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Widths:
    """What one layer keeps of a token: H heads of a key (D) and of a value (E)."""

    heads: int
    key: int
    value: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, key_BHQD: Tensor, value_BHQE: Tensor) -> Widths:
        """Those of the keys and values of a pass."""
        dim, device = value_BHQE.shape[3], key_BHQD.device
        return cls(key_BHQD.shape[1], key_BHQD.shape[3], dim, key_BHQD.dtype, device)

    def empty(self, slots: int, room: int) -> tuple[Tensor, Tensor]:
        """Keys (S, H, R, D) and values (S, H, R, E); zeros, since what is not a number spreads."""
        first = slots, self.heads, room
        return self._zeros(*first, self.key), self._zeros(*first, self.value)

    def _zeros(self, *shape: int) -> Tensor:
        """On a CPU in pages of its own, which the system has back as soon as the tensor is gone.

        C's allocator keeps what is freed, up to 32 MiB in one piece, and with shelves that come and go
        the process had nearly three times what was in use.
        """
        size = math.prod(shape) * self.dtype.itemsize
        if self.device.type != "cpu" or not size:
            return torch.zeros(*shape, dtype=self.dtype, device=self.device)
        return torch.frombuffer(mmap.mmap(-1, size), dtype=self.dtype).view(shape)

    @property
    def bytes(self) -> int:
        """Size of one token."""
        return self.heads * (self.key + self.value) * self.dtype.itemsize


@dataclass(eq=False)
class Slot:
    """Where a request's keys and values are; its place on the shelf changes as others leave."""

    shelf: Shelf
    index: int

    @property
    def room(self) -> int:
        """Columns that it has."""
        return self.shelf.room


@dataclass(eq=False)
class Shelf:
    """Slots of one room.

    Attributes:
        room: Columns of each slot, R.
        widths: By layer what is kept of a token, as far as that is known yet.
        size: Slots that there is memory for, S.
        slots: Those in use, by index.
        front: How many of them decode.
        pairs: By layer the keys and values. A resizing that failed leaves some with more than S slots.
    """

    room: int
    widths: Mapping[int, Widths]
    size: int = 0
    slots: list[Slot] = field(default_factory=list)
    front: int = 0
    pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def pair(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values."""
        if layer not in self.pairs:
            self.pairs[layer] = self.widths[layer].empty(self.size, self.room)
        return self.pairs[layer]

    def resize(self, size: int) -> None:
        """Have memory for so many slots; those in use are kept.

        Layer after layer, so that only one of them is there twice. Where memory ends on the way, the
        shelf is as large as it was, or as small as it was to be.
        """
        self.size = min(size, self.size)
        for layer, widths in self.widths.items():
            old = self.pairs.get(layer)
            if old is None or len(old[0]) != size:
                made = widths.empty(size, self.room)
                if old is not None:
                    for new, kept in zip(made, old, strict=True):
                        new[: len(self.slots)] = kept[: len(self.slots)]
                self.pairs[layer] = made
        self.size = size

    def add(self) -> Slot:
        """A free slot, behind those in use."""
        assert len(self.slots) < self.size
        slot = Slot(self, len(self.slots))
        self.slots.append(slot)
        return slot

    def remove(self, slot: Slot) -> None:
        """Free a slot; others move into the hole."""
        hole = slot.index
        if hole < self.front:
            self.front -= 1
            hole = self._fill(hole, self.front)
        self._fill(hole, len(self.slots) - 1)
        self.slots.pop()

    def promote(self, slot: Slot) -> None:
        """Put a slot among those that decode."""
        if slot.index < self.front:
            return
        other = self.slots[self.front]
        if other is not slot:
            tensors = self._tensors()
            kept = [tensor[slot.index].clone() for tensor in tensors]  # all before any is moved
            for tensor, states in zip(tensors, kept, strict=True):
                tensor[slot.index] = tensor[other.index]
                tensor[other.index] = states
            self.slots[slot.index], self.slots[other.index] = other, slot
            slot.index, other.index = other.index, slot.index
        self.front += 1

    def clear(self, slot: Slot) -> None:
        """Forget what a slot holds: what is not a number there would spoil its next request."""
        for tensor in self._tensors():
            tensor[slot.index] = 0

    def _fill(self, hole: int, source: int) -> int:
        """Move the slot at `source` into a hole; where the hole is now."""
        if hole != source:
            for tensor in self._tensors():
                tensor[hole] = tensor[source]
            slot = self.slots[source]
            slot.index, self.slots[hole] = hole, slot
        return source

    def _tensors(self) -> list[Tensor]:
        return [tensor for pair in self.pairs.values() for tensor in pair]

    @property
    def tokens(self) -> int:
        """Columns of all slots that there is memory for."""
        return self.size * self.room
