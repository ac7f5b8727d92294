"""Tables and the picture of the points that `composition.py` keeps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from attributes import SEEDS, SENTIMENT
from combination_ways import JOINT, WAYS
from combinations import TASKS
from common import Results, Row
from control_figures import interval, interval_of_ratio

REAL = "real rows"
"""Name of the points of rows that have both, and that nothing learned from."""
SHOWN = ("task", "attribute", "both")
COLORS = ("#9db4c8", "#c2a03a", "#1f4e79")


COMBINED = [f"{task.name} {one}" for task in TASKS for one in SENTIMENT.attributes]
"""What the combinations are called."""


def seeds_of(results: Results, way: str) -> list[int]:
    """The seeds that every combination was measured with."""
    return [s for s in SEEDS if all(f"{one} {way} seed {s}" in results for one in COMBINED)]


def lines_of(results: Results, way: str, seeds: Sequence[int] | None = None) -> list[list[Row]]:
    """The lines of a way, by combination one for each of some seeds, by default of all; or none."""
    wanted = seeds_of(results, way) if seeds is None else seeds
    return [[results[f"{one} {way} seed {s}"] for s in wanted] for one in COMBINED if wanted]


def mean(lines: Sequence[Sequence[Row]], name: str) -> float:
    """The mean of a figure over combinations and seeds."""
    found: float = statistics.mean(line[name] for of_one in lines for line in of_one)
    return found


def bounds(lines: Sequence[Sequence[Row]], name: str) -> tuple[float, float]:
    """The interval of 95% of that mean, over seeds and texts."""
    return interval([[{**line, "share": line[name]} for line in of_one] for of_one in lines])


def ways_rows(results: Results) -> list[Row]:
    """A row for each way that every combination was measured in."""
    found = ((way, seeds_of(results, way)) for way in (*WAYS, REAL))
    return [_way_row(way, lines_of(results, way), seeds) for way, seeds in found if seeds]


def _way_row(way: str, lines: Sequence[Sequence[Row]], seeds: Sequence[int]) -> Row:
    low, high = bounds(lines, "both")
    every = [line for of_one in lines for line in of_one]
    by_task = {
        f"{task.name}, both": f"{_mean_of(line['both'] for line in _of(every, task.name)):.2f}"
        for task in TASKS
    }
    return {
        "way": way,
        "passes": WAYS[way].passes if way in WAYS else "-",
        **{name: f"{mean(lines, name):.2f}" for name in SHOWN},
        "interval": f"{low:.2f}-{high:.2f}",
        **by_task,
        "perplexity": f"{statistics.median(line['perplexity'] for line in every):.0f}",
        "distinct-2": f"{mean(lines, 'distinct_2'):.2f}",
        "seeds": ", ".join(map(str, seeds)),
    }


def _of(lines: Sequence[Row], task: str) -> list[Row]:
    """The lines of a task's combinations."""
    return [line for line in lines if str(line["run"]).startswith(f"{task} ")]


def _mean_of(values: Iterable[float]) -> float:
    return statistics.mean(values)


def ratios_of(results: Results) -> list[Row]:
    """What each way keeps of the upper bound, over the seeds that both were measured with."""
    rows = []
    for way in WAYS:
        seeds = [s for s in seeds_of(results, way) if s in seeds_of(results, JOINT)]
        if not seeds or way == JOINT:
            continue
        own, bound = (_both(lines_of(results, one, seeds)) for one in (way, JOINT))
        kept = mean(own, "share") / mean(bound, "share")
        low, high = interval_of_ratio(own, bound)
        rows.append(
            {
                "way": way,
                "passes": WAYS[way].passes,
                "kept": f"{kept:.0%}",
                "interval": f"{low:.0%}-{high:.0%}",
                "seeds": ", ".join(map(str, seeds)),
            }
        )
    return rows


def _both(lines: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Lines whose share is that of texts that are both."""
    return [[{**line, "share": line["both"]} for line in of_one] for of_one in lines]


def tuned_rows(results: Results) -> list[Row]:
    """What was chosen among."""
    rows = []
    for way, found in WAYS.items():
        for name in found.tuned or {}:
            runs = (results.get(f"tuning {way}, {name}: {one}") for one in COMBINED)
            lines = [line for line in runs if line is not None]
            if lines:
                figures = {at: f"{_mean_of(line[at] for line in lines):.2f}" for at in SHOWN}
                rows.append({"way": way, "at": name, **figures})
    return rows


def picture(results: Results, path: Path) -> None:
    """Bars of task, attribute and both, a group for each way.

    Args:
        results: What is known.
        path: The PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {way: lines for way in WAYS if (lines := lines_of(results, way))}
    order = sorted(found, key=lambda way: mean(found[way], "both"))
    figure = Figure(figsize=(8.5, 1.2 + 0.42 * len(order)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, way in enumerate(order):
        for row, (name, color) in enumerate(zip(SHOWN, COLORS, strict=True)):
            at = place + 0.26 * (1 - row)
            low, high = bounds(found[way], name)
            label = name if place == 0 else None
            axes.barh(at, mean(found[way], name), 0.24, color=color, label=label)
            axes.plot([low, high], [at, at], color="#333333", lw=1)
    most = max(len(lines[0]) for lines in found.values())
    seeds = {way: len(found[way][0]) for way in order}
    names = [
        way if seeds[way] == most else f"{way} ({seeds[way]} of {most} seeds)" for way in order
    ]
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of texts; three tasks, two attributes, no combination seen in training")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
