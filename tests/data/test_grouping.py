"""The order of rows in training: what it holds together, and what it depends on."""

from __future__ import annotations

import random

import pytest

from foreword.data.grouping import POOL, GroupedByLength

ROWS = random.Random(0)
LENGTHS = [ROWS.randint(10, 140) for _ in range(1003)]


def padded(order: list[int], rows: int) -> float:
    """Padding as a share of the real tokens."""
    steps = [order[first : first + rows] for first in range(0, len(order), rows)]
    whole = sum(len(step) * max(LENGTHS[i] for i in step) for step in steps)
    return whole / sum(LENGTHS) - 1


@pytest.mark.parametrize("rows", [1, 4, 16, 5000])
def test_every_row_comes_once(rows: int) -> None:
    sampler = GroupedByLength(LENGTHS, rows, seed=0)
    order = list(sampler)
    assert sorted(order) == list(range(len(LENGTHS)))
    assert len(sampler) == len(LENGTHS)


def test_little_is_padded() -> None:
    order = list(GroupedByLength(LENGTHS, 16, seed=0))
    drawn = random.Random(1).sample(order, len(order))
    assert padded(order, 16) < 0.1 < 0.5 < padded(drawn, 16)


def test_steps_come_in_random_order_and_only_the_last_is_short() -> None:
    order = list(GroupedByLength(LENGTHS, 16, seed=0))
    steps = [order[first : first + 16] for first in range(0, len(order), 16)]
    longest = [max(LENGTHS[i] for i in step) for step in steps[:POOL]]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
    spread = [max(LENGTHS[i] for i in s) - min(LENGTHS[i] for i in s) for s in steps[:-1]]
    assert len(steps[-1]) == len(LENGTHS) % 16
    assert max(spread) < 60


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = GroupedByLength(LENGTHS, 8, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert first == list(sampler) == list(GroupedByLength(LENGTHS, 8, seed=3))
    assert first != second != list(GroupedByLength(LENGTHS, 8, seed=4))


def test_the_short_last_step_is_no_longer_than_the_rest() -> None:
    last = [list(GroupedByLength(LENGTHS, 16, seed))[-(len(LENGTHS) % 16) :] for seed in range(50)]
    lengths = [LENGTHS[row] for rows in last for row in rows]
    assert sum(lengths) / len(lengths) == pytest.approx(sum(LENGTHS) / len(LENGTHS), abs=5)
