"""`Axis`: where values lie in a picture, and its ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from foreword.compare.figures import MINUS

LEAST_FACTOR = 4.0
"""Between the ends of a logarithmic axis, so that nearly equal values are near each other."""

WIDE = 30.0
"""Factor between values from which on an axis that begins at zero would hide the small ones."""

_FINE, _COARSE = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0)
"""Ticks of a logarithmic axis within a power of ten."""

MARGIN = 0.08
"""Of an axis beyond its values, at each end."""


@dataclass(frozen=True)
class Axis:
    """A line of values.

    Attributes:
        low: Value at the start.
        high: Value at the end.
        start: Coordinate of the start.
        end: Coordinate of the end.
        log: Whether equal distances are equal factors.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Coordinate of a value."""
        low, high, here = self.low, self.high, value
        if self.log:
            low, high, here = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values between the ends, from three to about seven."""
        if self.log and len(found := self._powers()) >= 3:
            return found
        step = round_step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [float(f"{index * step:.12g}") for index in range(first, last + 1)]

    def _powers(self) -> list[float]:
        """Powers of ten: with values between them where they are few, every so many where not."""
        low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        every = max(1, math.ceil((high - low) / 7))
        factor = self.high / self.low
        parts = _FINE if factor <= 20 else _COARSE if factor <= 1000 else (1.0,)
        found = (part * 10.0**power for power in range(low, high + 1, every) for part in parts)
        return [value for value in found if self.low <= value <= self.high]


def fitted(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis as long as the values need, for differences between them."""
    known = list(values)
    low, high = min(known), max(known)
    reach = (high - low) * MARGIN or abs(low) * 0.1 or 1.0
    return Axis(low - reach, high + reach, start, end)


def from_zero(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis from zero, for amounts; logarithmic where the values are far from each other."""
    known = list(values)
    low, high = min(known), max(known)
    if low > 0 and high / low >= WIDE:
        return logarithmic(known, start, end)
    return Axis(0.0, high * (1 + MARGIN) or 1.0, start, end)


def logarithmic(values: Iterable[float], start: float, end: float) -> Axis:
    """An axis for factors between positive values."""
    known = list(values)
    low, high = min(known), max(known)
    middle, factor = math.sqrt(low) * math.sqrt(high), max(high / low, LEAST_FACTOR)
    reach = math.sqrt(factor) * factor**MARGIN
    return Axis(middle / reach, middle * reach, start, end, log=True)


def round_step(length: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, of which there are 3 to 7 in a length."""
    power = 10.0 ** math.floor(math.log10(length / 7))
    return next(part * power for part in (1.0, 2.0, 5.0, 10.0) if length / (part * power) <= 7)


def decimals(axis: Axis) -> Callable[[float], str]:
    """How ticks of a linear axis are written: with as many decimals or digits as tell them apart."""
    step = round_step(axis.high - axis.low)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    largest = max(abs(axis.low), abs(axis.high))
    form = f"{{:,.{places}f}}"
    if places > 6 or largest >= 1e7:
        apart = math.floor(math.log10(largest)) - math.floor(math.log10(step) + 1e-9)
        form = f"{{:.{apart + 1}g}}"
    return lambda value: form.format(value).replace("-", MINUS)
