"""`Outlines`: what the files of a store say of themselves, those that were asked for last."""

from __future__ import annotations

import threading
from collections import OrderedDict

from foreword.outline import Outline
from foreword.store import PrefixStore, Stamp

MOST = 10_000
"""Outlines that are kept; each takes some kilobytes."""


class Outlines:
    """Outlines by name; a file's header is read once, and again when the file was replaced.

    One that is known costs a look at its file. May be used from several threads.

    Args:
        store: Where the files are.
        most: Outlines that are kept at most.
    """

    def __init__(self, store: PrefixStore, most: int = MOST) -> None:
        self.store = store
        self.most = most
        self._kept: OrderedDict[str, tuple[Stamp, Outline]] = OrderedDict()
        self._last: Outline | None = None
        self._lock = threading.Lock()

    def get(self, name: str) -> Outline:
        """What the file of the prefix called `name` says of itself now.

        Raises:
            StoreError: There is none.
            FormatError: Its header is damaged, or the file is not as long as it says.
        """
        stamp = self.store.stamp(name)
        with self._lock:
            known = self._kept.get(name)
            if known is not None and known[0] == stamp:
                self._kept.move_to_end(name)
                return known[1]
        outline = self.store.outline(name)
        with self._lock:
            outline = self._last = self._shared(outline)
            self._kept[name] = stamp, outline
            self._kept.move_to_end(name)
            if len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return outline

    def forget(self, name: str) -> None:
        """Drop what is known of a prefix; its file stays."""
        with self._lock:
            self._kept.pop(name, None)

    def _shared(self, outline: Outline) -> Outline:
        """The same outline; prefixes of one backbone share one list of sites, which is most of it."""
        last = self._last
        if last is None or last.sites != outline.sites:
            return outline
        return outline._replace(sites=last.sites)
