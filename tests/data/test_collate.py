"""Batches of rows of unequal length."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from foreword.data import Collator, Encoded, left_padded
from foreword.data.collate import padding_of


def test_training_rows_are_padded_on_the_right_without_labels() -> None:
    rows = [Encoded([5, 6, 7], [-100, 6, 7]), Encoded([8], [-100]), Encoded([9, 9], [-100, 9])]
    batch = Collator(4)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 4, 4], [9, 9, 4]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [1, 1, 0]],
        "labels": [[-100, 6, 7], [-100, -100, -100], [-100, 9, -100]],
    }


def test_a_padding_token_inside_a_row_is_seen() -> None:
    batch = Collator(4)([Encoded([4, 4], [-100, 4]), Encoded([4], [-100])])
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[-100, 4], [-100, -100]]


def test_prompts_are_padded_on_the_left() -> None:
    batch = left_padded([[5, 6, 7], (8,)], pad=4)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [4, 4, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    ("pad", "eos", "expected"), [(3, 2, 3), (None, 2, 2), (0, 2, 0), (None, None, 0)]
)
def test_padding_is_the_tokenizers_own_else_its_end(
    pad: int | None, eos: int | None, expected: int
) -> None:
    assert padding_of(SimpleNamespace(pad_token_id=pad, eos_token_id=eos)) == expected
