"""The main table of a comparison's page: a method a row, all its figures in groups of columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from foreword.compare.figures import (
    NLL,
    NONE,
    RATIO,
    SIGNED,
    Spread,
    batches,
    count,
    digits,
    figure,
    forgotten,
    neutral_sets,
    peak,
    percent,
    ranked,
    ratios,
    rows_at_once,
    seconds,
    share,
    size,
    speed,
    unsigned,
    written,
)
from foreword.compare.markup import Markup, element, joined
from foreword.compare.result import Comparison, Side

PHASES = ("prefill", "decode")
"""What is timed."""

TRAITS = {
    "shares_batch": ("shares a batch", "rows of different tasks can go through in one batch"),
    "merges": ("merges", "it can be merged into the weights, after which it costs nothing"),
    "composes": ("composes", "several can be put together without training"),
    "switches_off": ("switches off", "the frozen model is there again at once, bit for bit"),
}
"""By field of `Traits` its column, and what that means."""


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        head: Its heading.
        cell: What it says of a method.
        decides: Whether the table is sorted by it.
    """

    head: str
    cell: Callable[[Side], str]
    decides: bool = False


@dataclass(frozen=True)
class Group:
    """Columns under one heading.

    Attributes:
        head: The heading.
        columns: The columns.
    """

    head: str
    columns: tuple[Column, ...]


def results_table(comparison: Comparison) -> Markup:
    """The methods, best first, failed ones last."""
    size_of, *others = _groups(comparison)
    rows = [_row(side, size_of, others) for side in ranked(comparison)]
    return element(
        "table",
        element("caption", "Methods, best first"),
        _heads([size_of, *others]),
        element("tbody", *rows),
        class_="results",
    )


def _groups(comparison: Comparison) -> list[Group]:
    """All columns, from left to right; the first group is known of failed methods too."""
    metric = comparison.metric
    quality = [_figure(metric.name, metric.label, metric.form, decides=True)]
    if metric.name != "nll":
        quality.append(_figure("nll", "NLL", NLL))
    groups = {
        "Trained": (
            Column("parameters", lambda side: count(side.trained)),
            Column("of the backbone", lambda side: percent(share(side.trained, comparison))),
        ),
        "Test rows": tuple(quality),
        "Forgotten": tuple(_forgotten(name) for name in neutral_sets(comparison)),
        "Training": (
            Column("seconds", lambda side: digits(_mean(seconds(side)))),
            Column("tokens/s", lambda side: digits(_mean(speed(side)))),
            Column("peak memory", lambda side: size(_mean(peak(side)))),
        ),
        **{
            phase.capitalize(): tuple(_latency(phase, rows) for rows in batches(comparison, phase))
            for phase in PHASES
        },
        "Takes": (
            Column("one task, stored", lambda side: size(side.stored_bytes)),
            Column("100 tasks, in memory", lambda side: size(side.memory_bytes)),
        ),
        "What it can do": tuple(_trait(field, head) for field, (head, _) in TRAITS.items()),
    }
    return [Group(head, columns) for head, columns in groups.items() if columns]


def _figure(name: str, label: str, form: str, *, decides: bool = False) -> Column:
    """A figure on test rows."""
    return Column(label, lambda side: _spread(form, figure(side, name)), decides)


def _forgotten(name: str) -> Column:
    """What was forgotten of a neutral set."""
    return Column(name, lambda side: _spread(SIGNED, forgotten(side, name)))


def _latency(phase: str, rows: int) -> Column:
    """Latency at a number of rows, and in brackets that of the merged method."""

    def cell(side: Side) -> str:
        plain = written(RATIO, ratios(side.latency, phase).get(rows))
        merged = ratios(side.merged, phase).get(rows)
        if merged is None:
            return plain
        return joined(plain, " ", element("small", f"({written(RATIO, merged)})"))

    return Column(rows_at_once(rows), cell)


def _trait(field: str, head: str) -> Column:
    """Whether a method can do something."""

    def cell(side: Side) -> str:
        if side.traits is None:
            return NONE
        return "yes" if getattr(side.traits, field) else "no"

    return Column(head, cell)


def _spread(form: str, found: Spread | None) -> str:
    """A mean, and its deviation in small."""
    if found is None:
        return NONE
    mean = written(form, found.mean)
    if found.deviation is None:
        return mean
    return joined(mean, " ", element("small", f"± {written(unsigned(form), found.deviation)}"))


def _mean(found: Spread | None) -> float | None:
    return None if found is None else found.mean


def _heads(groups: list[Group]) -> Markup:
    """Two lines of headings: groups, and their columns."""
    method = element("th", "Method", scope="col", rowspan=2, class_="method words")
    above = (
        element("th", group.head, scope="colgroup", colspan=len(group.columns), class_="first")
        for group in groups
    )
    below = (
        element("th", column.head, scope="col", class_="first" if index == 0 else None)
        for group in groups
        for index, column in enumerate(group.columns)
    )
    spans = (element("colgroup", span=span) for span in (1, *(len(g.columns) for g in groups)))
    return joined(*spans, element("thead", element("tr", method, *above), element("tr", *below)))


def _row(side: Side, size_of: Group, others: list[Group]) -> Markup:
    """A method; one that failed has its reason in place of figures."""
    name = element("small", side.name)
    head = element("th", side.label, " ", name, scope="row", class_="method")
    if side.failed is None:
        return element("tr", head, *(_cells(side, group) for group in (size_of, *others)))
    room = sum(len(group.columns) for group in others)
    reason = element("td", f"failed: {side.failed}", colspan=room, class_="first words")
    return element("tr", head, _cells(side, size_of), reason)


def _cells(side: Side, group: Group) -> Markup:
    """What one group says of a method."""
    return joined(
        *(
            element("td", column.cell(side), class_=_classes(column, index))
            for index, column in enumerate(group.columns)
        )
    )


def _classes(column: Column, index: int) -> str | None:
    """Classes of a cell, by its place in the group."""
    names = ["first"] * (index == 0) + ["decides"] * column.decides
    return " ".join(names) or None
