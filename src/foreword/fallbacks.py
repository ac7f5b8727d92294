"""Fast paths that could not be taken: why, logged once each.

The logger is ``foreword.fallbacks``, at level INFO: nothing is wrong, it only takes longer.
"""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

_noted: set[tuple[str, str]] = set()


def note_fallback(path: str, why: str) -> None:
    """Log that a fast path is not taken; the same reason only once in a process.

    Args:
        path: What would have been faster, in a few words.
        why: The reason, and what is done instead.
    """
    if (path, why) in _noted:
        return
    _noted.add((path, why))
    log.info("%s: not used; %s", path, why)
