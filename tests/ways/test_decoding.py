"""Beam search, sampling and several texts per row, under a prefix of its own for each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.prefix import WindowPolicy
from tests.oracle.checks import EXACT
from tests.ways.reference import CASES, NEW_TOKENS, Way, agrees, error, generated, new_tokens, way

CACHES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 5},
}
PAIRS = [
    *((family, windows, "dynamic") for family, windows in CASES),
    ("llama", "visible", "static"),
    ("gpt2", "visible", "chunks"),
    ("mistral", "windowed", "static"),
    ("mistral", "visible", "chunks"),
    ("gemma2", "visible", "static"),
    ("gemma2", "windowed", "chunks"),
]
"""Family, window policy and cache."""
BEAMS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "several texts of beams": {"num_beams": 4, "num_return_sequences": 2},
}


@pytest.mark.parametrize(("family", "windows", "cache"), PAIRS)
def test_sampled_texts_come_from_the_right_logits(
    family: str, windows: WindowPolicy, cache: str
) -> None:
    case = way(family, windows)
    torch.manual_seed(7)
    with case.backbone.attached(case.mixed):
        out = generated(
            case.model, case.rows, do_sample=True, num_return_sequences=2, **CACHES[cache]
        )
    assert len({tuple(row.tolist()) for row in out.sequences}) == 6
    assert agrees(case, case.texts, case.rows, out)


def scores(case: Way, texts: tuple[Tensor, ...], out: Any) -> Tensor:
    """Mean log-probability of each returned text, from full forward passes with text in context."""
    new = new_tokens(case.rows, out)
    each = len(new) // len(case.rows)
    found = []
    for index, added in enumerate(new):
        row = case.rows[index // each]
        logits = case.logits(texts[index // each], torch.cat([row, added]))
        chosen = logits.log_softmax(-1)[len(row) - 1 : -1].gather(1, added[:, None])
        found.append(chosen.mean())
    return torch.stack(found)


@pytest.mark.parametrize("how", BEAMS)
@pytest.mark.parametrize(("family", "windows", "cache"), PAIRS)
def test_beams_have_the_scores_that_the_texts_in_context_give(
    family: str, windows: WindowPolicy, how: str, cache: str
) -> None:
    case = way(family, windows)
    with case.backbone.attached(case.mixed):
        out = generated(case.model, case.rows, **BEAMS[how], **CACHES[cache])
    torch.testing.assert_close(
        out.sequences_scores, scores(case, case.texts, out), rtol=0, atol=1e-5
    )
    swapped = (case.texts[1], case.texts[0], case.texts[2])
    moved = (out.sequences_scores - scores(case, swapped, out)).abs()
    assert float(moved.max()) > 1e-4


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("how", BEAMS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_beams_are_those_of_the_text_in_context(family: str, how: str, cache: str) -> None:
    """Token by token, where the plain model can be given the text: no windows."""
    case = way(family)
    with case.backbone.attached(case.mixed):
        out = generated(case.model, case.rows, **BEAMS[how], **CACHES[cache])
    found = new_tokens(case.rows, out).view(len(case.rows), -1, NEW_TOKENS)
    for index, (text, row) in enumerate(zip(case.texts, case.rows, strict=True)):
        whole = torch.cat([text, row])
        alone = generated(case.model, [whole], **BEAMS[how])
        assert torch.equal(found[index], new_tokens([whole], alone))


def test_the_first_row_of_the_other_prefix_differs() -> None:
    case = way()
    with case.backbone.attached(case.mixed):
        out = generated(case.model, case.rows, do_sample=True, num_return_sequences=2)
    wrong = (case.texts[2], case.texts[1], case.texts[0])
    assert error(case, wrong, case.rows, out) > 100 * EXACT
