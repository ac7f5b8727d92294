"""Versions of the file format: what each can say, and which one a prefix is written in."""

from __future__ import annotations

import re
import reprlib
from typing import Any, NamedTuple

from foreword.description import SOFTMAX
from foreword.errors import CorruptFile, UnsupportedVersion


class Version(NamedTuple):
    """What a version of the format says of a prefix, beyond what all of them do.

    Attributes:
        name: The version.
        softmaxes: Softmaxes of the prefixes that it is for.
        says_softmax: Whether it spells that out; else it is the only one.
        has_head: Whether they carry a head.
        says_inputs: Whether it says what a head's inputs are, and is for those alone that need it said.
        later: Whether the heads are those of `LATER` tasks; of those that give numbers it says on which
            scale.
        says_pieces: Whether it says which pieces they have, and is for those alone that have some. It
            then is for those with any head and for those with none, and says that there is none.
    """

    name: str
    softmaxes: tuple[str, ...]
    says_softmax: bool
    has_head: bool
    says_inputs: bool = False
    later: bool = False
    says_pieces: bool = False


TABLE = (
    Version("1", ("joint",), says_softmax=False, has_head=False),
    Version("2", ("own",), says_softmax=True, has_head=False),
    Version("3", SOFTMAX, says_softmax=True, has_head=True),
    Version("4", SOFTMAX, says_softmax=True, has_head=True, says_inputs=True),
    Version("5", SOFTMAX, says_softmax=True, has_head=True, says_inputs=True, later=True),
    Version("6", SOFTMAX, True, True, says_inputs=True, later=True, says_pieces=True),
)
"""Versions that are read; a prefix is written as the first that can say it."""
VERSIONS = tuple(version.name for version in TABLE)

_NEWER = re.compile(r"[7-9]|[1-9][0-9]{1,5}")


def known(name: Any) -> Version:
    """The version that a file names.

    Raises:
        UnsupportedVersion: It is newer than this Foreword.
        CorruptFile: There is no such version.
    """
    if name in VERSIONS:
        return TABLE[VERSIONS.index(name)]
    if isinstance(name, str) and _NEWER.fullmatch(name):
        raise UnsupportedVersion(
            f"it has format version {name}; this Foreword reads versions "
            f"{', '.join(VERSIONS)}. Update Foreword"
        )
    raise CorruptFile(f"its format version is {reprlib.repr(name)}, expected one of {VERSIONS}")
