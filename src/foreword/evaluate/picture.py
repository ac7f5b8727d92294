"""Pictures, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
