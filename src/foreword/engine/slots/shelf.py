"""A shelf: slots for requests of like length, one tensor of keys and one of values per layer.

The slots that are in use are the first ones, without a gap, and of those the ones that decode are in
front, so that a step reads them as one view.

Shapes: S slots, H key/value heads, R columns that a slot has room for, D key dimension, E value
dimension, P columns of a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.engine.slots.growing import Growing


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

    def growing(self, room: int, most: int) -> tuple[Growing, Growing]:
        """Keys (S, H, R, D) and values (S, H, R, E), of no slot yet, and of hardly more than `most`.

        They are zeros, since what is not a number spreads.
        """
        on = self.dtype, self.device, most
        return (
            Growing((self.heads, room, self.key), *on),
            Growing((self.heads, room, self.value), *on),
        )

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
        most: Slots that it will hardly have more of.
        size: Slots that there is memory for, S.
        slots: Those in use, by index.
        front: How many of them decode.
        pairs: By layer the keys and values. A resizing that failed leaves some with more than S slots.
    """

    room: int
    widths: Mapping[int, Widths]
    most: int = 1
    size: int = 0
    slots: list[Slot] = field(default_factory=list)
    front: int = 0
    pairs: dict[int, tuple[Growing, Growing]] = field(default_factory=dict)

    def pair(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values."""
        if layer not in self.pairs:
            self._resize(layer, self.size)
        keys, values = self.pairs[layer]
        return keys.tensor, values.tensor

    def resize(self, size: int) -> None:
        """Have memory for so many slots; those in use are kept.

        Layer after layer, so that at most one of them is there twice. Where memory ends on the way, the
        shelf is as large as it was, or as small as it was to be.
        """
        self.size = min(size, self.size)
        for layer in self.widths:
            self._resize(layer, size)
        self.size = size

    def _resize(self, layer: int, size: int) -> None:
        pair = self.pairs.get(layer) or self.widths[layer].growing(self.room, self.most)
        for each in pair:
            each.resize(size, len(self.slots))
        self.pairs[layer] = pair

    def drop(self) -> None:
        """Have memory for no slot, and no address space either."""
        assert not self.slots
        self.size = 0
        self.pairs.clear()

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
        return [each.tensor for pair in self.pairs.values() for each in pair]

    @property
    def tokens(self) -> int:
        """Columns of all slots that there is memory for."""
        return self.size * self.room
