"""How training ended, in figures that one batch does not decide, and in a line for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

MOST = 20
"""Most steps that the loss at the end is a mean of."""
SHARE = 10
"""The loss at the end is a mean of one step in so many, the last ones."""


def last_and_best(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The mean loss of the last steps and their number, and the step of the lowest evaluation NLL.

    Args:
        history: As `TrainResult.history` has it.

    Returns:
        ``mean_last_loss`` (nats per target; None without a step), ``mean_last_steps``, and
        ``best_step`` (None without an evaluation).
    """
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last = losses[-min(MOST, math.ceil(len(losses) / SHARE)) :]
    mean = sum(last) / len(last) if last else math.nan
    evaluated = [entry for entry in history if "eval_loss" in entry]
    best = min(evaluated, key=lambda entry: entry["eval_loss"], default=None)
    return {
        "mean_last_loss": mean if math.isfinite(mean) else None,
        "mean_last_steps": len(last),
        "best_step": None if best is None else int(best["step"]),
    }


def summary(training: Mapping[str, Any]) -> str:
    """Steps' loss at the end and the best evaluation, as `Prefix.meta.training` has them."""
    steps = training["mean_last_steps"]
    of = f"mean of the last {steps} steps" if steps > 1 else "of the last step"
    said = f"final loss {training['mean_last_loss']:.4f} ({of})"
    if training["best_step"] is None:
        return said
    return (
        f"{said}; kept as it was after step {training['best_step']}, the best of the evaluations: NLL "
        f"{training['best_eval_nll']:.4f}"
    )
