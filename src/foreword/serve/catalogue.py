"""`Catalogue`: the prefixes of a store that a backbone can serve, told by the headers of their files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from foreword import format as prefix_file
from foreword.backbone.served import Served
from foreword.errors import FormatError, MismatchError, StoreError
from foreword.prefix import Prefix
from foreword.prompts import refuse_head
from foreword.store import PrefixStore, Stamp

FREE = frozenset({"recipe", "training", "parents"})
"""Fields of a prefix's meta that say how it was made; nothing that serves a prefix depends on them."""


def check_servable(backbone: Served, prefix: Prefix, *, warn: bool = True) -> None:
    """Check that a backbone can serve a prefix.

    Raises:
        MismatchError: It was made for another backbone, carries a head, or leaves no room for text.
    """
    refuse_head(prefix)
    backbone.check(prefix, warn=warn)
    if prefix.length + 2 > backbone.context:
        raise MismatchError(
            f"the prefix has {prefix.length} tokens, and the context of {backbone.name!r} has "
            f"{backbone.context}; a prompt and its answer need 2 of them at least. Train a shorter one"
        )


class Catalogue:
    """Tells which prefixes fit a backbone, without reading their tensors.

    A header is read once, and again when its file was replaced. Headers that differ in nothing but
    `FREE` are checked once. May be used from several threads.

    Args:
        backbone: The backbone.
        store: Where the files are.

    Examples:
        >>> list(Catalogue(backbone, PrefixStore("prefixes")))  # doctest: +SKIP
        ['e2e']
    """

    def __init__(self, backbone: Served, store: PrefixStore) -> None:
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

    def __contains__(self, name: str) -> bool:
        """Whether the store has a prefix of this name; what cannot be a name is not there."""
        try:
            return name in self.store
        except StoreError:
            return False

    def check(self, name: str) -> None:
        """Check whether the prefix called `name` fits.

        Raises:
            NameUnknown: There is none.
            FormatError: Its header is damaged.
            MismatchError: The backbone cannot serve it.
        """
        self.store.stamp(name)
        outline = prefix_file.outline(self.store.path(name))
        check_servable(self.backbone, outline, warn=False)

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
    """What of a header decides whether a prefix fits: all of it but what no check reads.

    A field that is new is told apart by itself; at worst a header is checked that need not have been.
    """
    meta = claims.get("meta")
    if isinstance(meta, dict):
        meta = {name: value for name, value in meta.items() if name not in FREE}
    return json.dumps({**claims, "meta": meta}, sort_keys=True)
