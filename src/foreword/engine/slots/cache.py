"""The engine's cache of keys and values: a slot per request, written in place.

transformers' own caches grow by concatenation, a copy of everything at each step, and have one length
for all rows. Here requests of like length share a shelf, a tensor per layer with a room for each. Who
outgrows it moves to another by itself; nobody else is copied, and what is left is given back.

Rooms are 128, 192, 256, 384, 512 columns and so on: within each a step computes attention at once, so
there are few of them, and no slot is much larger than what it holds.

Shapes: H key/value heads, P columns of a prefix, D key dimension, E value dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from foreword.engine.slots.growing import NONE_LEFT
from foreword.engine.slots.shelf import Shelf, Slot, Widths
from foreword.engine.slots.steps import Step, rounded
from foreword.errors import ServeError, first_line

LEAST = 128
"""Columns of the smallest room."""

JOINED = 2
"""How many times its own a room may be that a request shares with others, to be computed with them."""

PLENTY = 8
"""A request has room for all that it may come to while so small a part of the limit is in use."""

BOUND = 2**14
"""Columns of one shelf at most, unless a single slot has more: where it cannot grow in place, as much
is copied."""

SHRINK = 4
"""A shelf is halved when it is so many times what is in use."""


class NoMemory(ServeError):
    """There is no memory for a request's keys and values."""


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer, as transformers asks for it.

    Args:
        index: Which one.
        widths: By layer what is kept of a token; this one's is noted at the first pass.
    """

    is_sliding = False

    def __init__(self, index: int, widths: dict[int, Widths]) -> None:
        super().__init__()
        self.index = index
        self.widths = widths
        self.step: Step | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Note the heads, dimensions, dtype and device of the first call."""
        self.widths[self.index] = Widths.of(key_states, value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write a pass's keys and values; what its attention goes on with (see `Step`)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.step is not None
        written = self.step.written
        return written(self.index, 0, key_states), written(self.index, 1, value_states)

    def get_seq_length(self) -> int:
        """Columns of the longest row before the pass."""
        return 0 if self.step is None else self.step.held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask, and the first one's place."""
        return rounded(query_length) if self.step is None else self.step.columns, 0

    def get_max_length(self) -> int:
        """No bound that a model should know of: the engine makes room."""
        return -1

    get_max_cache_shape = get_max_length


class SlotCache(Cache):  # type: ignore[misc]
    """A cache of slots for a transformers model; `at` says where the next pass writes.

    Args:
        layers: Layers of the model that keep keys and values.
        limit: Columns of all slots together; who takes slots sees to it, and no spare ones go beyond.
    """

    def __init__(self, layers: int, limit: int) -> None:
        self.widths: dict[int, Widths] = {}
        super().__init__(layers=[SlotLayer(index, self.widths) for index in range(layers)])
        self.limit = limit
        self.shelves: list[Shelf] = []

    def at(self, step: Step | None) -> None:
        """Write the next pass here, whose rows have room for it; None after it, to keep no tensor."""
        for layer in self.layers:
            layer.step = step

    def rooms(self, tokens: int, most: int) -> Iterator[int]:
        """Rooms for so many tokens, the best first.

        For the most that the request will need, if that is near and there is plenty; the largest that
        others have, so that attention is computed with theirs; that of its class; and, where memory is
        short, what it will need at most, or needs now.
        """
        own = self._class_of(tokens)
        used = sorted({shelf.room for shelf in self.shelves if shelf.slots}, reverse=True)
        joined = [room for room in used if tokens <= room <= JOINED * own]
        end = self._class_of(most)
        if end <= JOINED * own and self._in_use + end <= self.limit // PLENTY:
            yield max([end, *joined])
        yield from joined
        yield own
        yield min(own, most)
        yield min(rounded(tokens), most)

    def _class_of(self, tokens: int) -> int:
        """The room of a request that holds so many tokens; no more than there is for all."""
        room = LEAST
        while room < tokens:
            room = room * 3 // 2 if room & (room - 1) == 0 else room * 4 // 3
        return max(tokens, min(room, self.limit))

    def take(self, room: int) -> Slot:
        """A slot with a room.

        Raises:
            NoMemory: The system has none for it.
        """
        fitting = [shelf for shelf in self.shelves if shelf.room == room]
        for shelf in fitting:
            if len(shelf.slots) < shelf.size:
                return shelf.add()
        shelf = next((s for s in fitting if (s.size + 1) * room <= BOUND), self._shelf(room))
        try:
            self._make_room(shelf)
        except NONE_LEFT as error:
            if self.rest():
                return self.take(room)
            size = room * sum(widths.bytes for widths in self.widths.values())
            raise NoMemory(
                f"no memory for the keys and values of {room} tokens ({size / 2**20:.0f} MiB): "
                f"{first_line(error)}. Ask for less, or serve with fewer --cache-tokens"
            ) from error
        if shelf not in self.shelves:
            self.shelves.append(shelf)
        return shelf.add()

    def _shelf(self, room: int) -> Shelf:
        return Shelf(room, self.widths, max(1, min(BOUND, self.limit) // room))

    def _make_room(self, shelf: Shelf) -> None:
        """Give a shelf another slot, and as many again if memory is not short."""
        if self.limit - self.tokens < shelf.room:
            self._trim()
        spare = (self.limit - self.tokens) // shelf.room
        bound = max(shelf.size + 1, BOUND // shelf.room)
        shelf.resize(min(max(1, 2 * shelf.size), bound, shelf.size + max(1, spare)))

    def _trim(self) -> None:
        """Give back the spare slots of all shelves."""
        self.rest()
        for shelf in self.shelves:
            if shelf.size > len(shelf.slots):
                shelf.resize(len(shelf.slots))

    def rest(self) -> bool:
        """Give back shelves that nothing is on; whether there were any.

        They stay until then: mapping memory for each request that comes to an idle engine would take it
        a tenth of the time to its first token.
        """
        empty = [shelf for shelf in self.shelves if not shelf.slots]
        for shelf in empty:
            shelf.drop()
            self.shelves.remove(shelf)
        return bool(empty)

    def give_back(self, slot: Slot) -> None:
        """Free a slot, and most of a shelf that is mostly empty."""
        shelf = slot.shelf
        shelf.remove(slot)
        with suppress(*NONE_LEFT):  # the old tensors are as good, only larger
            if self.tokens > self.limit:
                self._trim()
            elif 0 < SHRINK * len(shelf.slots) <= shelf.size:
                shelf.resize(2 * len(shelf.slots))

    def move(self, slot: Slot, room: int) -> Slot:
        """A slot of another room with what a slot holds, which is given back; both are there meanwhile.

        Raises:
            NoMemory: The system has none for it; nothing has changed.
        """
        made = self.take(room)
        self.copy(slot, made, min(slot.room, room))
        if slot.index < slot.shelf.front:
            made.shelf.promote(made)
        self.give_back(slot)
        return made

    def copy(self, source: Slot, target: Slot, columns: int) -> None:
        """Copy a slot's first columns to another slot."""
        for layer in self.widths:
            pairs = zip(source.shelf.pair(layer), target.shelf.pair(layer), strict=True)
            for old, new in pairs:
                new[target.index, :, :columns] = old[source.index, :, :columns]

    def put(self, layer: int, slot: Slot, key_HPD: Tensor, value_HPE: Tensor) -> None:
        """Write the first tokens of a slot, in a cache that was run before."""
        for tensor, states in zip(slot.shelf.pair(layer), (key_HPD, value_HPE), strict=True):
            tensor[slot.index, :, : states.shape[1]] = states

    @property
    def _in_use(self) -> int:
        return sum(len(shelf.slots) * shelf.room for shelf in self.shelves)

    @property
    def tokens(self) -> int:
        """Columns that there is memory for."""
        return sum(shelf.tokens for shelf in tuple(self.shelves))

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return self.tokens * sum(widths.bytes for widths in tuple(self.widths.values()))
