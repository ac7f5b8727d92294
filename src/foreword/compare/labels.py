"""Names beside the points of a picture, placed so that none covers another."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINE = 14.0
"""Height of a line of text; its letters are 12 high."""

_LETTER = 7.2
"""Width of a letter at most, on average: pages take the reader's own typeface."""

_GAP = 8.0
"""Between a point and the name beside it."""

_LED = 12.0
"""Distance of a name from its point from which on a line leads to it."""

_AIR = 3.0
"""Between names, at their sides."""

_MARKER = 7.0
"""From a point to the edge of its marker."""

_WORDS_COST, _POINT_COST, _DOUBT_COST, _BAR_COST = 10_000.0, 300.0, 40.0, 25.0
"""What covering words, a point and a bar, and being nearer to another point, weigh in distance."""


@dataclass(frozen=True)
class Box:
    """A rectangle; y runs downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether they have more than an edge in common."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: Box) -> bool:
        """Whether the other is wholly inside."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest place of it."""
        return math.hypot(
            max(self.left - x, 0.0, x - self.right), max(self.top - y, 0.0, y - self.bottom)
        )


@dataclass(frozen=True)
class Label:
    """A name in its place.

    Attributes:
        text: The name.
        box: Its place.
        point: What it is the name of.
        led: Whether a line shall lead to it, as it is far away or another point is nearer.
    """

    text: str
    box: Box
    point: tuple[float, float]
    led: bool

    @property
    def anchor(self) -> tuple[float, str]:
        """Coordinate and name of the end of the text that faces the point: typefaces differ in width."""
        x, _ = self.point
        if self.box.right <= x:
            return self.box.right, "end"
        if self.box.left >= x:
            return self.box.left, "start"
        return (self.box.left + self.box.right) / 2, "middle"

    @property
    def lead(self) -> tuple[float, float]:
        """Where a line from the point meets it."""
        (x, y), box = self.point, self.box
        return min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)


def width(text: str) -> float:
    """Room that a text of 12 points needs, in no special typeface."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return _LETTER * (len(text) - wide) + 12.0 * wide


def shortened(text: str, most: float) -> str:
    """A text, cut so that it is no wider."""
    if width(text) <= most:
        return text
    while text and width(text) + width("…") > most:
        text = text[:-1]
    return text.rstrip() + "…"


def place(
    points: Sequence[tuple[float, float, str]],
    area: Box,
    texts: Sequence[Box],
    bars: Sequence[Box],
) -> list[Label]:
    """Names of points, each as near to its own as there is room.

    Where nothing is free, a name rather covers a bar than a point, and a point than a text.

    Args:
        points: Coordinates and the name of each.
        area: Where names may be; longer ones are cut.
        texts: Words that are there.
        bars: What else is drawn there.
    """
    words, found = list(texts), []
    for index, (x, y, name) in enumerate(points):
        text = shortened(name, area.right - area.left)
        others = [other for number, (*other, _) in enumerate(points) if number != index]
        beside = [box for box in _beside(x, y, text) if area.holds(box)]
        box = min(
            [*beside, *_anywhere(text, area)],
            key=lambda box: (
                _cost(box, (x, y), others, words, bars) + (0.0 if box in beside else _GAP)
            ),
        )
        words.append(Box(box.left - _AIR, box.top, box.right + _AIR, box.bottom))
        own = box.distance(x, y)
        found.append(Label(text, box, (x, y), own > _LED or _is_doubtful(box, own, others)))
    return found


def _cost(
    box: Box,
    point: tuple[float, float],
    others: Sequence[Sequence[float]],
    words: Sequence[Box],
    bars: Sequence[Box],
) -> float:
    """How bad a place is: its distance, and by how much more distance what it covers is avoided."""
    own = box.distance(*point)
    covered = sum(box.distance(*other) < _MARKER for other in (point, *others))
    return (
        own
        + _WORDS_COST * sum(map(box.overlaps, words))
        + _POINT_COST * covered
        + _DOUBT_COST * _is_doubtful(box, own, others)
        + _BAR_COST * sum(map(box.overlaps, bars))
    )


def _is_doubtful(box: Box, own: float, others: Sequence[Sequence[float]]) -> bool:
    """Whether another point is as near to a name as its own."""
    return any(box.distance(*other) <= own for other in others)


def spaced(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Heights moved apart as little as needed for a line each, in their order, from low to high."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    gap = min(LINE, (high - low) / max(1, len(heights) - 1))
    moved = list(heights)
    floor = low
    for index in order:
        moved[index] = floor = max(heights[index], floor)
        floor += gap
    ceiling = high
    for index in reversed(order):
        moved[index] = ceiling = min(moved[index], ceiling)
        ceiling -= gap
    return moved


def _beside(x: float, y: float, text: str) -> Iterator[Box]:
    """Places for a name beside its point, above and below it."""
    long = width(text)
    for left, top in (
        (x + _GAP, y - LINE / 2),
        (x - _GAP - long, y - LINE / 2),
        (x - long / 2, y - _GAP - LINE),
        (x - long / 2, y + _GAP),
        (x + _GAP, y - _GAP - LINE),
        (x + _GAP, y + _GAP),
        (x - _GAP - long, y - _GAP - LINE),
        (x - _GAP - long, y + _GAP),
    ):
        yield Box(left, top, left + long, top + LINE)


def _anywhere(text: str, area: Box) -> Iterator[Box]:
    """Places for a name all over the area."""
    long = width(text)
    for row in range(int((area.bottom - area.top) // LINE)):
        for column in range(int((area.right - area.left - long) // 12) + 1):
            left, top = area.left + 12 * column, area.top + LINE * row
            yield Box(left, top, left + long, top + LINE)
