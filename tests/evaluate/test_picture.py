"""The loss curve: its smoothing against the formula, its file against its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.evaluate.picture import loss_curve, smoothed


def test_smoothing_is_a_bias_corrected_moving_average() -> None:
    values = [3.0, 1.0, 2.0, 5.0]
    wanted = []
    for last in range(len(values)):
        weights = [0.9 ** (last - i) for i in range(last + 1)]
        pairs = zip(weights, values, strict=False)
        wanted.append(sum(w * v for w, v in pairs) / sum(weights))
    assert smoothed(values) == pytest.approx(wanted)
    assert smoothed([2.5] * 9) == pytest.approx([2.5] * 9)


def test_the_curve_is_a_png_that_depends_on_the_history(tmp_path: Path) -> None:
    history = [{"step": float(i), "loss": 3.0 - i / 10} for i in range(1, 9)]
    loss_curve(history, tmp_path / "a.png", title="t")
    loss_curve([*history, {"step": 8.0, "eval_loss": 2.0}], tmp_path / "b.png", title="t")
    a, b = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert a.startswith(b"\x89PNG\r\n\x1a\n")
    assert a != b
