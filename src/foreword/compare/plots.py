"""Quality against a cost: each method a point with error bars, untrained ones horizontal lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from foreword.compare.axes import Axis, fitted, from_zero, logarithmic
from foreword.compare.drawing import (
    BOTTOM,
    RIGHT,
    TOP,
    Series,
    frame,
    left_of,
    line,
    picture,
    series_of,
    text,
)
from foreword.compare.figures import (
    Spread,
    digits,
    figure,
    peak,
    seconds,
    short_count,
    size,
    spread_written,
    written,
)
from foreword.compare.labels import LINE, Box, Label, place, shortened, width
from foreword.compare.markup import Markup, joined
from foreword.compare.result import Comparison, Metric, Side

_REACH = 1.5
"""How far from the points, in lengths of their range, a line for reference still has its true height."""


@dataclass(frozen=True)
class Cost:
    """What quality is shown against.

    Attributes:
        name: What it is.
        of: It, by method.
        form: How it is written.
        axis: Makes its axis.
    """

    name: str
    of: Callable[[Side], Spread | None]
    form: Callable[[float], str]
    axis: Callable[[Sequence[float], float, float], Axis]


def _trained(side: Side) -> Spread | None:
    """The number of trained parameters, which no seed changes."""
    return Spread(float(side.trained))


COSTS = (
    Cost("Trained parameters", _trained, short_count, logarithmic),
    Cost("Seconds of training", seconds, digits, from_zero),
    Cost("Peak memory of training", peak, size, from_zero),
)


@dataclass(frozen=True)
class Point:
    """A method that was trained.

    Attributes:
        series: The method.
        cost: What it costs.
        quality: The figure that decides.
    """

    series: Series
    cost: Spread
    quality: Spread


def points_of(comparison: Comparison, cost: Cost) -> list[Point]:
    """The trained methods that have both figures."""
    return [
        Point(series, paid, quality)
        for series in series_of(comparison)
        if series.side.trained and series.side.failed is None
        if (paid := cost.of(series.side))
        and (quality := figure(series.side, comparison.metric.name))
    ]


def quality_plot(comparison: Comparison, cost: Cost, name: str) -> Markup | None:
    """Quality against a cost; None where no trained method has both.

    Args:
        comparison: What was measured.
        cost: What it is shown against.
        name: Id of the picture.
    """
    points = points_of(comparison, cost)
    if not points:
        return None
    metric, references = comparison.metric, _references(comparison)
    across, up = _axes(points, references, cost)
    lines = [_Reference(*reference, across, up) for reference in references]
    places = [(across.at(point.cost.mean), up.at(point.quality.mean)) for point in points]
    bars = [bar for point in points for bar in _bars(point, across, up)]
    texts = _places(lines, metric)
    names = [(x, y, point.series.name) for (x, y), point in zip(places, points, strict=True)]
    area = Box(across.start + 2, TOP + 1, RIGHT, BOTTOM - 1)
    labels = place(names, area, texts, [_around(bar) for bar in bars])
    return picture(
        name,
        f"{metric.label} against {cost.name[0].lower()}{cost.name[1:]}",
        _described(points, references, metric, cost),
        frame(across, up, cost.form, cost.name, f"{metric.label}, {better(metric)}"),
        *(one.drawn() for one in lines),
        *(line(*bar, style="error") for bar in bars),
        *(
            text(one.words(metric), box.left, box.bottom - 3, "note")
            for one, box in zip(lines, texts, strict=True)
        ),
        *(_named(*named) for named in zip(points, places, labels, strict=True)),
    )


def better(metric: Metric) -> str:
    """Which way is better, in words."""
    return "higher is better" if metric.higher else "lower is better"


def _references(comparison: Comparison) -> list[tuple[Series, float]]:
    """The methods that are not trained, and their quality."""
    return [
        (series, quality.mean)
        for series in series_of(comparison)
        if not series.side.trained and series.side.failed is None
        if (quality := figure(series.side, comparison.metric.name))
    ]


def _axes(
    points: Sequence[Point], references: Sequence[tuple[Series, float]], cost: Cost
) -> tuple[Axis, Axis]:
    """Axes for the points with their bars, and for references that are not far from them.

    A frozen model that is far worse would press all methods into one line.
    """
    paid = [point.cost.mean for point in points]
    paid += [end for point in points for end in point.cost.ends if end > 0]
    ends = [end for point in points for end in point.quality.ends]
    low, high = min(ends), max(ends)
    reach = _REACH * (high - low) or math.inf
    near = [mean for _, mean in references if low - reach <= mean <= high + reach]
    up = fitted([*ends, *near], BOTTOM, TOP)
    return cost.axis(paid, left_of(up), RIGHT), up


@dataclass(frozen=True)
class _Reference:
    """The line of a method that is not trained; at the edge where it is too far for the axis.

    Attributes:
        series: The method.
        quality: Its quality.
        across: The horizontal axis.
        up: The vertical one.
    """

    series: Series
    quality: float
    across: Axis
    up: Axis

    @property
    def left(self) -> float:
        """Where its words begin."""
        return self.across.start + 4

    @property
    def height(self) -> float:
        """Where it is drawn."""
        return self.up.at(min(max(self.quality, self.up.low), self.up.high))

    def words(self, metric: Metric) -> str:
        """Its name and quality, and where it would be if it is out of the picture."""
        mean, out = written(metric.form, self.quality), ""
        if not self.up.low <= self.quality <= self.up.high:
            out = f" ({'below' if self.quality < self.up.low else 'above'} the scale)"
        name = shortened(self.series.name, RIGHT - self.left - width(f" {mean}{out}"))
        return f"{name} {mean}{out}"

    def boxes(self, metric: Metric) -> Iterator[Box]:
        """Where its words may be: above the line, at the left or the right, below it, or higher."""
        long = width(self.words(metric))
        for rows in (1, 0, 2, 3, 4):
            top = self.height + 1 - rows * (LINE + 1)
            for left in (self.left, RIGHT - long):
                yield Box(left, top, left + long, top + LINE)

    def drawn(self) -> Markup:
        """The line."""
        return line(self.across.start, self.height, RIGHT, self.height, style="reference")


def _places(lines: Sequence[_Reference], metric: Metric) -> list[Box]:
    """Where the words of lines are, so that none covers another where there is room."""
    found: list[Box] = []
    for one in lines:
        inside = [box for box in one.boxes(metric) if box.top >= TOP and box.bottom <= BOTTOM]
        free = (box for box in inside if not any(map(box.overlaps, found)))
        found.append(next(free, inside[0]))
    return found


def _bars(point: Point, across: Axis, up: Axis) -> list[tuple[float, float, float, float]]:
    """Error bars from one deviation below to one above: of quality, and of the cost."""
    x, y = across.at(point.cost.mean), up.at(point.quality.mean)
    bars = []
    if point.quality.deviation:
        low, high = map(up.at, point.quality.ends)
        bars.append((x, low, x, high))
    if point.cost.deviation:
        least, most = point.cost.ends
        bars.append((across.at(max(least, across.low)), y, across.at(most), y))
    return bars


def _around(bar: tuple[float, float, float, float]) -> Box:
    """The room of an error bar."""
    x, y, to_x, to_y = bar
    return Box(min(x, to_x) - 2, min(y, to_y) - 2, max(x, to_x) + 2, max(y, to_y) + 2)


def _named(point: Point, at: tuple[float, float], label: Label) -> Markup:
    """A marker with its name, and a line between them where they are apart."""
    lead = [line(*at, *label.lead, style="lead")] if label.led else []
    x, anchor = label.anchor
    name = text(label.text, x, label.box.bottom - 3, "name", anchor)
    return joined(*lead, point.series.marker(*at), name)


def _described(
    points: Sequence[Point],
    references: Sequence[tuple[Series, float]],
    metric: Metric,
    cost: Cost,
) -> str:
    """All that the picture shows, in words."""
    said = [
        f"{point.series.name}: {spread_written(metric.form, point.quality)} at "
        f"{cost.form(point.cost.mean)}"
        for point in points
    ]
    said += [f"{series.name}: {written(metric.form, mean)}" for series, mean in references]
    return "; ".join(said)
