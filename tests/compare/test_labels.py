"""Names beside points: near them, apart from each other, none outside."""

from __future__ import annotations

import itertools
import random

import pytest

from foreword.compare.labels import LINE, Box, Label, place, shortened, spaced, width

AREA = Box(40, 30, 450, 270)


def apart(labels: list[Label]) -> bool:
    pairs = itertools.combinations([label.box for label in labels], 2)
    return not any(one.overlaps(other) for one, other in pairs)


def test_boxes_overlap_where_they_share_more_than_an_edge() -> None:
    box = Box(0, 0, 10, 10)
    assert box.overlaps(Box(9, 9, 20, 20))
    assert not box.overlaps(Box(10, 0, 20, 10))
    assert not box.overlaps(Box(0, 10, 10, 20))
    assert box.distance(13, 14) == 5
    assert box.distance(5, 5) == 0


def test_a_name_is_at_the_right_of_its_point() -> None:
    (label,) = place([(100, 100, "LoRA")], AREA, [], [])
    assert label.box == Box(108, 93, 108 + width("LoRA"), 93 + LINE)
    assert label.anchor == (108, "start")
    assert not label.led


def test_a_name_without_room_at_the_right_is_at_the_left() -> None:
    (label,) = place([(440, 100, "LoRA")], AREA, [], [])
    assert label.anchor == (432, "end")


def test_a_name_keeps_off_words_and_bars() -> None:
    right, left = Box(105, 90, 200, 110), Box(50, 90, 95, 110)
    (label,) = place([(100, 100, "LoRA")], AREA, [right], [left])
    assert not label.box.overlaps(right)
    assert not label.box.overlaps(left)


@pytest.mark.parametrize("size", [2, 5, 12])
def test_names_of_points_in_one_place_are_apart_and_led_to(size: int) -> None:
    points = [(240.0, 150.0, f"prefix tuning, {index}") for index in range(size)]
    labels = place(points, AREA, [], [])
    assert apart(labels)
    assert all(AREA.holds(label.box) for label in labels)
    assert all(label.led for label in labels)


def test_names_of_points_anywhere_are_apart() -> None:
    draw = random.Random(0)
    for _ in range(5):
        points = [
            (draw.uniform(40, 450), draw.uniform(30, 270), f"method of number {index}")
            for index in range(10)
        ]
        labels = place(points, AREA, [], [])
        assert apart(labels)
        assert all(AREA.holds(label.box) for label in labels)
        assert [label.text for label in labels] == [name for *_, name in points]


def test_a_name_that_is_nearer_to_another_point_is_led_to() -> None:
    first, second = place([(100, 100, "first"), (112, 100, "second")], AREA, [], [])
    assert not first.led
    assert not second.led
    crowd = [Box(104, 60, 450, 140), Box(40, 60, 92, 140)]
    (label,) = place([(100, 100, "far")], AREA, crowd, [])
    assert label.led
    x, y = label.lead
    assert label.box.left <= x <= label.box.right
    assert y in (label.box.top, label.box.bottom)


def test_long_names_are_cut_to_the_area() -> None:
    (label,) = place([(100, 100, "x" * 500)], AREA, [], [])
    assert label.text.endswith("x…")
    assert AREA.holds(label.box)
    assert width(label.text) + width("x") > AREA.right - AREA.left


def test_wide_letters_take_more_room() -> None:
    assert width("日本") == 24
    assert width("ab") < 24
    assert shortened("abc", width("abc")) == "abc"
    assert shortened("abcdef", width("abc")) == "ab…"
    assert shortened("abc", 0) == "…"


def test_heights_are_moved_apart_in_their_order() -> None:
    assert spaced([100, 200], 0, 270) == [100, 200]
    assert spaced([100, 101, 99], 0, 270) == [113, 127, 99]
    assert spaced([269, 270], 0, 270) == [256, 270]
    assert spaced([], 0, 270) == []


def test_heights_without_room_for_a_line_each_share_what_there_is() -> None:
    found = spaced([5.0] * 41, 0, 270)
    assert found == sorted(found)
    assert min(found) >= 0
    assert max(found) <= 270
    assert found[1] - found[0] == pytest.approx(270 / 40)
