"""Pictures, as PNG or SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.errors import StoreError
from foreword.evaluate.attention import PrefixAttention
from foreword.files import write_whole
from foreword.similarity import Similarity

SMOOTHING = 0.9
"""Weight of the past in the smoothed curve (exponential moving average, bias-corrected)."""

MOST_NUMBERS = 16
"""Prefixes up to which a heat map has numbers in it."""


def loss_curve(history: Sequence[Mapping[str, float]], path: Path, *, title: str) -> None:
    """Draw training loss, smoothed loss and evaluation loss over steps.

    Args:
        history: Entries with ``step`` and ``loss`` or ``eval_loss``, as `TrainResult.history`.
        path: The PNG file.
        title: What the picture is of.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [entry["step"] for entry in history if "loss" in entry]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db4c8", linewidth=1, label="each step")
    axes.plot(steps, smoothed(losses), color="#1f4e79", linewidth=2, label="smoothed")
    evaluated = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if evaluated:
        axes.plot(*zip(*evaluated, strict=True), "o-", color="#b3541e", label="evaluation")
    axes.set_xlabel("step")
    axes.set_ylabel("NLL per target token (nats)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average with bias correction (Kingma and Ba, 2015, section 3)."""
    average, out = 0.0, []
    for count, value in enumerate(values, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        out.append(average / (1 - SMOOTHING**count))
    return out


def attention_map(found: PrefixAttention, path: Path, *, title: str) -> None:
    """Draw the attention that a prefix gets: a map of layers and heads, bars of virtual tokens.

    Args:
        found: What was measured.
        path: The PNG file.
        title: What the picture is of.

    Raises:
        StoreError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = len(found.sites), max(len(heads or ()) for heads in found.heads)
    height = min(max(0.2 * rows, 1.6), 14)
    width = min(max(0.34 * columns + 2.6, 5.6), 14)
    figure = Figure(figsize=(width, height + 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, height_ratios=[height, 1.3])
    _map(figure, above, found, columns)
    _bars(below, found.tokens)
    figure.suptitle(title, fontsize=11)
    content = io.BytesIO()
    figure.savefig(content, dpi=120, format="png")
    write_whole(path, content.getvalue())


def similarity_map(found: Similarity, path: Path, *, title: str) -> None:
    """Draw how alike prefixes are: a heat map of all pairs, and their places in a plane.

    Args:
        found: What was compared.
        path: The file; its name ends in .png or .svg.
        title: What the picture is of.

    Raises:
        StoreError: The file cannot be written, or its name says neither.
    """
    form = picture_format(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = min(max(0.4 * len(found.names) + 2.5, 4.5), 14)
    # Texts stay texts in an SVG; no date and no random names, so that equal pictures are equal files.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "foreword"}):
        figure = Figure(figsize=(2 * size, size), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2)
        _pairs(figure, left, found)
        _plane(right, found)
        figure.suptitle(title, fontsize=11, parse_math=False)
        content = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(content, dpi=120, format=form, metadata=metadata, bbox_inches="tight")
    write_whole(path, content.getvalue())


def picture_format(path: Path) -> str:
    """``png`` or ``svg``, by the file's name.

    Raises:
        StoreError: It is neither.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in ("png", "svg"):
        raise StoreError(f"a picture's file ends in .png or .svg; found {path.name!r}")
    return form


def _pairs(figure: Any, axes: Any, found: Similarity) -> None:
    """Every pair of prefixes, with the number where there is room for it."""
    count = len(found.names)
    image = axes.imshow(found.matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    places, names = _ticks(found.names, 60)
    axes.set_xticks(places, names, rotation=60, ha="right")
    axes.set_yticks(places, names)
    axes.tick_params(labelsize=8)
    for row in range(count if count <= MOST_NUMBERS else 0):
        for column in range(count):
            number = found.matrix[row][column]
            colour = "white" if abs(number) > 0.6 else "black"
            text = f"{number:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.8)


def _plane(axes: Any, found: Similarity) -> None:
    """Where the prefixes lie; one that is nearer in the plane is more alike, as far as it can show."""
    places, share = found.places()
    xs, ys = [x for x, _ in places], [y for _, y in places]
    axes.scatter(xs, ys, color="#1f4e79")
    for name, place in zip(found.names, places, strict=True):
        axes.annotate(name, place, (4, 4), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.set_title(f"places in a plane, {100 * share:.0f}% of the differences", fontsize=9)


def _map(figure: Any, axes: Any, found: PrefixAttention, columns: int) -> None:
    """Heads from left to right, layers from top to bottom; sites without the prefix are grey."""
    blank = (math.nan,)
    grid = [[*(heads or ()), *blank * (columns - len(heads or ()))] for heads in found.heads]
    axes.set_facecolor("#d9d9d9")
    image = axes.imshow(grid, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(*_ticks(list(range(columns)), 16))
    axes.set_yticks(*_ticks([_short(site) for site in found.sites], 40))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("query head")
    axes.set_ylabel("layer")
    axes.set_title(f"per head; mean {found.mean:.3f}", fontsize=9)
    figure.colorbar(image, ax=axes, label="attention given to the prefix")


def _bars(axes: Any, tokens: Sequence[float]) -> None:
    axes.bar(range(len(tokens)), tokens, color="#1f4e79")
    axes.set_xticks(*_ticks(list(range(len(tokens))), 16))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("virtual token")
    axes.set_ylabel("attention")
    axes.set_title("per virtual token; mean over layers and heads", fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _ticks(labels: Sequence[Any], most: int) -> tuple[list[int], list[str]]:
    """Places and labels: every one of them, or every second, third, ... so that they can be read."""
    step = math.ceil(len(labels) / most)
    places = list(range(0, len(labels), step))
    return places, [str(labels[place]) for place in places]


def _short(site: str) -> str:
    """A decoder's layer is its number; other stacks keep their name."""
    return site.removeprefix("decoder.")
