"""Shelves: memory follows what is there, nobody is copied for another's sake, and failures are whole."""

from __future__ import annotations

import itertools
import mmap
import sys
from pathlib import Path

import pytest
import torch

from foreword.engine.slots.cache import BOUND, LEAST, NoMemory, SlotCache
from foreword.engine.slots.growing import Growing
from foreword.engine.slots.shelf import Shelf, Slot, Widths

LAYERS = 2
WIDTHS = Widths(heads=1, key=2, value=3, dtype=torch.float32, device=torch.device("cpu"))


def cache(limit: int = 2**17) -> SlotCache:
    made = SlotCache(LAYERS, limit)
    made.widths.update(dict.fromkeys(range(LAYERS), WIDTHS))
    return made


def fill(slot: Slot, number: float) -> None:
    for layer in slot.shelf.pairs:
        for tensor in slot.shelf.pair(layer):
            tensor[slot.index] = number


def held(slot: Slot) -> set[float]:
    tensors = itertools.chain.from_iterable(map(slot.shelf.pair, slot.shelf.pairs))
    return {float(number) for tensor in tensors for number in tensor[slot.index].unique()}


def test_one_long_request_leaves_the_room_of_the_others_as_it_is() -> None:
    one = cache()
    slots = [one.take(LEAST) for _ in range(5)]
    before = [slot.shelf.pair(0)[0].data_ptr() for slot in slots]
    one.take(8192)
    assert [slot.shelf.pair(0)[0].data_ptr() for slot in slots] == before
    assert one.tokens == 8 * LEAST + 8192
    assert one.bytes == one.tokens * LAYERS * 1 * (2 + 3) * 4


def test_who_leaves_and_who_moves_harms_nobody() -> None:
    one = cache()
    slots = [one.take(LEAST) for _ in range(6)]
    for number, slot in enumerate(slots):
        fill(slot, number)
    for slot in (slots[4], slots[2]):
        slot.shelf.promote(slot)
    moved = one.move(slots[2], 256)
    one.give_back(slots[0])
    for number in (1, 3, 4, 5):
        assert held(slots[number]) == {number}
    assert moved.room == 256
    assert float(moved.shelf.pair(1)[1][moved.index, 0, LEAST - 1, 0]) == 2
    assert float(moved.shelf.pair(1)[1][moved.index, 0, LEAST, 0]) == 0
    assert (slots[4].index, slots[4].shelf.front, moved.shelf.front) == (0, 1, 1)
    assert sorted(slots[n].index for n in (1, 3, 4, 5)) == [0, 1, 2, 3]


def test_memory_is_given_back() -> None:
    one = cache()
    slots = [one.take(LEAST) for _ in range(32)]
    assert one.tokens == 32 * LEAST
    for slot in slots[:24]:
        one.give_back(slot)
    assert one.tokens == 16 * LEAST
    for slot in slots[24:]:
        one.give_back(slot)
    assert one.tokens == 2 * LEAST
    assert one.rest()
    assert (one.tokens, one.shelves) == (0, [])


def test_what_was_ended_keeps_nothing_from_what_comes() -> None:
    one = cache(limit=4 * LEAST)
    for slot in [one.take(LEAST) for _ in range(4)]:
        one.give_back(slot)
    assert one.tokens == 2 * LEAST
    assert next(one.rooms(40, 4 * LEAST)) == LEAST
    one.take(3 * LEAST)
    assert one.tokens == 3 * LEAST
    one.take(LEAST)
    assert one.tokens == 4 * LEAST


def test_where_memory_ends_what_nothing_is_on_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = cache()
    one.give_back(one.take(LEAST))
    made, kept = Growing._made, one.shelves[0]

    def limited(self: Growing, size: int) -> tuple[torch.Tensor, mmap.mmap | None]:
        if kept.size:
            raise MemoryError
        return made(self, size)

    monkeypatch.setattr(Growing, "_made", limited)
    assert one.take(256).room == 256
    assert [shelf.room for shelf in one.shelves] == [256]


def test_no_spare_slot_goes_beyond_the_limit() -> None:
    one = cache(limit=10 * LEAST)
    slots = [one.take(LEAST) for _ in range(5)]  # there is memory for eight
    assert one.tokens == 8 * LEAST
    slots.append(one.take(5 * LEAST))
    assert one.tokens == 10 * LEAST


