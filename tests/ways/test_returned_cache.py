"""A cache that `generate` returned, used again under its prefix and refused under another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import StaticCache

from foreword.errors import CacheError
from foreword.prefix import WindowPolicy
from tests.oracle.checks import EXACT, difference
from tests.ways.reference import CASES, NEW_TOKENS, Way, generated, way

TURN = 5
"""Tokens of the second turn."""
HOWS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "chunks": {"prefill_chunk_size": 5},
    "several texts": {"do_sample": True, "num_return_sequences": 2},
}


def second_turn(case: Way, out: Any) -> Any:
    """More tokens after what came out, all from the first turn's cache."""
    more = case.rows[2][:TURN].expand(len(out.sequences), -1)
    turn = torch.cat([out.sequences, more], dim=1)
    return case.model.generate(
        turn,
        attention_mask=torch.ones_like(turn),
        past_key_values=out.past_key_values,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )


def error(case: Way, again: Any) -> float:
    """Error of the second turn's logits; the model must be the plain one."""
    found, expected = [], []
    for index, whole in enumerate(again.sequences):
        expected.append(case.logits(case.texts[0], whole)[-NEW_TOKENS - 1 : -1])
        found.append(torch.stack([step[index] for step in again.logits]))
    return difference(found, expected)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("family", "windows"), CASES)
def test_a_second_turn_goes_on_from_the_first_ones_cache(
    family: str, windows: WindowPolicy, how: str
) -> None:
    case = way(family, windows)
    torch.manual_seed(3)
    with case.backbone.attached(case.shared):
        out = generated(case.model, case.rows[:1], **HOWS[how])
        held = out.past_key_values.get_seq_length()
        again = second_turn(case, out)
    assert held == len(case.rows[0]) + NEW_TOKENS - 1
    assert error(case, again) <= EXACT


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_static_cache_of_ones_own(family: str) -> None:
    case = way(family)
    cache = StaticCache(case.model.config, max_cache_len=64)
    with case.backbone.attached(case.shared):
        out = generated(case.model, case.rows[:1], past_key_values=cache)
        assert out.past_key_values is cache
        again = second_turn(case, out)
    assert error(case, again) <= EXACT
    with case.backbone.attached(None), pytest.raises(CacheError, match="none"):
        second_turn(case, out)
    cache.reset()
    with case.backbone.attached(None):
        out = generated(case.model, case.rows[:1], past_key_values=cache)
    assert out.sequences.shape[1] == len(case.rows[0]) + NEW_TOKENS


@pytest.mark.parametrize("how", ["another", "none", "per row"])
def test_under_anything_else_the_cache_is_refused(how: str) -> None:
    case = way()
    other = {"another": case.prefix(case.texts[2]), "none": None, "per row": [case.shared]}[how]
    with case.backbone.attached(case.shared):
        out = generated(case.model, case.rows[:1])
    with case.backbone.attached(other), pytest.raises(CacheError, match="empty cache"):
        second_turn(case, out)
