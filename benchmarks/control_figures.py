"""Tables and curves of the points that `control.py` keeps."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from attributes import SEEDS, Domain
from common import Results, Row

TWO_SIDED = {"against", "between", "logits between"}
"""Dials whose negative side is the positive one of the opposite attribute."""
RESAMPLES = 1000
COLORS = ("#1f4e79", "#b3541e", "#3d7a4e", "#7a5195", "#9db4c8", "#c2a03a", "#555555")
LARGEST = 5000
"""Perplexity beyond which the picture does not follow."""


@dataclass(frozen=True)
class Point:
    """What was measured at one strength, over attributes and seeds.

    Attributes:
        strength: The dial's.
        share: Mean share of texts with the attribute.
        low: Lower end of its interval of 95%, over seeds and texts.
        high: Upper end.
        perplexity: Median over seeds and attributes.
        distinct: Mean of distinct-2.
        words: Mean words of a text.
        loops: Share of texts that repeat words in a row.
    """

    strength: float
    share: float
    low: float
    high: float
    perplexity: float
    distinct: float
    words: float
    loops: float


def point(strength: float, lines: Sequence[Sequence[Row]]) -> Point:
    """Lines by attribute, one for each seed, as a point."""
    low, high = interval(lines)
    every = [line for of_one in lines for line in of_one]
    return Point(
        strength,
        _mean([statistics.mean(line["share"] for line in of_one) for of_one in lines]),
        low,
        high,
        statistics.median(line["perplexity"] for line in every),
        _mean([line["distinct_2"] for line in every]),
        _mean([line["words"] for line in every]),
        _mean([line["loops"] for line in every]),
    )


def interval(lines: Sequence[Sequence[Row]]) -> tuple[float, float]:
    """95% of what comes out if seeds and, within a seed, texts are drawn again (bootstrap)."""
    draw = numpy.random.default_rng(0)
    return middle(_mean_redrawn(lines, draw) for _ in range(RESAMPLES))


def interval_of_ratio(
    lines: Sequence[Sequence[Row]], others: Sequence[Sequence[Row]]
) -> tuple[float, float]:
    """As `interval`, of the mean of some lines over that of others."""
    draw = numpy.random.default_rng(0)
    pairs = ((_mean_redrawn(lines, draw), _mean_redrawn(others, draw)) for _ in range(RESAMPLES))
    return middle(one / other for one, other in pairs)


def middle(values: Iterable[float]) -> tuple[float, float]:
    """The ends of the 95% in the middle."""
    ordered = sorted(values)
    return ordered[round(0.025 * len(ordered))], ordered[round(0.975 * len(ordered)) - 1]


def _mean_redrawn(lines: Sequence[Sequence[Row]], draw: numpy.random.Generator) -> float:
    return _mean([_mean([_redrawn(of_one, draw) for _ in of_one]) for of_one in lines])


def _redrawn(lines: Sequence[Row], draw: numpy.random.Generator) -> float:
    """The share of one of the seeds, of as many texts as it has, each with its share's chance."""
    line = lines[int(draw.integers(len(lines)))]
    return float(draw.binomial(line["count"], line["share"]) / line["count"])


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)


def curve(
    results: Results,
    domain: Domain,
    dial: str,
    name_at: Callable[[str, float], str],
    strengths: Sequence[float],
    attributes: Sequence[str] = (),
) -> list[Point]:
    """The points of a dial; below 0 the opposite's where the dial has two sides.

    Args:
        results: What is known.
        domain: The texts.
        dial: Its name.
        name_at: The name of its points.
        strengths: Where it was set.
        attributes: Those whose mean is taken, by default both; of seeds that all of them have.
    """
    own = attributes or domain.attributes
    found = []
    sides = [-one for one in strengths if one > 0] if dial in TWO_SIDED else []
    for strength in sorted({*strengths, *sides}):
        name = name_at(dial, abs(strength) if strength in sides else strength)
        lines = lines_of(
            results,
            domain,
            [domain.opposite(one) if strength in sides else one for one in own],
            name,
        )
        if lines:
            turned = [[_turned(line) for line in of_one] for of_one in lines]
            found.append(point(strength, turned if strength in sides else lines))
    return found


def lines_of(
    results: Results, domain: Domain, attributes: Sequence[str], name: str
) -> list[list[Row]]:
    """By attribute the lines of a point, one for each seed that all have; none without any."""
    found = [
        {s: results.get(f"{domain.name} {one} {name} seed {s}") for s in SEEDS}
        for one in attributes
    ]
    seeds = [seed for seed in SEEDS if all(of_one[seed] is not None for of_one in found)]
    lines = [[line for s in seeds if (line := of_one[s]) is not None] for of_one in found]
    return lines if seeds else []


