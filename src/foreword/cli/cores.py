"""Whether other programs use the machine's cores, which makes threads that wait for each other slow.

Threads wait for each other after every product. One that shares its core with another program holds up
all, and a step takes ten times as long instead of twice (benchmarks/LOG.md).
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

from foreword.cli.console import note

STATISTICS = Path("/proc/stat")
"""Where Linux counts what each core did, in hundredths of a second."""

LOOK = 0.25
"""Seconds that cores are watched for."""

IDLE = slice(3, 5)
"""Of a core's counts, those of doing nothing and of waiting for a disk."""

REMEDY = "OMP_NUM_THREADS=1 (or as many as are free) in the environment is faster then"

STEPS = 5
"""Steps whose mean is compared."""

SLOWER = 5.0
"""How many times as long steps must take as at their best, before it is said."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def others() -> float | None:
    """Cores that are busy while this process does nothing; None where that cannot be told."""
    try:
        before = _counts()
        time.sleep(LOOK)
        after = _counts()
    except (OSError, ValueError):
        return None
    spent = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in zip(before, after, strict=True)
    ]
    return sum(1 - sum(one[IDLE]) / max(1, sum(one)) for one in spent)


def _counts() -> list[list[int]]:
    """Counts of each core that this process may use."""
    own = os.sched_getaffinity(0)
    lines = [line.split() for line in STATISTICS.read_text(encoding="ascii").splitlines()]
    named = {f"cpu{number}" for number in own}
    return [[int(count) for count in counts] for name, *counts in lines if name in named]


def warn_of_others() -> None:
    """Say so where other programs leave too few cores for the threads that there are."""
    if "OMP_NUM_THREADS" in os.environ or cores() < 2:
        return
    busy = others()
    if busy is not None and busy > 0.5:
        note(
            f"other programs use {busy:.1f} of the {cores()} cores, and threads that wait for each "
            f"other become slow: {REMEDY}"
        )


class Pacemaker:
    """Tells once when steps have become many times slower than they were."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._recent: deque[float] = deque(maxlen=STEPS)
        self._best: float | None = None
        self._told = False

    def step(self, now: float | None = None) -> None:
        """Note that a step has ended, by a clock in seconds."""
        now = time.perf_counter() if now is None else now
        if self._last is not None:
            self._recent.append(now - self._last)
        self._last = now
        if len(self._recent) < STEPS or self._told:
            return
        mean = sum(self._recent) / STEPS
        self._best = mean if self._best is None else min(self._best, mean)
        if mean > SLOWER * self._best:
            self._told = True
            note(
                f"steps take {mean:.1f} s now, where they took {self._best:.1f} s: if other programs "
                f"use this machine's cores, {REMEDY}"
            )
