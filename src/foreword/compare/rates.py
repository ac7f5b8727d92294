"""The search for a learning rate: doubled or halved until the best lies between two that are worse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

FACTOR = 2.0
"""Between neighbouring rates."""

MOST = 8
"""Rates that are tried at most for one method and optimiser."""


class Best(NamedTuple):
    """The best of some rates.

    Attributes:
        rate: The rate.
        loss: Its loss on held-out rows.
        interior: Whether both of its neighbours were tried and are no better.
    """

    rate: float
    loss: float
    interior: bool


def next_rate(tried: Mapping[float, float], first: float) -> float | None:
    """The rate to try next, or None where the search is over.

    Every rate is the first one times a power of `FACTOR`. The neighbours of the best so far are tried,
    the larger one first, so that three are the least; a run that failed has an infinite loss.

    Args:
        tried: By rate the loss on held-out rows.
        first: The rate to begin with.
    """
    if not tried:
        return first
    if len(tried) >= MOST:
        return None
    steps = _steps(tried, first)
    best = min(steps, key=lambda step: (steps[step], step))
    if math.isinf(steps[best]):  # nothing but failures: too high, as far as anyone can tell
        return _rate(first, min(steps) - 1)
    for step in (best + 1, best - 1):
        if step not in steps:
            return _rate(first, step)
    return None


def best_rate(tried: Mapping[float, float], first: float) -> Best:
    """The best of the rates that were tried; of equals the lowest."""
    steps = _steps(tried, first)
    best = min(steps, key=lambda step: (steps[step], step))
    interior = best - 1 in steps and best + 1 in steps and math.isfinite(steps[best])
    return Best(_rate(first, best), steps[best], interior)


def _steps(tried: Mapping[float, float], first: float) -> dict[int, float]:
    """By power of the factor the loss; a loss that is not a number counts as infinite."""
    return {
        round(math.log(rate / first, FACTOR)): math.inf if math.isnan(loss) else loss
        for rate, loss in tried.items()
    }


def _rate(first: float, step: int) -> float:
    """A rate to three digits, as a command line has it."""
    return float(f"{first * FACTOR**step:.3g}")
