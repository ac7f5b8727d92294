"""The table of a comparison for the terminal: the columns that decide."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from foreword.compare.figures import (
    NLL,
    NONE,
    SIGNED,
    digits,
    figure,
    forgotten,
    neutral_sets,
    ranked,
    ratios,
    seconds,
    short_count,
    size,
    spelled,
    spread_written,
    written,
)
from foreword.compare.result import Comparison, Latency, Side

_LABEL = 30
"""Columns for the name of a method, at most."""

_WIDEST = 110
"""Columns of the table and of what stands below it, at most."""


def table_of(comparison: Comparison) -> Table:
    """The methods, best first, and below them those that failed, with the reason.

    Args:
        comparison: What was measured.

    Returns:
        A table of tables, of up to 110 columns.
    """
    sides = ranked(comparison)
    done = [side for side in sides if side.failed is None]
    failed = [side for side in sides if side.failed is not None]
    backbone, data = comparison.backbone.get("name", ""), comparison.data.get("name", "")
    whole = Table.grid()
    whole.title = _text(f"{backbone} on {data}")
    whole.title_justify, whole.title_style = "left", "bold"
    whole.add_column(max_width=_WIDEST)
    if done:
        whole.add_row(_figures(comparison, done))
    if failed:
        whole.add_row(_failures(failed))
    if done:
        whole.add_row(_remark(comparison))
    return whole


def _figures(comparison: Comparison, sides: list[Side]) -> Table:
    """A row for each method."""
    columns = _columns(comparison)
    made = Table()
    made.add_column("method", max_width=_LABEL, overflow="fold")
    for head, _ in columns:
        made.add_column(_text(head), justify="right")
    for side in sides:
        made.add_row(_text(side.label), *(_text(cell(side)) for _, cell in columns))
    return made


def _columns(comparison: Comparison) -> list[tuple[str, Callable[[Side], str]]]:
    """Headings, and what stands below them of a method; NLL once, where it is what decides."""
    metric = comparison.metric
    nll = [] if metric.name == "nll" else [("NLL", _nll)]
    return [
        ("trained", lambda side: short_count(side.trained)),
        (metric.label, lambda side: spread_written(metric.form, figure(side, metric.name))),
        *nll,
        ("forgotten", lambda side: _most_forgotten(comparison, side)),
        ("seconds", _seconds),
        ("decode", _decode),
        ("stored", lambda side: size(side.stored_bytes)),
    ]


def _nll(side: Side) -> str:
    """NLL on test rows."""
    found = figure(side, "nll")
    return written(NLL, found.mean) if found else NONE


def _seconds(side: Side) -> str:
    """Seconds of training."""
    found = seconds(side)
    return digits(found.mean) if found else NONE


def _most_forgotten(comparison: Comparison, side: Side) -> str:
    """What was forgotten of the neutral set of which most was."""
    found = [forgotten(side, name) for name in neutral_sets(comparison)]
    return written(SIGNED, max((one.mean for one in found if one), default=None))


def _decode(side: Side) -> str:
    """What one step of one row takes beyond the frozen model, and in brackets once merged."""
    merged = "" if side.merged is None else f" ({_overhead(side.merged)})"
    return f"{_overhead(side.latency)}{merged}"


def _overhead(latency: Latency | None) -> str:
    """What a step of decoding takes beyond the frozen model, in percent."""
    ratio = ratios(latency, "decode").get(1)
    if ratio is None or not math.isfinite(ratio):
        return NONE
    return written("{:+,.0f}%", round(100 * (ratio - 1)))


def _remark(comparison: Comparison) -> Text:
    """What the headings have no room for."""
    sets = neutral_sets(comparison)
    most = f", the most of {', '.join(sets)}" if len(sets) > 1 else ""
    merged = any(side.merged is not None for side in comparison.sides)
    words = f"NLL and forgotten in nats per target{most}; decode: a row's time beyond the frozen model's"
    return Text(spelled(f"{words}{', once merged in brackets' if merged else ''}"), style="dim")


def _failures(sides: list[Side]) -> Table:
    """Methods that have no figures, and why."""
    made = Table.grid(padding=(0, 2))
    made.add_column(max_width=_LABEL, overflow="fold")
    made.add_column(overflow="fold")
    for side in sides:
        made.add_row(_text(side.label), _text(f"failed: {side.failed}"))
    return made


def _text(text: str) -> Text:
    """A text of the data: no markup, and nothing that a terminal obeys."""
    return Text(spelled(text))
