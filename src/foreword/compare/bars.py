"""Latencies as bars: what a method takes beyond the frozen model, by number of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.compare.axes import Axis, decimals
from foreword.compare.drawing import TOP, WIDTH, Series, line, picture, series_of, text
from foreword.compare.figures import RATIO, TIMES, ratios, rows_at_once, written
from foreword.compare.labels import shortened
from foreword.compare.markup import Markup, element, joined
from foreword.compare.result import Comparison

_LEFT, _RIGHT = 112.0, 400.0
"""Edges of the longest bars."""

_NAME, _BAR = 24.0, 16.0
"""Heights of a method's name and of a bar."""


@dataclass(frozen=True)
class Bar:
    """A bar.

    Attributes:
        series: The method.
        rows: How many rows went through at once.
        ratio: Time over that of the frozen model.
        merged: Whether the method was merged into the weights.
    """

    series: Series
    rows: int
    ratio: float
    merged: bool

    @property
    def name(self) -> str:
        """What stands beside it."""
        return f"{rows_at_once(self.rows)}{', merged' if self.merged else ''}"

    def drawn(self, across: Axis, top: float) -> Markup:
        """It, with its name and its figure."""
        start, end = sorted((across.at(1.0), across.at(self.ratio)))
        return joined(
            text(self.name, _LEFT - 8, top + 12, "tick", "end"),
            element(
                "rect",
                class_=f"bar {self.series.style}{' merged' if self.merged else ''}",
                x=start,
                y=top + 2,
                width=end - start,
                height=12,
            ),
            text(f"{written(RATIO, self.ratio)}{TIMES}", end + 6, top + 12, "tick"),
        )


def latency_plot(comparison: Comparison, phase: str, name: str) -> Markup | None:
    """Bars of what ``prefill`` or ``decode`` takes beyond the frozen model; None where it is not known.

    Args:
        comparison: What was measured.
        phase: Which of them.
        name: Id of the picture.
    """
    groups = [bars for series in series_of(comparison) if (bars := bars_of(series, phase))]
    if not groups:
        return None
    across = _axis([bar.ratio for bars in groups for bar in bars])
    tops = [
        TOP + _NAME * place + _BAR * sum(map(len, groups[:place])) for place in range(len(groups))
    ]
    bottom = tops[-1] + _NAME + _BAR * len(groups[-1])
    said = [
        f"{bar.series.name}, {bar.name}: {written(RATIO, bar.ratio)}"
        for bars in groups
        for bar in bars
    ]
    return picture(
        name,
        f"{phase.capitalize()}: time over that of the frozen model",
        "; ".join(said),
        _frame(across, bottom),
        line(across.at(1.0), TOP - 6, across.at(1.0), bottom, style="zero"),
        *(_group(bars, across, top) for bars, top in zip(groups, tops, strict=True)),
        height=bottom + 6,
    )


def bars_of(series: Series, phase: str) -> list[Bar]:
    """The bars of a method, merged ones beside the others of as many rows."""
    if series.side.failed is not None:
        return []
    bars = [
        Bar(series, rows, ratio, merged)
        for latency, merged in ((series.side.latency, False), (series.side.merged, True))
        for rows, ratio in ratios(latency, phase).items()
        if math.isfinite(ratio)
    ]
    return sorted(bars, key=lambda bar: (bar.rows, bar.merged))


def _axis(found: Sequence[float]) -> Axis:
    """From the least to the most, the frozen model's 1 among them."""
    low, high = min(1.0, *found), max(1.0, *found)
    return Axis(low, high if high > low else low + 0.1, _LEFT, _RIGHT)


def _frame(across: Axis, bottom: float) -> Markup:
    """Vertical lines, and their numbers above."""
    form = decimals(across)
    places = [(across.at(tick), f"{form(tick)}{TIMES}") for tick in across.ticks()]
    return joined(
        *(line(x, TOP - 6, x, bottom) for x, _ in places),
        *(text(words, x, TOP - 12, "tick", "middle") for x, words in places),
    )


def _group(bars: Sequence[Bar], across: Axis, top: float) -> Markup:
    """The name of a method, and below it its bars."""
    name = text(shortened(bars[0].series.name, WIDTH - 8), 4, top + 18, "name")
    drawn = (bar.drawn(across, top + _NAME + _BAR * row) for row, bar in enumerate(bars))
    return joined(name, *drawn)
