"""`Catalogue`: the prefixes of a store that a backbone can serve, told by the headers of their files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.errors import FormatError, MismatchError, StoreError
from foreword.generate import refuse_head
from foreword.store import PrefixStore, Stamp


class Catalogue:
    """Tells which prefixes fit a backbone, without reading their tensors.

    A header is read once, and again when its file was replaced. Headers that name the same sites,
    weights and tokenizer are checked once. May be used from several threads.

    Args:
        backbone: The backbone.
        store: Where the files are.

    Examples:
        >>> list(Catalogue(backbone, PrefixStore("prefixes")))  # doctest: +SKIP
        ['e2e']
    """

    def __init__(self, backbone: Backbone, store: PrefixStore) -> None:
        self.backbone = backbone
        self.store = store
        self._fit: dict[str, tuple[Stamp, bool]] = {}
        self._kinds: dict[str, bool] = {}

    def __iter__(self) -> Iterator[str]:
        """Names of the prefixes that fit, in alphabetical order.

        Raises:
            StoreError: The folder cannot be read.
        """
        names = list(self.store)
        for gone in set(self._fit).difference(names):
            self._fit.pop(gone, None)
        return filter(self._fits, names)

    def check(self, name: str) -> None:
        """Check whether the prefix called `name` fits.

        Raises:
            StoreError: There is none.
            FormatError: Its header is damaged.
            MismatchError: It was made for another backbone, or carries a head.
        """
        self.store.stamp(name)
        outline = prefix_file.outline(self.store.path(name))
        refuse_head(outline)
        self.backbone.check(outline, warn=False)

    def _fits(self, name: str) -> bool:
        try:
            stamp = self.store.stamp(name)
            known = self._fit.get(name)
            if known is None or known[0] != stamp:
                known = self._fit[name] = stamp, self._looked(name)
        except StoreError:  # deleted since it was listed
            return False
        return known[1]

    def _looked(self, name: str) -> bool:
        """Whether it fits, as its header is now."""
        try:
            kind = _kind(prefix_file.claims(self.store.path(name)))
            if kind not in self._kinds:
                self.check(name)
                self._kinds[kind] = True
        except FormatError:
            return False
        except MismatchError:
            self._kinds[kind] = False
        return self._kinds[kind]


def _kind(claims: Mapping[str, Any]) -> str:
    """What of a header decides whether a prefix fits."""
    meta = claims.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    own = (claims.get("sites"), claims.get("head"), meta.get("tokenizer"), meta.get("fingerprint"))
    return json.dumps(own)
