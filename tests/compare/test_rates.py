"""The search for a rate on curves whose minimum is known."""

from __future__ import annotations

import math

import pytest

from foreword.compare.rates import MOST, best_rate, next_rate


def searched(first: float, lowest: float, breaks: float = math.inf) -> dict[float, float]:
    """Losses of a search on a parabola in the log of the rate that breaks off above a rate."""
    tried: dict[float, float] = {}
    while (rate := next_rate(tried, first)) is not None:
        assert rate not in tried
        tried[rate] = math.nan if rate > breaks else math.log(rate / lowest) ** 2
    return tried


@pytest.mark.parametrize("first", [0.001, 0.01, 0.06, 0.03])
@pytest.mark.parametrize("away", [-2, -1, 0, 1, 2])
def test_the_best_is_found_and_lies_between_two(first: float, away: int) -> None:
    tried = searched(first, lowest=first * 2.0**away)
    best = best_rate(tried, first)
    assert best.rate == pytest.approx(first * 2.0**away, rel=0.01)
    assert best.interior
    assert len(tried) == 3 + max(-away, away - 1, 0)


def test_three_rates_are_the_least() -> None:
    assert list(searched(0.01, 0.01)) == [0.01, 0.02, 0.005]


def test_rates_at_which_training_breaks_are_passed_by() -> None:
    tried = searched(0.08, lowest=0.01, breaks=0.03)
    best = best_rate(tried, 0.08)
    assert (best.rate, best.interior) == (0.01, True)


def test_a_search_without_end_ends_and_says_that_it_has_none() -> None:
    tried = searched(1.0, lowest=1e-6)
    assert len(tried) == MOST
    assert not best_rate(tried, 1.0).interior


def test_a_search_where_nothing_trains_ends() -> None:
    tried = searched(1.0, lowest=1.0, breaks=0.0)
    assert len(tried) == MOST
    best = best_rate(tried, 1.0)
    assert math.isinf(best.loss)
    assert not best.interior