def _turned(line: Row) -> Row:
    """The line as the opposite attribute sees it; empty texts are nobody's."""
    return {**line, "share": 1 - line["share"] - line["empty"] / line["count"]}


def beside(results: Results, domain: Domain, names: Sequence[str]) -> list[Row]:
    """Figures of points that are on no dial, and of real rows, by attribute."""
    made = []
    for attribute in domain.attributes:
        known = {name: lines_of(results, domain, [attribute], name) for name in names}
        real = results.get(f"{domain.name} {attribute} real")
        known["real rows"] = [] if real is None else [[real]]
        made += [
            {
                "attribute": attribute,
                "texts": name,
                **_cells(point(0, lines)),
                "seeds": len(lines[0]),
            }
            for name, lines in known.items()
            if lines
        ]
    return made


def _cells(one: Point) -> Row:
    return {
        "share": f"{one.share:.2f} ({one.low:.2f}-{one.high:.2f})",
        "perplexity": f"{one.perplexity:.0f}",
        "distinct-2": f"{one.distinct:.2f}",
        "loops": f"{one.loops:.2f}",
        "words": f"{one.words:.1f}",
    }


def real_rows(results: Results, domain: Domain) -> Row:
    """Figures of real rows, means over both attributes."""
    lines = [results.get(f"{domain.name} {one} real") for one in domain.attributes]
    known = [line for line in lines if line is not None]
    return {
        name: _mean(line[name] for line in known)
        for name in ("share", "perplexity", "distinct_2", "loops")
    }


def rows_of(curves: dict[str, list[Point]], shown: str) -> list[Row]:
    """A table of curves: dials down, strengths across."""
    strengths = sorted({one.strength for points in curves.values() for one in points})
    return [
        {
            "dial": dial,
            **{f"{at:g}": _shown(points, at, shown) for at in strengths},
        }
        for dial, points in curves.items()
        if points
    ]


def _shown(points: Sequence[Point], strength: float, shown: str) -> str:
    one = next((point for point in points if point.strength == strength), None)
    if one is None:
        return "-"
    if shown == "share":
        return f"{one.share:.2f} ({one.low:.2f}-{one.high:.2f})"
    if shown == "perplexity":
        return f"{one.perplexity:.0f}"
    return f"{one.distinct:.2f}" if shown == "distinct-2" else f"{one.loops:.2f}"


def picture(
    curves: dict[str, dict[str, list[Point]]],
    each: dict[str, dict[str, list[Point]]],
    real: dict[str, Row],
    path: Path,
) -> None:
    """Share, perplexity, distinct-2 and loops over strength, a row of panels for each domain.

    Args:
        curves: By domain and dial, means over both attributes.
        each: By domain and attribute, of the first dial.
        real: By domain the figures of real rows.
        path: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.7 * len(curves)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), 4, squeeze=False)
    for row, (domain, dials) in zip(panels, curves.items(), strict=True):
        for color, (dial, points) in zip(COLORS, dials.items(), strict=False):
            _draw(row, points, color, dial)
        for style, (attribute, points) in zip((":", "--"), each[domain].items(), strict=True):
            at, shares = zip(*((point.strength, point.share) for point in points), strict=True)
            row[0].plot(at, shares, style, color=COLORS[0], lw=1, label=f"{attribute} alone")
        _finish(row, domain, real[domain])
        row[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def _draw(row: Sequence[Any], points: Sequence[Point], color: str, label: str) -> None:
    at = [point.strength for point in points]
    row[0].plot(at, [point.share for point in points], "o-", color=color, label=label, ms=3)
    row[0].fill_between(
        at, [p.low for p in points], [p.high for p in points], color=color, alpha=0.12, lw=0
    )
    row[1].plot(at, [min(p.perplexity, LARGEST) for p in points], "o-", color=color, ms=3)
    row[2].plot(at, [point.distinct for point in points], "o-", color=color, ms=3)
    row[3].plot(at, [point.loops for point in points], "o-", color=color, ms=3)


def _finish(row: Sequence[Any], domain: str, real: Row) -> None:
    titles = {
        "share": f"{domain}: share with the attribute",
        "perplexity": "perplexity, frozen model",
        "distinct_2": "distinct-2",
        "loops": "share of texts that loop",
    }
    for axes, (name, title) in zip(row, titles.items(), strict=True):
        axes.axhline(real[name], color="#777777", ls="--", lw=1, label="real rows")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("strength")
        axes.grid(alpha=0.3)
    row[0].set_ylim(0, 1.02)
    row[1].set_yscale("log")