def test_a_shelf_that_would_take_long_to_copy_is_left_and_another_begun() -> None:
    one = cache()
    for _ in range(BOUND // 1024 + 1):
        one.take(1024)
    assert [shelf.tokens for shelf in one.shelves] == [BOUND, 1024]


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 193, 300, 1025, 8192])
def test_rooms_are_no_more_than_half_as_large_again(tokens: int) -> None:
    first = next(cache().rooms(tokens, 10_000))
    assert tokens <= first <= max(LEAST, tokens * 3 // 2)
    assert list(cache(limit=tokens).rooms(tokens, tokens)) == [tokens] * 3


def test_a_request_has_room_for_all_that_it_may_come_to_where_that_is_near() -> None:
    """As long as there is plenty."""
    one = cache()
    first = [next(one.rooms(60, most)) for most in (80, 129, 192, 256, 257)]
    assert first == [128, 192, 192, 256, 128]
    assert next(cache(limit=8 * 192 - 1).rooms(60, 192)) == 128
    one.take(192)
    one.take(256)
    assert next(one.rooms(60, 80)) == 256
    assert next(one.rooms(60, 10_000)) == 256
    assert next(one.rooms(250, 260)) == 384


def test_a_room_that_others_have_is_taken() -> None:
    one = cache()
    one.take(256)
    assert next(one.rooms(100, 100)) == 256
    assert next(one.rooms(40, 10_000)) == 256
    assert next(one.rooms(257, 10_000)) == 384


@pytest.mark.parametrize("error", [RuntimeError("can't allocate memory"), torch.OutOfMemoryError()])
def test_a_shelf_that_cannot_grow_is_as_it_was(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Where growing copies, as on GPUs."""
    monkeypatch.setattr("sys.platform", "other")
    one = cache()
    slots = [one.take(LEAST) for _ in range(4)]
    for number, slot in enumerate(slots):
        fill(slot, number)
    made, asked = Growing._made, []

    def failing(self: Growing, size: int) -> tuple[torch.Tensor, mmap.mmap | None]:
        asked.append(size)
        if len(asked) == 2 * LAYERS:  # one layer has grown by then, and another's keys
            raise error
        return made(self, size)

    monkeypatch.setattr(Growing, "_made", failing)
    with pytest.raises(NoMemory, match="no memory for the keys and values of 128 tokens"):
        one.take(LEAST)
    assert one.tokens == 4 * LEAST
    assert [held(slot) for slot in slots] == [{n} for n in range(4)]
    asked.clear()
    with pytest.raises(NoMemory):
        one.take(192)
    assert [shelf.room for shelf in one.shelves] == [LEAST]
    monkeypatch.undo()
    slots.append(one.take(LEAST))
    fill(slots[4], 4)
    assert [held(slot) for slot in slots] == [{n} for n in range(5)]


@pytest.mark.parametrize("platform", [sys.platform, "other"])
def test_a_shelf_keeps_what_it_holds_as_it_grows_and_shrinks(
    monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    one = cache()
    slots = [one.take(LEAST) for _ in range(3)]
    for number, slot in enumerate(slots):
        fill(slot, number)
    slots[0].shelf.resize(64)
    slots += [one.take(LEAST) for _ in range(2)]
    assert [held(slot) for slot in slots] == [{0}, {1}, {2}, {0}, {0}]
    fill(slots.pop(), 5)
    fill(slots.pop(), 4)
    for _ in range(2):
        one.give_back(slots[0].shelf.slots[-1])
    slots[0].shelf.resize(3)
    slots[0].shelf.resize(70)
    slots += [one.take(LEAST) for _ in range(2)]
    assert [held(slot) for slot in slots[:3]] == [{0}, {1}, {2}]
    assert [tuple(t.shape[:3]) for t in slots[0].shelf.pair(1)] == [(70, 1, LEAST)] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="pages are Linux'")
def test_on_a_cpu_growing_copies_nothing_and_shrinking_gives_pages_back() -> None:
    growing = Growing((2**18,), torch.float32, torch.device("cpu"), most=64)  # 1 MiB each
    growing.resize(2, 0)
    growing.tensor.fill_(7)
    where = growing.tensor.data_ptr()
    growing.resize(48, 2)
    assert growing.tensor.data_ptr() == where
    assert growing.tensor.sum(1).tolist() == [7 * 2**18] * 2 + [0] * 46
    growing.tensor.fill_(7)
    before = resident()
    growing.resize(2, 2)
    assert before - resident() > 40 * 2**20
    growing.resize(3, 2)
    assert growing.tensor.sum(1).tolist() == [7 * 2**18] * 2 + [0]
    growing.resize(65, 3)
    assert growing.tensor.sum(1).tolist() == [7 * 2**18] * 2 + [0] * 63


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_tensors_are_made_for_layers_that_are_known_late() -> None:
    late = Shelf(LEAST, widths := {0: WIDTHS})
    late.resize(2)
    widths[1] = WIDTHS
    assert late.pair(1)[0].shape == (2, 1, LEAST, 2)
