"""How many processes train together, and which of them this is, by what their launcher says."""

from __future__ import annotations

import os


def count() -> int:
    """Number of processes that were started together, by what the launcher says; 1 without one."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def index() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0
