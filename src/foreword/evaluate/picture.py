"""Pictures, as PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreword.evaluate.attention import PrefixAttention
from foreword.files import write_whole

SMOOTHING = 0.9
"""Weight of the past in the smoothed curve (exponential moving average, bias-corrected)."""


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
