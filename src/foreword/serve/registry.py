"""`Registry`: what the server asks of those who know the prefixes of its store."""

from __future__ import annotations

from typing import Protocol

from foreword.described import Described
from foreword.engine.protocol import Loads
from foreword.store import PrefixStore


class Registry(Protocol):
    """The prefixes of a store by name, as their files are now. May be asked from several threads.

    A `Residency` has them with their tensors; `RemotePrefixes` knows them by their files' headers.
    """

    @property
    def store(self) -> PrefixStore:
        """Where the files are."""

    @property
    def pinned(self) -> frozenset[str]:
        """Names of the prefixes that stay in memory."""

    @property
    def loads(self) -> Loads | None:
        """Prefixes in this process' memory; None where the engine's workers have them."""

    def get(self, name: str) -> Described:
        """The prefix called `name`, as its file is now.

        Raises:
            StoreError: There is none.
            FormatError: Its file is damaged.
        """

    def __contains__(self, name: str) -> bool:
        """Whether the store has a prefix of this name; what cannot be a name is not there."""

    def holds(self, name: str) -> bool | None:
        """Whether a prefix is in memory; None where this process does not know."""

    def forget(self, name: str) -> None:
        """Take a prefix out of memory, and its pin away; its file stays."""

    def pin(self, name: str) -> None:
        """Read a prefix and keep it in memory.

        Raises:
            StoreError: There is none, or prefixes cannot be pinned here.
        """

    def unpin(self, name: str) -> None:
        """Let a prefix go when others need the room."""
