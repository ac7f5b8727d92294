"""A prefix that ``init`` names: looked up, and held to the settings, before a backbone is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from foreword.errors import StoreError, TrainingError
from foreword.methods.prefix.settings import INIT_WORDS, PrefixSettings
from foreword.outline import SUFFIX, Outline, outline_of
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.prefix import Prefix

T = TypeVar("T")


def check_start(settings: PrefixSettings, store: PrefixStore) -> None:
    """Check that a prefix to start from is there, and is what the settings ask for.

    Raises:
        StoreError: There is none of that name.
        FormatError: Its header cannot be read.
        TrainingError: It is not what the settings ask for.
    """
    if settings.starts_from_prefix:
        refuse_other(settings, named(settings.init, outline_of, store.outline))


def named(name: str, of_file: Callable[[str], T], of_store: Callable[[str], T]) -> T:
    """What is read of the prefix that ``init`` names: a file, by its ending, or one of the store.

    Raises:
        StoreError: There is no prefix of that name.
    """
    if name.endswith(SUFFIX):
        return of_file(name)
    try:
        return of_store(name)
    except StoreError as error:
        raise StoreError(
            f"init {name!r} is neither one of {', '.join(INIT_WORDS)} nor a prefix: {error}"
        ) from error


def refuse_other(settings: PrefixSettings, found: Outline | Prefix) -> None:
    """Check that the settings ask for what a prefix to start from has.

    A start keeps what it has: nothing is cut, padded or read in another way in silence.

    Raises:
        TrainingError: They ask for something else.
    """
    pairs = {
        "length": (settings.length, found.length),
        "positions": (settings.positions, found.meta.positions),
        "windows": (settings.windows, found.meta.windows),
    }
    for name, (wanted, has) in pairs.items():
        if wanted is not None and wanted != has:
            raise TrainingError(
                f"the prefix to start from, {settings.init!r}, has {name} {has!r}, and the settings "
                f"say {wanted!r}; leave {name} out, or give {has!r}"
            )
    if found.meta.combination == "control":
        raise TrainingError(
            f"the prefix to start from, {settings.init!r}, has pieces for values of attributes; save ",
            "what it selects, prefix.select(...), and start from that",
            command="a part of it, with foreword compose 'task[attribute=value]', and start from that",
        )
    pieces = found.meta.pieces
    if found.meta.combination != "attention" or any(piece.strength != 1 for piece in pieces):
        raise TrainingError(
            f"the prefix to start from, {settings.init!r}, has pieces at strengths of their own, and "
            "training starts from one at full strength; save it at that",
            ", or save one of its pieces (prefix.split())",
            command="",
        )
    if settings.parameterization == "gated" and found.meta.softmax == "own":
        raise TrainingError(
            f"the prefix to start from, {settings.init!r}, was gated already, and new gates of zero "
            "would take away what it learned; train it on with parameterization 'direct'"
        )
