"""generate with every kind of cache, or none, and prefill in chunks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from torch import nn
from transformers import StaticCache

from foreword.prefix import WindowPolicy
from tests.oracle.checks import EXACT
from tests.ways.reference import CASES, agrees, error, generated, way

WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "none": {"use_cache": False},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 5},
    "one chunk for each token": {"prefill_chunk_size": 1},
    "chunks into a static cache": {"prefill_chunk_size": 5, "cache_implementation": "static"},
}
RUNS = [
    (family, windows, how)
    for (family, windows), how in itertools.product(CASES, WAYS)
    # transformers' own gpt_neo is wrong with a static cache: it cuts its mask by the cache's size.
    if family != "gpt_neo" or "static" not in how
]


@pytest.mark.parametrize(("family", "windows", "how"), RUNS)
def test_one_prefix_for_all_rows(family: str, windows: WindowPolicy, how: str) -> None:
    case = way(family, windows)
    with case.backbone.attached(case.shared):
        out = generated(case.model, case.rows, **WAYS[how])
    assert agrees(case, [case.texts[0]] * 3, case.rows, out)


@pytest.mark.parametrize(("family", "windows", "how"), RUNS)
def test_a_prefix_of_its_own_or_none_for_each_row(
    family: str, windows: WindowPolicy, how: str
) -> None:
    case = way(family, windows)
    with case.backbone.attached(case.mixed):
        out = generated(case.model, case.rows, **WAYS[how])
    assert agrees(case, case.texts, case.rows, out)


@pytest.mark.parametrize("how", WAYS)
def test_without_the_prefix_the_logits_are_others(how: str) -> None:
    case = way()
    with case.backbone.attached(None):
        out = generated(case.model, case.rows, **WAYS[how])
    assert error(case, [case.texts[1]] * 3, case.rows, out) <= EXACT
    assert error(case, [case.texts[0]] * 3, case.rows, out) > 100 * EXACT


@pytest.mark.parametrize(
    ("how", "widths", "static"),
    [
        ("dynamic", [24, 1, 1], False),
        ("none", [24, 25, 26], False),
        ("static", [24, 1, 1], True),
        ("chunks", [5, 5, 5, 5, 4, 1, 1], False),
        ("chunks into a static cache", [5, 5, 5, 5, 4, 1, 1], True),
    ],
)
def test_the_way_is_the_way_that_is_meant(how: str, widths: list[int], static: bool) -> None:
    """Each forward pass's new tokens, and the cache's class and windows."""
    case, seen, caches = way("gemma2"), [], []
    prefix = case.shared

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"].shape[1])
        caches.append(kwargs.get("past_key_values"))

    handle = case.model.register_forward_pre_hook(look, with_kwargs=True)
    with case.backbone.attached(prefix):
        generated(case.model, case.rows, **WAYS[how], max_new_tokens=3)
    handle.remove()
    assert seen == widths
    assert isinstance(caches[-1], StaticCache) == static
    if static:
        assert caches[-1].is_sliding == [True, False, True]
