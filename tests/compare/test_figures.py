"""How figures are written."""

from __future__ import annotations

import math

import pytest

from foreword.compare import figures
from foreword.compare.figures import Spread, spread, spread_written, written
from foreword.compare.result import Comparison
from tests.compare.example import EXAMPLE, FROZEN, LORA, PREFIX
from tests.compare.reading import DASH, MINUS


def test_means_and_deviations() -> None:
    assert spread([1.0, None, 3.0]) == Spread(2.0, pytest.approx(math.sqrt(2)))
    assert spread([1.0]) == Spread(1.0, None)
    assert spread([None]) is None
    assert spread([1.0, math.nan]) is None
    assert spread([1.0, math.inf]) is None
    assert Spread(2.0).ends == (2.0, 2.0)
    assert Spread(2.0, 0.5).ends == (1.5, 2.5)


@pytest.mark.parametrize("side", [PREFIX, LORA, FROZEN])
@pytest.mark.parametrize("name", ["bleu", "nll", "rouge_l"])
def test_they_are_those_of_the_method(side: figures.Side, name: str) -> None:
    found, known = figures.figure(side, name), side.figure(name)
    assert (found and (found.mean, found.deviation or 0.0)) == known


@pytest.mark.parametrize(
    ("form", "found", "text"),
    [
        ("{:.1f}", Spread(37.04, 1.06), "37.0 ± 1.1"),
        ("{:+.2f}", Spread(-0.5, 0.25), f"{MINUS}0.50 ± 0.25"),
        ("{:.1f}", Spread(37.04), "37.0"),
        (figures.SIGNED, Spread(-1e-9, 0.0), "+0.000 ± 0.000"),
        ("{:.1f}", None, DASH),
    ],
)
def test_a_mean_is_written_with_its_deviation(form: str, found: Spread, text: str) -> None:
    assert spread_written(form, found) == text


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_no_number_is_a_dash(value: float | None) -> None:
    assert written("{:.1f}", value) == figures.digits(value) == DASH


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (31.5, "31.5"),
        (35.0, "35"),
        (99.96, "100"),
        (1350.4, "1,350"),
        (3e-8, f"3e{MINUS}08"),
        (3.14e10, "3.14e+10"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert figures.digits(value) == text


@pytest.mark.parametrize(
    ("value", "short", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (184_320, "184K", "184 kB"),
        (999_960, "1M", "1 MB"),
        (134_515_008, "135M", "135 MB"),
        (7_241_732_096, "7.24B", "7.24 GB"),
        (1e15, "1,000T", "1,000 TB"),
    ],
)
def test_large_numbers_are_short(value: float, short: str, size: str) -> None:
    assert figures.short_count(value) == short
    assert figures.size(value) == size


def test_shares_are_of_the_backbone() -> None:
    assert figures.percent(figures.share(134_515_008, EXAMPLE)) == "100%"
    assert figures.percent(figures.share(0, EXAMPLE)) == "0%"
    unknown = Comparison({}, {}, "", EXAMPLE.metric, 1, ())
    assert figures.percent(figures.share(5, unknown)) == DASH


def test_only_what_is_not_to_be_kept_is_spelled_out() -> None:
    assert figures.spelled("a\tb\x1b") == "a\\tb\\x1b"
    assert figures.spelled("a\tb\x1b", keep="\t") == "a\tb\\x1b"
    assert figures.spelled("日本 é") == "日本 é"
    assert figures.spelled("\u202e 4.2 \u2069") == "\\u202e 4.2 \\u2069"  # else read as 2.4
