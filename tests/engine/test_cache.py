"""Shelves: memory follows what is there, nobody is copied for another's sake, and failures are whole."""

from __future__ import annotations

import pytest
import torch

from foreword.engine.cache import BOUND, LEAST, NoMemory, SlotCache
from foreword.engine.shelf import Shelf, Slot, Widths

LAYERS = 2
WIDTHS = Widths(heads=1, key=2, value=3, dtype=torch.float32, device=torch.device("cpu"))


def cache(limit: int = 2**17) -> SlotCache:
    made = SlotCache(LAYERS, limit)
    made.widths.update(dict.fromkeys(range(LAYERS), WIDTHS))
    return made


def fill(slot: Slot, number: float) -> None:
    for pair in slot.shelf.pairs.values():
        for tensor in pair:
            tensor[slot.index] = number


def held(slot: Slot) -> set[float]:
    return {
        float(x) for pair in slot.shelf.pairs.values() for t in pair for x in t[slot.index].unique()
    }


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
    assert (one.tokens, one.shelves) == (0, [])


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
    one = cache()
    slots = [one.take(LEAST) for _ in range(4)]
    for number, slot in enumerate(slots):
        fill(slot, number)
    empty, made = Widths.empty, []

    def failing(self: Widths, *sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
        made.append(sizes)
        if len(made) == LAYERS:  # one layer has grown by then
            raise error
        return empty(self, *sizes)

    monkeypatch.setattr(Widths, "empty", failing)
    with pytest.raises(NoMemory, match="no memory for the keys and values of 128 tokens"):
        one.take(LEAST)
    assert one.tokens == 4 * LEAST
    assert [held(slot) for slot in slots] == [{n} for n in range(4)]
    made.clear()
    with pytest.raises(NoMemory):
        one.take(192)
    assert [shelf.room for shelf in one.shelves] == [LEAST]
    monkeypatch.undo()
    slots.append(one.take(LEAST))
    fill(slots[4], 4)
    assert [held(slot) for slot in slots] == [{n} for n in range(5)]


def test_tensors_are_made_for_layers_that_are_known_late() -> None:
    late = Shelf(LEAST, widths := {0: WIDTHS})
    late.resize(2)
    widths[1] = WIDTHS
    assert late.pair(1)[0].shape == (2, 1, LEAST, 2)
