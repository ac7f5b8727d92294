"""What the pictures of a comparison have in common: methods as series, frames with ticks, texts.

Pictures are inline SVG. Coordinates are those of a viewBox, which the page stretches, and colours those
of the page's style. A method has the same colour, shape and dashes in all pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foreword.compare.axes import Axis, decimals
from foreword.compare.labels import width
from foreword.compare.markup import Markup, element, joined
from foreword.compare.result import Comparison, Side

WIDTH, HEIGHT = 460.0, 320.0
RIGHT, TOP, BOTTOM = 448.0, 34.0, 274.0
"""Edges of the area in which points and curves are; numbers at its left take what they need."""

COLOURS = 8
"""Of the page's style; a ninth method has the first one again, but is hollow."""

_SHAPES = (
    "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0Z",
    "M-4.6-4.6H4.6V4.6H-4.6Z",
    "M0-6L5.8 4.4H-5.8Z",
    "M0-6.4L6.4 0L0 6.4L-6.4 0Z",
    "M0 6L-5.8-4.4H5.8Z",
    "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "M-5.4-3.1L0-6.2L5.4-3.1V3.1L0 6.2L-5.4 3.1Z",
    "M-6-3.2L-3.2-6L0-2.8L3.2-6L6-3.2L2.8 0L6 3.2L3.2 6L0 2.8L-3.2 6L-6 3.2L-2.8 0Z",
)
_DASHES = (None, "7 3", "2 3", "9 3 2 3", "4 2", "12 3", "6 2 2 2 2 2", "1 2", "5 5")


@dataclass(frozen=True)
class Series:
    """A method as pictures have it.

    Attributes:
        side: The method.
        name: What it is called there.
        index: Its place among the methods, which gives colour, shape and dashes.
    """

    side: Side
    name: str
    index: int

    @property
    def style(self) -> str:
        """The classes of its colour."""
        return f"s{self.index % COLOURS}{' hollow' if self.index >= COLOURS else ''}"

    @property
    def dashes(self) -> str | None:
        """Of its curve; None of a whole line."""
        return _DASHES[self.index % len(_DASHES)]

    def marker(self, x: float, y: float) -> Markup:
        """Its shape at a place."""
        return element(
            "path",
            class_=f"mark {self.style}",
            d=_SHAPES[self.index % len(_SHAPES)],
            transform=f"translate({x:.1f} {y:.1f})",
        )


def series_of(comparison: Comparison) -> list[Series]:
    """The methods with names as short as tells them apart."""
    levels = list(zip(*(_names(side.label) for side in comparison.sides), strict=True))
    return [
        Series(side, _single(levels, index), index) for index, side in enumerate(comparison.sides)
    ]


def _names(label: str) -> tuple[str, str, str]:
    """The method alone; it and its size, which labels have last; the whole label."""
    first, *others = label.split(", ")
    return first, ", ".join([first, *others[-1:]]), label


def _single(levels: list[tuple[str, ...]], index: int) -> str:
    """The first of a method's names that no other has; the whole label if there is none."""
    names = (level[index] for level in levels if level.count(level[index]) == 1)
    return next(names, levels[-1][index])


def picture(
    name: str, title: str, description: str, *inside: Markup, height: float = HEIGHT
) -> Markup:
    """A picture.

    Args:
        name: Its id.
        title: What it shows.
        description: What there is to see, for those who cannot see it.
        inside: What is drawn.
        height: Of the viewBox.
    """
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *inside,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def left_of(up: Axis) -> float:
    """Where the area begins, so that the numbers of its vertical axis have room."""
    form = decimals(up)
    return max(width(form(tick)) for tick in up.ticks()) + 12


def frame(across: Axis, up: Axis, form: Callable[[float], str], below: str, above: str) -> Markup:
    """Lines and numbers of two axes.

    Args:
        across: The horizontal axis.
        up: The vertical one, which is linear.
        form: How numbers of the horizontal one are written.
        below: What the horizontal one is.
        above: What the vertical one is.
    """
    height = decimals(up)
    return joined(
        *(line(across.start, up.at(tick), across.end, up.at(tick)) for tick in up.ticks()),
        *(line(across.at(tick), up.start, across.at(tick), up.end) for tick in across.ticks()),
        *(
            text(height(tick), across.start - 6, up.at(tick) + 4, "tick", "end")
            for tick in up.ticks()
        ),
        *(
            text(form(tick), across.at(tick), up.start + 17, "tick", "middle")
            for tick in across.ticks()
        ),
        text(below, across.end, up.start + 37, "axis", "end"),
        text(above, 2, 14, "axis"),
    )


def text(words: str, x: float, y: float, style: str, anchor: str | None = None) -> Markup:
    """Words at a place."""
    return element("text", words, class_=style, x=x, y=y, text_anchor=anchor)


def line(x: float, y: float, to_x: float, to_y: float, style: str = "grid") -> Markup:
    """A straight line."""
    return element("path", class_=style, d=f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}")
