"""What one forward pass writes and reads: its rows, on which shelves, at which columns.

Shapes: B rows of a pass, Q new tokens per row, K columns that they read, T new tokens of all rows, N
those of one group of rows; S slots, R room, H heads, D key (or value) dimension.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from foreword.engine.slots.shelf import Shelf, Slot

BLOCK = 32
"""Columns are read in multiples of this: a kernel is made anew for each number that it has not seen."""

SPARE = 64
"""Columns more than what is needed that several new tokens read, to read all that a slot has."""

FAR = 3
"""The same for one new token, as a multiple: products with a part of each slot take three times as long
as those with contiguous keys (benchmarks/LOG.md)."""


def rounded(tokens: int) -> int:
    """The columns that hold so many tokens."""
    return -(-tokens // BLOCK) * BLOCK


@dataclass(frozen=True)
class Rows:
    """Some rows of one forward pass, and where they write and read.

    Attributes:
        slots: Where each row's keys and values are.
        starts: Columns that each row has already, so the column of its first new token.
        sizes: New tokens of each.
        device: Where the keys and values are.
    """

    slots: tuple[Slot, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    device: torch.device

    @cached_property
    def queries(self) -> int:
        """New tokens of the longest row, Q."""
        return max(self.sizes)

    @cached_property
    def columns(self) -> int:
        """Columns that the longest row needs, and some that nobody sees."""
        return rounded(max(self.starts) + self.queries)

    @cached_property
    def by_shelf(self) -> tuple[Rows, ...]:
        """The rows in groups of one shelf each; the order is that of the rows, which are sorted."""
        found = []
        parts = zip(self.slots, self.starts, self.sizes, strict=True)
        for _, group in itertools.groupby(parts, key=lambda part: id(part[0].shelf)):
            slots, starts, sizes = zip(*group, strict=True)
            found.append(Rows(slots, starts, sizes, self.device))
        return tuple(found)

    # -- of one shelf ----------------------------------------------------------------------------

    @property
    def shelf(self) -> Shelf:
        """Where the rows of one shelf are."""
        return self.slots[0].shelf

    @cached_property
    def read(self) -> int:
        """Columns that are read, K: all that the slots have, if that is not much more than needed."""
        room = self.shelf.room
        needed = min(self.columns, room)
        if self.queries == 1:
            return room if room <= FAR * needed else needed
        return room if room <= needed + SPARE else needed

    @cached_property
    def where(self) -> slice | Tensor:
        """The slots, as a slice if they are consecutive."""
        indices = [slot.index for slot in self.slots]
        first = indices[0]
        if indices == list(range(first, first + len(indices))):
            return slice(first, first + len(indices))
        return torch.tensor(indices, device=self.device)

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Slot and column of each of the rows' N new tokens, int64."""
        slots: list[int] = []
        places: list[int] = []
        for slot, start, size in zip(self.slots, self.starts, self.sizes, strict=True):
            slots += [slot.index] * size
            places += range(start, start + size)
        return torch.tensor(slots, device=self.device), torch.tensor(places, device=self.device)

    # -- masks -----------------------------------------------------------------------------------

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
class Step(ABC):
    """One forward pass, as the cache's layers see it.

    Attributes:
        groups: Its rows, each group on one shelf.
    """

    groups: tuple[Rows, ...]

    @property
    def held(self) -> int:
        """Columns of the longest row before the pass."""
        return max(max(rows.starts) for rows in self.groups)

    @cached_property
    def columns(self) -> int:
        """Columns that the rows read side by side, K."""
        if len(self.groups) == 1:
            return self.groups[0].read
        return max(rows.columns for rows in self.groups)

    @abstractmethod
    def written(self, layer: int, kind: int, new: Tensor) -> Tensor:
        """Write a layer's new keys (kind 0) or values (1); what the model goes on with."""


@dataclass(frozen=True)
class Padded(Step):
    """A pass over rows (B, Q), a shorter one with garbage behind its end, which is not written."""

    @cached_property
    def _real(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Row and query of each group's N tokens, int64."""
        found, first = [], 0
        for rows in self.groups:
            numbered = list(enumerate(rows.sizes, first))
            row_N = [row for row, size in numbered for _ in range(size)]
            query_N = [query for _, size in numbered for query in range(size)]
            pair = (torch.tensor(each, device=rows.device) for each in (row_N, query_N))
            found.append((next(pair), next(pair)))
            first += len(rows.sizes)
        return tuple(found)

    def written(self, layer: int, kind: int, new: Tensor) -> Tensor:
        """New keys or values (B, H, Q, D); the rows' own from their first, (B, H, K, D)."""
        held = []
        for rows, (row_N, query_N) in zip(self.groups, self._real, strict=True):
            tensor = rows.shelf.pair(layer)[kind]
            slot_N, place_N = rows.targets
            tensor[slot_N, :, place_N] = new[row_N, :, query_N]
            held.append(tensor[rows.where][:, :, : self.columns])
        if len(held) == 1:
            return held[0]
        out = new.new_zeros(new.shape[0], new.shape[1], self.columns, new.shape[3])
        first = 0
        for part in held:
            out[first : first + len(part), :, : part.shape[2]] = part
            first += len(part)
        return out


@dataclass(frozen=True)
class Flat(Step):
    """A pass over the tokens of all rows one after the other, as one row of T tokens.

    The model is given the keys and values of the first group's shelf, and hands them on to attention,
    where each group finds its own by them.

    Attributes:
        parts: By the id of what the model was given, what each group reads of it.
    """

    parts: dict[int, list[Tensor]] = field(default_factory=dict)

    def written(self, layer: int, kind: int, new: Tensor) -> Tensor:
        """New keys or values (1, H, T, D); all that one shelf holds, (S, H, R, D).

        Tokens behind those of the rows are padding.
        """
        new_THD = new[0].transpose(0, 1)
        first, held = 0, []
        for rows in self.groups:
            tensor = rows.shelf.pair(layer)[kind]
            slot_N, place_N = rows.targets
            tensor[slot_N, :, place_N] = new_THD[first : first + len(slot_N)]
            first += len(slot_N)
            held.append(tensor)
        self.parts[id(held[0])] = held
        return held[0]

    def part(self, group: int, states: Tensor) -> Tensor:
        """What a group reads, (S, H, R, D), of what the model was given in its place.

        Raises:
            KeyError: The model hands on something else.
        """
        return self.parts[id(states)][group]
