"""The prefixes of the rows of a step, each once, whatever the number of rows that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foreword.attention.bound import Bound, bind_rows
from foreword.prefix import Prefix, Site

IDENTITY = "bank"
"""What caches are marked with: each slot's row keeps to its own prefix, which the engine sees to."""


class Bank:
    """Makes what a step attends to: its prefixes stacked once, and which row has which.

    The stack is kept from step to step while it holds what is needed and is not twice as large.

    Args:
        sites: The backbone's sites.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self.sites = sites
        self._digests: tuple[str, ...] = ()
        self._stack: Bound | None = None

    def hold(self, prefixes: Sequence[Prefix | None]) -> None:
        """Have the prefixes of a step in the stack, before its groups of rows ask for theirs."""
        wanted = {prefix.digest: prefix for prefix in prefixes if prefix is not None}
        if wanted and not self._serves(set(wanted)):
            self._digests = tuple(sorted(wanted))
            # The last row of the stack is no prefix, for the rows that have none.
            self._stack = bind_rows([*(wanted[d] for d in self._digests), None], self.sites)

    def bound(self, prefixes: Sequence[Prefix | None]) -> Bound:
        """What rows with these prefixes, which are held, attend to, but for their strengths."""
        if self._stack is None or all(prefix is None for prefix in prefixes):
            return Bound((), None, (0,), IDENTITY)
        place = {digest: row for row, digest in enumerate(self._digests)}
        none = len(self._digests)
        rows = tuple(none if p is None else place[p.digest] for p in prefixes)
        return replace(self._stack, row_of_B=rows, identity=IDENTITY, dials=())

    def _serves(self, wanted: set[str]) -> bool:
        return wanted <= set(self._digests) and len(self._digests) <= 2 * len(wanted)
