"""Which rows run in a step: all that decode, and beside them a chunk of the prompts that wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from foreword.engine.cache import SlotCache
from foreword.engine.request import Request
from foreword.engine.runner import COPIED, Front


@dataclass
class Active:
    """A request under way.

    Attributes:
        request: What was asked.
        tokens: Prompt, and what was generated so far.
        context: Tokens that the backbone and the prefix leave for it.
        ahead: Columns that a copy of its prefix will take in its slot.
        slot: Where its keys and values are, once it has a place.
        computed: Tokens whose keys and values are there.
        front: What stands in front of them there, once that is known.
    """

    request: Request
    tokens: list[int]
    context: int
    ahead: int = 0
    slot: int = -1
    computed: int = 0
    front: Front | None = None

    @property
    def held(self) -> int:
        """Columns that its slot holds."""
        return self.computed + (0 if self.front is None else self.ahead)

    @property
    def is_decoding(self) -> bool:
        """Whether all of it but the newest token is computed."""
        return self.computed >= len(self.request.prompt)

    @property
    def most(self) -> int:
        """Columns that it can come to hold."""
        size = len(self.request.prompt) + self.request.sampling.max_tokens
        return self.ahead + min(self.context, size)


@dataclass(frozen=True)
class Limits:
    """What the engine holds at once.

    Attributes:
        rows: Requests that run at once.
        prompt_tokens: Prompt tokens computed beside a decoding step; a longer prompt takes several
            steps, and the others do not wait for it.
        cache_tokens: Tokens of all slots together: rows in use times the longest one's length.
        copied: Longest prefix that is copied in front of each of its rows; all rows share one copy of
            a longer one.
    """

    rows: int = 32
    prompt_tokens: int = 512
    cache_tokens: int = 2**17
    copied: int = COPIED


@dataclass
class Scheduler:
    """Slots 0 to n hold the running requests without a gap, those that decode in front.

    Attributes:
        cache: Where a change of slots moves keys and values.
        limits: What may run at once.
        waiting: Requests without a slot, in the order of their arrival.
        running: Requests by slot.
        decoding: How many of them decode.
    """

    cache: SlotCache
    limits: Limits
    waiting: deque[Active] = field(default_factory=deque)
    running: list[Active] = field(default_factory=list)
    decoding: int = 0

    def admit(self) -> None:
        """Give waiting requests a slot, first come, first served, while there is room."""
        while self.waiting and len(self.running) < self.limits.rows:
            longest = max(one.most for one in (*self.running, self.waiting[0]))
            fits = longest * (len(self.running) + 1) <= self.limits.cache_tokens
            if not fits and self.running:
                return
            one = self.waiting.popleft()
            one.slot = len(self.running)
            self.running.append(one)

    def chunks(self) -> list[tuple[Active, int]]:
        """Prompts to go on with in this step, and how many tokens of each."""
        found: list[tuple[Active, int]] = []
        room = self.limits.prompt_tokens
        for one in self.running[self.decoding :]:
            left = len(one.request.prompt) - one.computed
            if found and left > room:
                break
            found.append((one, min(left, room)))
            room -= found[-1][1]
            if room <= 0:
                break
        return found

    @property
    def longest(self) -> int:
        """Columns that a running request holds at most after the next step."""
        chunk = self.limits.prompt_tokens

        def new(one: Active) -> int:
            left = len(one.request.prompt) - one.computed
            return 1 if one.is_decoding else min(left, chunk)

        return max((one.ahead + one.computed + new(one) for one in self.running), default=0)

    def promote(self, one: Active) -> None:
        """A prompt is computed: its request decodes from now on."""
        self._swap(one.slot, self.decoding)
        self.decoding += 1

    def release(self, one: Active) -> None:
        """A request has ended, or will: its slot is free."""
        if one.slot < 0:
            self.waiting.remove(one)
            return
        slot, one.slot = one.slot, -1
        if slot < self.decoding:
            self.decoding -= 1
            slot = self._fill(slot, self.decoding)
        self._fill(slot, len(self.running) - 1)
        self.running.pop()

    def _fill(self, hole: int, source: int) -> int:
        """Move the request at `source` into a hole; where the hole is now."""
        if hole != source:
            one = self.running[source]
            self.cache.move(source, hole, one.held)
            one.slot, self.running[hole] = hole, one
        return source

    def _swap(self, first: int, second: int) -> None:
        if first == second:
            return
        one, two = self.running[first], self.running[second]
        self.cache.swap(first, second, max(one.held, two.held))
        one.slot, two.slot = second, first
        self.running[first], self.running[second] = two, one

    def find(self, matches: Callable[[Active], bool]) -> list[Active]:
        """Requests that match, waiting or running."""
        return [one for one in (*self.waiting, *self.running) if matches(one)]

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running
