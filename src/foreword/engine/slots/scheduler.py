"""Which rows run in a step: all that decode, and beside them a chunk of the prompts that wait."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Self, TypeVar

from torch import Tensor

from foreword.engine.request import Request
from foreword.engine.slots.cache import SlotCache
from foreword.engine.slots.runner import COPIED, Front
from foreword.engine.slots.shelf import Slot


@dataclass(eq=False)
class Active:
    """A row under way: a request, or a branch of one that is a mixture.

    Attributes:
        request: What was asked; a branch's is that of its own prefix alone.
        tokens: Prompt, and what was generated so far.
        context: Tokens that the backbone and the prefix leave for it.
        ahead: Columns that a copy of its prefix takes in its slot.
        slot: Where its keys and values are, once it has a place.
        computed: Tokens whose keys and values are there.
        front: What stands in front of them there, once that is known.
        opening: The logits (V,) behind its prompt, for those that come later and begin alike.
        together: All branches of its mixture, the first of which is told; empty for a plain request.
    """

    request: Request
    tokens: list[int]
    context: int
    ahead: int = 0
    slot: Slot | None = None
    computed: int = 0
    front: Front | None = None
    opening: Tensor | None = None
    together: tuple[Self, ...] = ()

    @property
    def rows(self) -> tuple[Self, ...]:
        """All rows of its request."""
        return self.together or (self,)

    @property
    def lead(self) -> Self:
        """The row that its request is known by."""
        return self.together[0] if self.together else self

    @property
    def is_decoding(self) -> bool:
        """Whether all of it but the newest token is computed."""
        return self.computed >= len(self.request.prompt)

    @property
    def most(self) -> int:
        """Columns that it can come to hold."""
        size = len(self.request.prompt) + self.request.sampling.max_tokens
        return self.ahead + min(self.context, size)

    @property
    def needed(self) -> int:
        """Columns that it must have room for: its whole prompt, and the next token."""
        return self.ahead + max(self.computed, len(self.request.prompt)) + 1

    @cached_property
    def beginning(self) -> bytes:
        """The same for requests whose prompts are computed alike, so that one is for all of them."""
        one, told = self.request.leading, self.request.sampling.prompt_logprobs
        named = f"{'' if one is None else f'{one.prefix.digest} {one.strength}'} {told} "
        prompt = array("q", self.request.prompt).tobytes()
        return hashlib.sha256(named.encode() + prompt).digest()


@dataclass(frozen=True)
class Limits:
    """What the engine holds at once.

    Attributes:
        rows: Requests that run at once; a mixture counts as many as it has branches.
        prompt_tokens: Prompt tokens computed beside a decoding step; a longer prompt takes several
            steps, and the others do not wait for it.
        cache_tokens: Tokens that there is memory for, of all requests and the prefixes copied for them.
        copied: Longest prefix that is copied in front of each of its rows; all rows share one copy of
            a longer one.
    """

    rows: int = 32
    prompt_tokens: int = 512
    cache_tokens: int = 2**17
    copied: int = COPIED


A = TypeVar("A", bound=Active)


@dataclass
class Scheduler(Generic[A]):
    """Gives requests rows and room.

    A request gets room for what it holds, not for the most that it may come to. So that none waits
    for ever, room is given only if all can still end one after the other, each with what those before
    it leave (Dijkstra, "Cooperating sequential processes", 1965, section 6: the banker's algorithm).
    Who would break that waits, and while one waits that has begun, nobody begins.

    The branches of a mixture are one request: they begin together or not at all, and end together, so
    what they hold and what they miss is added up.

    Attributes:
        cache: Where keys and values are.
        limits: What may run at once.
        fail: Told of a request that the system has no memory for.
        waiting: Requests without a place, in the order of their arrival; of mixtures the first branch.
        running: Rows with one, in the order in which they began.
        held_up: How many of them wait for room.
    """

    cache: SlotCache
    limits: Limits
    fail: Callable[[A, Exception], None]
    waiting: deque[A] = field(default_factory=deque)
    running: list[A] = field(default_factory=list)
    held_up: int = 0

    def admit(self) -> None:
        """Give waiting requests a place, first come, first served, while there is room."""
        while self.waiting and not self.held_up:
            one = self.waiting[0]
            if len(self.running) + len(one.rows) > self.limits.rows:
                return
            rooms = self._rooms(one)
            if rooms is None:
                return
            self.running += self.waiting.popleft().rows
            for row, room in rooms.items():
                if not self._give(row, room):
                    break

    def decoding(self) -> list[A]:
        """Rows that decode, and have room for a token."""
        self.held_up = 0
        found = [one for one in tuple(self.running) if one.is_decoding and self._goes_on(one)]
        return [one for one in found if one.slot is not None]

    def _goes_on(self, one: A) -> bool:
        """Whether a row has room for a token, and one to compute: a branch may wait for the others."""
        if one.slot is None or one.computed == len(one.tokens):
            return False
        if one.needed <= one.slot.room:
            return True
        room = self._room(one)
        if room is None:
            self.held_up += 1
            return False
        return self._give(one, room)

    def _give(self, one: A, room: int) -> bool:
        """Give a row a slot, or a larger one; whether the system had the memory."""
        try:
            slot = one.slot
            one.slot = self.cache.take(room) if slot is None else self.cache.move(slot, room)
        except Exception as error:  # this one fails, the others go on
            self.fail(one, error)
            return False
        return True

    def _rooms(self, one: A) -> dict[A, int] | None:
        """Rooms for all rows of a request under which all can still end; None if there are none."""
        given: dict[A, int] = {}
        for row in one.rows:
            room = self._room(row, given)
            if room is None:
                break
            given[row] = room
        else:
            return given
        if not one.together:
            return None
        for row in one.rows:  # each as little as it can do with
            *_, given[row] = self.cache.rooms(row.needed, row.most)
        return given if self._is_safe(one, given) else None

    def _room(self, one: A, given: Mapping[A, int] | None = None) -> int | None:
        """The best room for a row under which all can still end; None if there is none.

        Args:
            one: The row.
            given: Rooms that rows beside it are about to have.
        """
        rooms = self.cache.rooms(one.needed, one.most)
        given = given or {}
        return next((room for room in rooms if self._is_safe(one, {**given, one: room})), None)

    def _is_safe(self, one: A, given: Mapping[A, int]) -> bool:
        """Whether all that run, and this one, can end one after the other, once some have rooms."""
        held: Counter[A] = Counter()
        missing: Counter[A] = Counter()
        for row in dict.fromkeys((*self.running, *one.rows)):
            room = given.get(row, 0 if row.slot is None else row.slot.room)
            held[row.lead] += room
            missing[row.lead] += max(0, row.most - room)
        free = self.limits.cache_tokens - held.total()
        if free < 0:
            return False
        for needed, room in sorted((missing[lead], room) for lead, room in held.items()):
            if needed > free:
                return False
            free += room
        return True

    def chunks(self) -> list[tuple[A, int]]:
        """Prompts to go on with in this step, and how many tokens of each.

        Of those that begin alike the first one is computed, and the others wait for it.
        """
        found: list[tuple[A, int]] = []
        room = self.limits.prompt_tokens
        begun: set[bytes] = set()
        for one in self.running:
            if one.is_decoding or one.beginning in begun:
                continue
            begun.add(one.beginning)
            left = len(one.request.prompt) - one.computed
            if found and left > room:
                break
            found.append((one, min(left, room)))
            room -= found[-1][1]
            if room <= 0:
                break
        return found

    def promote(self, one: A) -> None:
        """A prompt is computed: its request decodes from now on."""
        assert one.slot is not None
        one.slot.shelf.promote(one.slot)

    def release(self, one: A) -> None:
        """A request has ended, or will: the place of each of its rows is free."""
        if one.lead in self.waiting:
            self.waiting.remove(one.lead)
        else:
            for row in one.rows:
                self.running.remove(row)
        for row in one.rows:
            if row.slot is not None:
                self.cache.give_back(row.slot)
                row.slot = None

    def find(self, matches: Callable[[A], bool]) -> list[A]:
        """Rows that match, waiting or running."""
        return [one for one in (*self.waiting, *self.running) if matches(one)]

    @property
    def begun(self) -> int:
        """Requests with a place, each once."""
        return sum(one.lead is one for one in tuple(self.running))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running
