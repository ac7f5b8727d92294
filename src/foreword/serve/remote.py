"""`RemotePrefixes`: prefixes whose tensors the engine's workers read; the server reads headers alone."""

from __future__ import annotations

from foreword.errors import StoreError
from foreword.outline import Outline
from foreword.outlines import MOST, Outlines
from foreword.store import PrefixStore


class RemotePrefixes:
    """Prefixes of a store by name, for a server whose engine's workers read them themselves.

    A request costs a look at its file; a header is read once, and again when the file was replaced. Of
    what a header claims the digest is proven by the workers, which read the whole file.

    Args:
        store: Where the files are.
        most: Headers that are kept at most.
    """

    pinned: frozenset[str] = frozenset()
    """None: workers keep the prefixes that were used last."""

    loads = None
    """They are in the workers' memory, which the engine tells of."""

    def __init__(self, store: PrefixStore, most: int = MOST) -> None:
        self.store = store
        self._outlines = Outlines(store, most)

    def get(self, name: str) -> Outline:
        """What the file of the prefix called `name` says of itself now.

        Raises:
            StoreError: There is none.
            FormatError: Its header is damaged.
        """
        return self._outlines.get(name)

    def __contains__(self, name: str) -> bool:
        """Whether the store has a prefix of this name; what cannot be a name is not there."""
        try:
            return name in self.store
        except StoreError:
            return False

    def holds(self, name: str) -> bool | None:
        """None: which prefixes are in the workers' memory is not known here."""
        return None

    def forget(self, name: str) -> None:
        """Drop what is known of a prefix; its file stays."""
        self._outlines.forget(name)

    def pin(self, name: str) -> None:
        """Refuse.

        Raises:
            StoreError: In any case.
        """
        self.store.stamp(name)
        raise StoreError(
            f"{name!r} cannot be pinned: with --engine vllm each worker keeps the prefixes that were "
            "used last. Give the server a larger --resident to keep more of them"
        )

    def unpin(self, name: str) -> None:
        """Nothing: none is pinned."""
