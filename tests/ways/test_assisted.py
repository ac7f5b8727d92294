"""Assisted decoding and prompt lookup: the assistant proposes, the prefixed model decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.errors import BypassError
from foreword.prefix import WindowPolicy
from tests.oracle.checks import EXACT
from tests.ways.reference import CASES, Way, agrees, error, generated, new_tokens, way

BARE, OWN, SAME = "without a prefix", "with one of its own", "the same weights"
PAIRS: list[tuple[str, WindowPolicy, str]] = [
    ("llama", "visible", BARE),
    ("llama", "visible", OWN),
    ("llama", "visible", SAME),
    ("gpt2", "visible", OWN),
    ("mistral", "visible", BARE),
    ("mistral", "windowed", SAME),
    ("gemma2", "visible", SAME),
    ("gemma2", "windowed", OWN),
    ("qwen3", "visible", OWN),
]
"""Family, window policy and assistant."""
LONG = 12
"""New tokens: several rounds of proposals."""


def plain(case: Way, row: Tensor) -> Tensor:
    """Greedy tokens under the prefix without an assistant."""
    with case.backbone.attached(case.shared):
        return new_tokens([row], generated(case.model, [row], max_new_tokens=LONG))


@pytest.mark.parametrize(("family", "windows", "assistant"), PAIRS)
def test_an_assistant_changes_nothing(family: str, windows: WindowPolicy, assistant: str) -> None:
    case = way(family, windows)
    helper = way(family, windows, seed=0 if assistant == SAME else 3)
    row = case.rows[0]
    its_own = None if assistant == BARE else helper.shared
    wanted = plain(case, row)
    with case.backbone.attached(case.shared), helper.backbone.attached(its_own):
        out = generated(case.model, [row], assistant_model=helper.model, max_new_tokens=LONG)
    assert torch.equal(new_tokens([row], out), wanted)
    assert agrees(case, case.texts[:1], [row], out)


@pytest.mark.parametrize("assisted", ["model", "lookup"])
def test_rejected_proposals_leave_a_cache_that_goes_on(assisted: str) -> None:
    """The cache was cropped many times; it still belongs to the prefix."""
    case, helper = way(), way(seed=3)
    how: dict[str, Any] = {"prompt_lookup_num_tokens": 4}
    if assisted == "model":
        how = {"assistant_model": helper.model}
    row = case.rows[0]
    with case.backbone.attached(case.shared):
        out = generated(case.model, [row], max_new_tokens=LONG, **how)
        cache = out.past_key_values
        whole = out.sequences[0]
        rest = whole[cache.get_seq_length() :]
        with torch.no_grad():
            found = case.model(rest[None], past_key_values=cache).logits[0]
    expected = case.logits(case.texts[0], whole)[-len(rest) :]
    assert float((found - expected).abs().max()) <= EXACT * float(expected.abs().max())


@pytest.mark.parametrize(("family", "windows"), CASES)
def test_prompt_lookup_changes_nothing(family: str, windows: WindowPolicy) -> None:
    case = way(family, windows)
    row = torch.cat([case.rows[0][:8]] * 3)
    with case.backbone.attached(case.shared):
        out = generated(
            case.model,
            [row],
            prompt_lookup_num_tokens=4,
            max_matching_ngram_size=2,
            max_new_tokens=LONG,
        )
    assert torch.equal(new_tokens([row], out), plain(case, row))
    assert agrees(case, case.texts[:1], [row], out)


def test_lookup_without_the_prefix_gives_other_logits() -> None:
    case = way()
    out = generated(case.model, case.rows[:1], prompt_lookup_num_tokens=4)
    assert error(case, case.texts[:1], case.rows[:1], out) > 100 * EXACT


def test_leaving_early_as_its_own_assistant_is_refused() -> None:
    """The assistant would be the model without its last layers, whose prefix it cannot see."""
    case = way()
    with case.backbone.attached(case.shared), pytest.raises(BypassError, match="1 of 3 sites"):
        generated(case.model, case.rows[:1], assistant_early_exit=2)
