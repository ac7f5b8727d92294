"""Packing by position_ids: several sequences in one row, each under the prefix as if it were alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foreword.attention.bound import bind
from foreword.prefix import Prefix, WindowPolicy
from tests.oracle.checks import EXACT, difference
from tests.oracle.reference import gradients_through_cache, nll
from tests.ways.reference import PACKED, Way, way


def packed(rows: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """One row of all, positions restarting with each; no mask."""
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    return {"input_ids": torch.cat(rows)[None], "position_ids": positions[None]}


def block_mask(rows: tuple[Tensor, ...], model: torch.nn.Module) -> Tensor:
    """The same row's 4-D mask: causal within each sequence, nothing across."""
    owner = torch.cat([torch.full((len(row),), index) for index, row in enumerate(rows)])
    seen = (owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    if model.config._attn_implementation.endswith("eager"):
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[
            None, None
        ]
    return seen[None, None]


def parts(logits: Tensor, rows: tuple[Tensor, ...]) -> list[Tensor]:
    return list(logits[0].split([len(row) for row in rows]))


@pytest.mark.parametrize(("family", "windows"), PACKED)
def test_each_packed_sequence_sees_the_prefix_and_nothing_of_the_others(
    family: str, windows: WindowPolicy
) -> None:
    case = way(family, windows)
    expected = [case.logits(case.texts[0], row) for row in case.rows]
    with case.backbone.attached(case.shared), torch.no_grad():
        found = parts(case.model(**packed(case.rows), use_cache=False).logits, case.rows)
    assert difference(found, expected) <= EXACT
    with case.backbone.attached(None), torch.no_grad():
        bare = parts(case.model(**packed(case.rows), use_cache=False).logits, case.rows)
    assert difference(bare, expected) > 100 * EXACT


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_a_ready_made_mask_says_the_same(family: str) -> None:
    case = way(family)
    expected = [case.logits(case.texts[0], row) for row in case.rows]
    inputs = packed(case.rows)
    with case.backbone.attached(case.shared), torch.no_grad():
        mask = block_mask(case.rows, case.model)
        given = mask if family != "qwen3" else by_layer_type(case, mask)
        output = case.model(**inputs, attention_mask=given, use_cache=False)
    assert difference(parts(output.logits, case.rows), expected) <= EXACT


def by_layer_type(case: Way, mask: Tensor) -> dict[str, Tensor]:
    """Models whose layers differ take a mask for each kind."""
    window = case.family.window
    assert window is not None
    place = torch.arange(mask.shape[-1])
    near = place[:, None] - place < window
    return {"full_attention": mask, "sliding_attention": mask & near}


@pytest.mark.parametrize(("family", "windows"), PACKED)
def test_gradients_are_the_sum_of_the_sequences(family: str, windows: WindowPolicy) -> None:
    case = way(family, windows)
    prefix = case.shared
    half = len(prefix.keys)
    first = prefix.length if prefix.meta.positions == "offset" else 0
    wanted = [
        gradients_through_cache(
            case.family,
            case.model,
            list(prefix.keys),
            list(prefix.values),
            row,
            first_position=first,
            visible=case.windows == "visible",
        )[1]
        for row in case.rows
    ]
    leaves = [t.detach().clone().requires_grad_() for t in (*prefix.keys, *prefix.values)]
    live = Prefix(prefix.sites, tuple(leaves[:half]), tuple(leaves[half:]), prefix.meta)
    bound = bind(live, case.backbone.sites, live=True)
    with case.backbone.attached(None) as attachment, attachment.using(bound):
        logits = case.model(**packed(case.rows), use_cache=False).logits
    loss = sum(nll(p, r) for p, r in zip(parts(logits, case.rows), case.rows, strict=True))
    found = torch.autograd.grad(loss, leaves)
    for index, ours in enumerate(found):
        theirs = sum(gradients[index] for gradients in wanted)
        scale = float(theirs.abs().max())
        assert scale > 0
        assert float((ours - theirs).abs().max()) <= 1e-5 * max(scale, 1.0)
