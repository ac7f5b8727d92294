"""Learning curves: training losses by step, smoothed means over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from foreword.compare.axes import Axis, fitted
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
from foreword.compare.figures import NLL, digits, written
from foreword.compare.labels import shortened, spaced, width
from foreword.compare.markup import Markup, element, joined
from foreword.compare.result import Comparison, Side

_MOST_POINTS = 200
"""Of a curve."""

_NAMES = 150.0
"""Room for the names beside the curves, at most."""

Curve = list[tuple[int, float]]
"""Steps and losses."""


def curves_plot(comparison: Comparison, name: str) -> Markup | None:
    """Training losses by step; None where nothing was trained.

    Args:
        comparison: What was measured.
        name: Id of the picture.
    """
    curves = [
        (series, points)
        for series in series_of(comparison)
        if series.side.failed is None and (points := curve(series.side))
    ]
    if not curves:
        return None
    right = RIGHT - min(_NAMES, max(width(series.name) for series, _ in curves)) - 12
    up = fitted([loss for _, points in curves for _, loss in points], BOTTOM, TOP)
    across = Axis(0.0, max(points[-1][0] for _, points in curves) or 1.0, left_of(up), right)
    placed = [[(across.at(step), up.at(loss)) for step, loss in points] for _, points in curves]
    heights = spaced([points[-1][1] for points in placed], TOP, BOTTOM)
    ends = (f"{series.name} ends at {written(NLL, points[-1][1])}" for series, points in curves)
    return picture(
        name,
        "Training loss by step",
        "; ".join(ends),
        frame(across, up, digits, "Step", "Training loss, lower is better"),
        *(
            _drawn(series, points, right + 12, height)
            for (series, _), points, height in zip(curves, placed, heights, strict=True)
        ),
    )


def curve(side: Side) -> Curve:
    """Steps and losses: means over seeds, then moving means over a twentieth of the steps, thinned."""
    by_step: dict[int, list[float]] = {}
    for seed in side.seeds:
        for step, loss in seed.history:
            if math.isfinite(loss):
                by_step.setdefault(step, []).append(loss)
    steps = sorted(by_step)
    losses = _smoothed([statistics.fmean(by_step[step]) for step in steps])
    every = max(1, math.ceil(len(steps) / _MOST_POINTS))
    last = [(steps[-1], losses[-1])] if (len(steps) - 1) % every else []
    return [*list(zip(steps, losses, strict=True))[::every], *last]


def _smoothed(losses: Sequence[float]) -> list[float]:
    """Moving means, over fewer losses at the two ends."""
    half = len(losses) // 40
    return [
        statistics.fmean(losses[max(0, index - half) : index + half + 1])
        for index in range(len(losses))
    ]


def _drawn(
    series: Series, points: Sequence[tuple[float, float]], left: float, height: float
) -> Markup:
    """A curve, its name at the right, and a line from its end to the name."""
    x, y = points[-1]
    way = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return joined(
        element(
            "path", class_=f"curve {series.style}", d=f"M{way}", stroke_dasharray=series.dashes
        ),
        line(x + 1, y, left - 2, height, style="lead"),
        text(shortened(series.name, _NAMES), left, height + 4, "name"),
    )
