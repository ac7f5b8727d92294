"""Logits at some positions equal those of the same positions among all."""

from __future__ import annotations

import threading
from typing import Any

import torch

import foreword
from foreword.backbone.output_layer import head_sees, head_sees_last
from foreword.mixture import Mixture
from foreword.options import GenerateOptions
from tests.conftest import tiny_model
from tests.test_generate import PLAIN

ROWS = torch.tensor([[17, 60, 4, 9], [2, 33, 8, 41]])


def test_the_last_position_alone() -> None:
    model = tiny_model()
    with torch.no_grad():
        whole_BTV = model(ROWS).logits
        with head_sees_last(model):
            last_B1V = model(ROWS).logits
        assert model(ROWS).logits.shape == whole_BTV.shape
    assert last_B1V.shape == (2, 1, whole_BTV.shape[-1])
    torch.testing.assert_close(last_B1V[:, 0], whole_BTV[:, -1], atol=1e-6, rtol=0)


def test_wanted_positions_as_one_row() -> None:
    model = tiny_model()
    wanted_BT = torch.tensor([[True, False, False, True], [False, True, False, False]])
    with torch.no_grad(), head_sees(model, wanted_BT) as narrowed:
        some_1NV = model(ROWS).logits
        assert narrowed == [True]
        other = model(ROWS[:, :2]).logits  # of another shape: all, as ever
        assert narrowed == [True]
    with torch.no_grad():
        torch.testing.assert_close(some_1NV[0], model(ROWS).logits[wanted_BT], atol=1e-6, rtol=0)
        torch.testing.assert_close(other, model(ROWS[:, :2]).logits)


def test_other_threads_get_all_logits() -> None:
    model = tiny_model()
    shapes: list[Any] = []
    with head_sees_last(model), torch.no_grad():
        other = threading.Thread(target=lambda: shapes.append(model(ROWS).logits.shape))
        other.start()
        other.join()
    assert shapes[0][:2] == ROWS.shape


def test_generation_computes_logits_of_last_positions_only(spelled: foreword.Backbone) -> None:
    """Of every branch of a mixture as well, whose prompts transformers knows nothing of."""
    prefix = spelled.capture("one text").with_meta(recipe=PLAIN.as_json())
    head = spelled.model.get_output_embeddings()
    seen: list[int] = []
    max_three = GenerateOptions(max_new_tokens=3)
    hook = head.register_forward_hook(lambda _, inputs, out: seen.append(out.shape[1]))
    try:
        for under in (None, prefix, Mixture(((0.5, prefix),))):
            foreword.generate(spelled, ["abc", "abcde"], under, max_three)
    finally:
        hook.remove()
    assert set(seen) == {1}
