"""Finished runs on the disk, a line each: a comparison that was killed goes on behind them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreword.errors import StoreError
from foreword.files import refused
from foreword.prefix import canonical_json


class Runs:
    """Figures by what gave them, in a .jsonl file.

    A line that was cut off, as by a full disk, is passed over: that run is made again.

    Args:
        path: The file, made if it is not there.

    Raises:
        StoreError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"cannot read {path}: {error}; choose another folder") from error
        for line in lines:
            try:
                found = json.loads(line)
                self._known[found["run"]] = found["figures"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue

    def find(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """The figures of a run, if it was made."""
        return self._known.get(key_of(run))

    def keep(self, run: Mapping[str, Any], figures: Mapping[str, Any]) -> dict[str, Any]:
        """Keep the figures of a run; they are on the disk when this returns.

        Raises:
            StoreError: The disk refuses.
        """
        key, made = key_of(run), dict(figures)
        line = json.dumps({"run": key, "of": dict(run), "figures": made}) + "\n"
        try:
            with self.path.open("ab") as file:
                if file.tell() and not self._ends_whole():
                    file.write(b"\n")
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise refused(self.path, error) from error
        self._known[key] = made
        return made

    def _ends_whole(self) -> bool:
        """Whether the file ends with its last line's end."""
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def key_of(run: Mapping[str, Any]) -> str:
    """What a run is known by: the digest of all that decides what it gives."""
    return hashlib.sha256(canonical_json(dict(run))).hexdigest()
