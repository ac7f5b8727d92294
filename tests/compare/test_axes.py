"""Axes: where values lie, and round ticks."""

from __future__ import annotations

import itertools

import pytest

from foreword.compare.axes import Axis, decimals, fitted, from_zero, logarithmic, round_step
from tests.compare.reading import MINUS


def test_values_lie_in_proportion() -> None:
    assert Axis(10, 20, 100, 300).at(15) == 200
    assert Axis(0, 4, 274, 34).at(1) == 214
    assert Axis(1, 100, 0, 200, log=True).at(10) == pytest.approx(100)
    assert Axis(1, 1000, 0, 300, log=True).at(2) == pytest.approx(30.103, abs=1e-3)


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 35, 0, 1), [0, 5, 10, 15, 20, 25, 30, 35]),
        (Axis(35.8, 38.7, 0, 1), [36, 36.5, 37, 37.5, 38, 38.5]),
        (Axis(-0.11, 0.11, 0, 1), [-0.1, -0.05, 0, 0.05, 0.1]),
        (Axis(900, 2e6, 0, 1, log=True), [1e3, 1e4, 1e5, 1e6]),
        (Axis(90, 4000, 0, 1, log=True), [100, 200, 500, 1000, 2000]),
        (Axis(9e4, 4.1e5, 0, 1, log=True), [1e5, 1.5e5, 2e5, 3e5]),
        (Axis(1, 1e21, 0, 1, log=True), [1, 1e3, 1e6, 1e9, 1e12, 1e15, 1e18, 1e21]),
    ],
)
def test_ticks_are_round(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks() == pytest.approx(ticks)


def test_there_are_never_many_ticks_and_hardly_ever_few() -> None:
    for length in (1.0, 1.4, 2.1, 3.3, 4.9, 7.0, 7.1, 9.99):
        for power in (-9, 0, 12):
            ticks = Axis(0, length * 10.0**power, 0, 1).ticks()
            assert 3 <= len(ticks) <= 8


def test_axes_have_room_for_their_values() -> None:
    assert fitted([1, 3], 0, 1) == Axis(pytest.approx(0.84), pytest.approx(3.16), 0, 1)
    assert fitted([5], 0, 1) == Axis(4.5, 5.5, 0, 1)
    assert fitted([0], 0, 1) == Axis(-1, 1, 0, 1)
    assert from_zero([5, 10], 0, 1) == Axis(0, pytest.approx(10.8), 0, 1)
    assert from_zero([0], 0, 1) == Axis(0, 1, 0, 1)
    assert from_zero([0, 100], 0, 1).log is False
    assert from_zero([1, 29], 0, 1).log is False
    assert from_zero([1, 30], 0, 1).log is True


def test_equal_values_are_in_the_middle_of_a_factor() -> None:
    axis = logarithmic([100, 100], 0, 200)
    assert axis.at(100) == pytest.approx(100)
    assert axis.high / axis.low == pytest.approx(4 * 4**0.16)


@pytest.mark.parametrize(
    ("axis", "first"),
    [
        (Axis(0, 0.7, 0, 1), "0.1"),
        (Axis(0, 3, 0, 1), "0.5"),
        (Axis(0, 7000, 0, 1), "1,000"),
        (Axis(-7, 0, 0, 1), f"{MINUS}6"),
        (Axis(0, 7e9, 0, 1), "1e+09"),
        (Axis(0, 7e-9, 0, 1), f"1e{MINUS}09"),
    ],
)
def test_ticks_are_written_with_as_many_digits_as_they_need(axis: Axis, first: str) -> None:
    assert decimals(axis)(axis.ticks()[1]) == first


def test_written_ticks_differ() -> None:
    for scale, offset in itertools.product((1e-9, 1e-3, 1.0, 1e6, 1e12), (0.0, 0.9, 37.0)):
        axis = Axis(offset * scale, (offset + 0.13) * scale, 0, 1)
        written = [decimals(axis)(tick) for tick in axis.ticks()]
        assert len(set(written)) == len(written)


def test_a_step_is_one_two_or_five() -> None:
    assert [round_step(length) for length in (7, 8, 14, 15, 35, 36)] == [1, 2, 2, 5, 5, 10]
