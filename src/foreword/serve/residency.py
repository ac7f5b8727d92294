"""Which prefixes are in memory: the last used ones and the pinned ones; the rest stay files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from foreword.engine.protocol import Loads
from foreword.engine.threads import give_up_pool
from foreword.errors import StoreError
from foreword.prefix import Prefix
from foreword.store import PrefixStore, Stamp


@dataclass(frozen=True)
class _Held:
    prefix: Prefix
    stamp: Stamp


class Residency:
    """Prefixes of a store by name, read when they are first asked for.

    A file that has been replaced is read anew, so the next request sees it; requests under way keep
    the prefix that they began with. May be used from several threads.

    Args:
        store: Where the files are.
        most: Prefixes in memory at most, pinned ones not counted.

    Attributes:
        hits: Times that a prefix was in memory.
        misses: Times that one was read.
        evictions: Times that one had to go.
    """

    def __init__(self, store: PrefixStore, most: int = 64) -> None:
        if most < 1:
            raise StoreError(f"at least 1 prefix must fit into memory; found {most}")
        self.store = store
        self.most = most
        self.hits = self.misses = self.evictions = 0
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._pinned: set[str] = set()
        self._lock = threading.Lock()

    def get(self, name: str) -> Prefix:
        """The prefix called `name`, as its file is now.

        Raises:
            StoreError: There is none.
            FormatError: Its file is damaged.
        """
        stamp = self._stamp(name)
        with self._lock:
            held = self._held.get(name)
            if held is not None and held.stamp == stamp:
                self._held.move_to_end(name)
                self.hits += 1
                return held.prefix
        prefix = self.store.load(name)
        _ = prefix.digest  # computed here, not by the first step that needs it
        give_up_pool()
        with self._lock:
            self.misses += 1
            self._held[name] = _Held(prefix, stamp)
            self._held.move_to_end(name)
            self._evict()
        return prefix

    def __contains__(self, name: str) -> bool:
        """Whether the store has a prefix of this name; what cannot be a name is not there."""
        try:
            return name in self.store
        except StoreError:
            return False

    def _stamp(self, name: str) -> Stamp:
        """What tells a file from the one that replaces it."""
        try:
            return self.store.stamp(name)
        except StoreError:
            self.forget(name)
            raise

    def _evict(self) -> None:
        loose = [name for name in self._held if name not in self._pinned]
        for name in loose[: max(0, len(loose) - self.most)]:
            del self._held[name]
            self.evictions += 1

    def forget(self, name: str) -> None:
        """Take a prefix out of memory, and its pin away; its file stays."""
        with self._lock:
            self._held.pop(name, None)
            self._pinned.discard(name)

    def pin(self, name: str) -> None:
        """Read a prefix and keep it in memory.

        Raises:
            StoreError: There is none.
        """
        self.get(name)
        with self._lock:
            self._pinned.add(name)

    def unpin(self, name: str) -> None:
        """Let a prefix go when others need the room."""
        with self._lock:
            self._pinned.discard(name)
            self._evict()

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the prefixes in memory, the last used one last."""
        with self._lock:
            return tuple(self._held)

    @property
    def pinned(self) -> frozenset[str]:
        """Names of the prefixes that stay in memory."""
        with self._lock:
            return frozenset(self._pinned)

    def holds(self, name: str) -> bool:
        """Whether a prefix is in memory."""
        with self._lock:
            return name in self._held

    @property
    def loads(self) -> Loads:
        """What is in memory, and how often it was asked for."""
        return Loads(len(self.resident), self.bytes, self.hits, self.misses)

    @property
    def bytes(self) -> int:
        """Size of the tensors in memory."""
        with self._lock:
            return sum(held.prefix.nbytes for held in self._held.values())
