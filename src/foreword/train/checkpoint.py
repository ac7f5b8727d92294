"""Checkpoints that are whole or absent, and the choice of the one to resume from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from foreword.files import sync_folder, write_whole

MANIFEST = "manifest.json"
IDENTITY = "identity"
"""File of a checkpoint that says whose it is."""
_NAME = re.compile(r"checkpoint-(\d+)")


def publish(aside: Path, place: Path) -> None:
    """Make a checkpoint written to `aside` appear at `place`, complete and on disk.

    A manifest with each file's digest goes in last; `newest` believes nothing without it. What is at
    `place` is moved away first, into the folder of `aside`, which the caller clears.
    """
    digests = {}
    for file in sorted(aside.iterdir()):
        with file.open("rb") as opened:
            digests[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
            os.fsync(opened.fileno())
    write_whole(aside / MANIFEST, json.dumps(digests, indent=1).encode())
    if place.exists():
        os.rename(place, aside.with_name(f"{place.name}.old"))
    os.replace(aside, place)
    sync_folder(place.parent)


def newest(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None; damaged ones are passed over."""
    for _, place in sorted(_numbered(folder), reverse=True):
        if is_whole(place):
            return place
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether every file of the manifest is there, unaltered."""
    try:
        digests = json.loads((checkpoint / MANIFEST).read_text())
        for name, expected in digests.items():
            with (checkpoint / name).open("rb") as opened:
                if hashlib.file_digest(opened, "sha256").hexdigest() != expected:
                    return False
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return bool(digests)


def drop_unusable(folder: Path, identity: str | None) -> None:
    """Delete the checkpoints that are not whole, or another run's, lest they count among the newest."""
    for _, place in _numbered(folder):
        if not is_whole(place) or identity_of(place) != identity:
            shutil.rmtree(place, ignore_errors=True)


def identity_of(checkpoint: Path) -> str | None:
    """The identity of the run that wrote a checkpoint, or None if that had none."""
    try:
        return (checkpoint / IDENTITY).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""  # nobody's


def keep_newest(folder: Path, count: int) -> None:
    """Delete all checkpoints but the `count` with the most steps."""
    for _, place in sorted(_numbered(folder), reverse=True)[count:]:
        shutil.rmtree(place, ignore_errors=True)


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(place.name), place) for place in folder.iterdir())
    return [(int(match[1]), place) for match, place in matches if match]
