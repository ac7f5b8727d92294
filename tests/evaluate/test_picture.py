"""The loss curve: its smoothing against the formula, its file against its data."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.evaluate.attention import PrefixAttention
from foreword.evaluate.picture import _ticks, attention_map, loss_curve, smoothed


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


def test_the_map_is_a_png_that_depends_on_what_was_measured(tmp_path: Path) -> None:
    def drawn(name: str, *heads: tuple[float, ...] | None, title: str = "t") -> bytes:
        sites = tuple(f"decoder.{index}" for index in range(len(heads)))
        found = PrefixAttention(sites, heads, (0.1, 0.4, 0.0), 7)
        attention_map(found, tmp_path / name, title=title)
        return (tmp_path / name).read_bytes()

    a = drawn("a.png", (0.1, 0.9), (0.5, 0.2))
    assert a.startswith(b"\x89PNG\r\n\x1a\n")
    assert drawn("again.png", (0.1, 0.9), (0.5, 0.2)) == a
    assert drawn("b.png", (0.9, 0.1), (0.5, 0.2)) != a
    assert drawn("blank.png", None, (0.5, 0.2)) != a
    assert drawn("uneven.png", (0.1,), (0.5, 0.2)) != a
    many = drawn("many.png", *[tuple(head / 64 for head in range(64))] * 96)
    assert len(many) < 200_000


def test_labels_thin_out_where_they_would_not_fit() -> None:
    assert _ticks(["a", "b", "c"], 3) == ([0, 1, 2], ["a", "b", "c"])
    assert _ticks(["a", "b", "c", "d"], 3) == ([0, 2], ["a", "c"])
