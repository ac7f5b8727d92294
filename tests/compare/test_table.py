"""The table of a comparison for the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from foreword.compare.result import Comparison, Latency, Metric, Seed, Side
from foreword.compare.table import table_of
from tests.compare.example import EXAMPLE, FROZEN, FULL, LORA, PREFIX
from tests.compare.reading import DASH, MINUS


def shown(comparison: Comparison, width: int = 110, *, terminal: bool = False) -> str:
    """What a console of so many columns shows, in a file if it is no terminal."""
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    console.print(table_of(comparison))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rows(comparison: Comparison) -> list[list[str]]:
    """The cells of its lines."""
    lines = [line for line in shown(comparison).splitlines() if line[0] in "┃│"]
    return [
        [cell.strip() for cell in line.strip("┃│ ").replace("┃", "│").split("│")] for line in lines
    ]


def with_sides(*sides: Side) -> Comparison:
    return replace(EXAMPLE, sides=sides)


def test_methods_are_there_best_first() -> None:
    head, lora, rest, prefix, more, frozen = rows(EXAMPLE)
    assert head == [
        *("method", "trained", "BLEU", "NLL", "forgotten", "seconds", "decode", "stored")
    ]
    assert lora == [
        *("LoRA, all linear layers, rank", "189K", "37.5 ± 1.0", "1.300", "+0.020", "35"),
        *("+35% (+0%)", "756 kB"),
    ]
    assert (rest[0], more[0]) == ("2", "tokens")
    assert prefix == [
        *("prefix tuning, 16 virtual", "184K", "37.0 ± 1.0", "1.310", "+0.050", "31.5", "+6%"),
        "369 kB",
    ]
    assert frozen == [
        *("the frozen model, asked", "0", "4.2", "3.250", DASH, DASH, "+0%", "0 B"),
    ]


def test_lower_figures_are_first_where_they_are_better() -> None:
    errors = Metric("nll", "NLL", higher=False, form="{:.2f}")
    sides = (FROZEN, replace(PREFIX, label="prefix"), replace(LORA, label="LoRA"))
    found = rows(replace(EXAMPLE, metric=errors, sides=sides))
    assert [row[0] for row in found[1:]] == ["LoRA", "prefix", "the frozen model, asked"]
    assert found[0].count("NLL") == 1
    assert found[1][2] == "1.30 ± 0.02"


def test_failed_methods_are_below_with_the_reason() -> None:
    lines = shown(with_sides(FULL, PREFIX)).splitlines()
    end = next(index for index, line in enumerate(lines) if line.startswith("└"))
    assert lines[end + 1].split("  ")[:2] == [
        *("full fine-tuning", "failed: out of memory <at 2 GB> & more")
    ]
    assert "fine-tuning" not in "".join(lines[:end])


def test_without_a_finished_method_there_are_reasons_alone() -> None:
    lines = shown(with_sides(FULL, replace(LORA, failed="no memory"))).splitlines()
    assert len(lines) == 4
    assert "│" not in "".join(lines)
    assert "no memory" in "".join(lines)
    assert shown(with_sides()).strip() == "smollm2-135m-instruct on rows.jsonl"


def test_a_table_has_at_most_110_columns() -> None:
    long = replace(PREFIX, label="long " * 40)
    failed = replace(FULL, label="long " * 40, failed="much " * 100)
    sets = {f"neutral set {index}": 0.1 for index in range(30)}
    seeds = tuple(replace(seed, forgotten=sets) for seed in LORA.seeds)
    text = shown(with_sides(long, replace(LORA, seeds=seeds), failed, FROZEN), 400)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 110
    assert text.count("much") == 100


def test_missing_figures_are_dashes() -> None:
    bare = Side("x", "X", trained=5)
    assert rows(with_sides(bare))[1] == ["X", "5", DASH, DASH, DASH, DASH, DASH, "0 B"]


@pytest.mark.parametrize(
    ("latency", "merged", "text"),
    [
        (Latency({}, {1: 1.354}), None, "+35%"),
        (Latency({}, {1: 0.9}), None, f"{MINUS}10%"),
        (Latency({}, {1: 0.999}), None, "+0%"),
        (Latency({}, {1: 21.0}), None, "+2,000%"),
        (Latency({}, {32: 1.2}), None, DASH),
        (Latency({}, {1: float("nan")}), None, DASH),
        (None, Latency({}, {1: 1.0}), f"{DASH} (+0%)"),
    ],
)
def test_decoding_is_what_is_beyond_the_frozen_model(
    latency: Latency | None, merged: Latency | None, text: str
) -> None:
    side = replace(PREFIX, label="X", latency=latency, merged=merged)
    assert rows(with_sides(side))[1][6] == text


def test_what_was_forgotten_most_is_shown() -> None:
    seeds = (Seed(0, 1.0, {"bleu": 3.0}, {"text": -0.25, "instructions": 0.125}),)
    assert rows(with_sides(replace(PREFIX, label="X", seeds=seeds)))[1][4] == "+0.125"


def test_texts_are_neither_markup_nor_obeyed_by_a_terminal() -> None:
    evil = "[red]a[/red] :smile: [/] \x1b[31m\r"
    comparison = replace(
        EXAMPLE,
        backbone={"name": evil},
        metric=replace(EXAMPLE.metric, label=evil),
        sides=(replace(PREFIX, label=evil), replace(FULL, label=evil, failed=evil)),
    )
    text = shown(comparison, 200)
    assert "\x1b" not in text
    assert "\r" not in text
    visible = "[red]a[/red] :smile: [/] \\x1b[31m\\r"
    assert sum(text.count(part) for part in (visible, visible[:-1], "[/] \\x1b")) >= 5
    coloured = shown(comparison, 200, terminal=True)
    assert "\x1b[31m" not in coloured


def test_in_a_file_it_is_plain() -> None:
    assert "\x1b" not in shown(EXAMPLE)
    assert "\x1b" in shown(EXAMPLE, terminal=True)
