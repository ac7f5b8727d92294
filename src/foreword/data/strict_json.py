"""JSON text as values; a name that stands twice in one object is refused, not lost."""

from __future__ import annotations

import json
from typing import Any

from foreword.errors import DataError


def loaded(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        DataError: An object has a name twice; the message says which.
        ValueError: It is not JSON, or nested deeper than Python reads.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    refuse_repeats([name for name, _ in pairs], "an object")
    return dict(pairs)


def refuse_repeats(names: list[str], what: str) -> None:
    """Check that every name stands once, so that no value hides another.

    Raises:
        DataError: One stands twice.
    """
    if len(set(names)) == len(names):
        return
    twice = next(name for place, name in enumerate(names) if name in names[:place])
    raise DataError(f"{what} has {twice!r} twice; rename one, or leave it out")
