"""The plain kernel against SDPA: outputs, gradients, and where it is chosen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import foreword
from foreword.attention import call as attention
from foreword.attention.kernels import FEW, LONGEST, grouped_attention, pays
from tests.conftest import MEMORY, byte_tokenizer, tiny_model


def tensors(heads: int, groups: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, heads * groups, 7, 12), (3, heads, 11, 12), (3, heads, 11, 5))
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def masks(heads: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(3, 1, 7, 11, generator=generator) > 0.4
    seen[..., 0] = True
    additive = torch.zeros(3, 1, 7, 11).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {
        "none": None,
        "boolean": seen,
        "additive": additive,
        "shared": seen[:1],
        "per head": seen.expand(3, heads, 7, 11).clone(),
    }


@pytest.mark.parametrize("mask", ["none", "boolean", "additive", "shared", "per head"])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_sdpa_in_outputs_and_gradients(
    mask: str, heads: int, groups: int, scaling: float | None
) -> None:
    query, key, value = tensors(heads, groups)
    chosen = masks(heads * groups)[mask]
    found = grouped_attention(query, key, value, chosen, scaling)
    repeated = [tensor.repeat_interleave(groups, dim=1) for tensor in (key, value)]
    expected = scaled_dot_product_attention(query, *repeated, attn_mask=chosen, scale=scaling)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad((found * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected.transpose(1, 2) * weight).sum(), (query, key, value))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_as_near_to_float32_as_sdpa_is() -> None:
    query, key, value = (t.detach() for t in tensors(3, 3))
    repeated = [tensor.repeat_interleave(3, dim=1) for tensor in (key, value)]
    exact = scaled_dot_product_attention(query, *repeated).transpose(1, 2)
    half = [t.bfloat16() for t in (query, key, value)]
    ours = grouped_attention(*half, None, None).float()
    theirs = scaled_dot_product_attention(half[0], *[r.bfloat16() for r in repeated])
    sdpa = float((theirs.transpose(1, 2).float() - exact).abs().max())
    assert float((ours - exact).abs().max()) <= 2 * sdpa


def test_it_is_chosen_on_a_cpu_in_bfloat16_only() -> None:
    query, key, _ = tensors(3, 3, torch.bfloat16)
    assert pays(query, key)
    assert not pays(query.float(), key.float())
    assert not pays(query.to("meta"), key.to("meta"))


def test_it_is_chosen_for_short_passes_and_for_few_queries() -> None:
    query, key, _ = tensors(3, 3, torch.bfloat16)
    many_keys = key.repeat(1, 1, LONGEST, 1)
    many_queries = query.repeat(1, 1, FEW, 1)
    assert pays(many_queries, key)
    assert not pays(query, many_keys)
    for with_gradients in (True, False):
        with torch.set_grad_enabled(with_gradients):
            assert pays(query.detach(), many_keys.detach())
            assert not pays(many_queries.detach(), many_keys.detach())


def test_decoding_with_it_follows_decoding_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    half = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer(), name="tiny")
    prefix = half.capture(half.tokens("a text in front"))
    ids = torch.tensor([half.tokens("what follows it")])
    used = []

    def counted(*args: object) -> Tensor:
        used.append(1)
        return grouped_attention(*args)

    def logits() -> Tensor:
        with half.attached(prefix), torch.no_grad():
            begun = half.model(input_ids=ids[:, :-1], use_cache=True)
            rest = half.model(input_ids=ids[:, -1:], past_key_values=begun.past_key_values)
        return rest.logits.float()

    monkeypatch.setattr(attention, "grouped_attention", counted)
    with_it = logits()
    assert used
    used.clear()
    monkeypatch.setattr(attention, "pays", lambda *_: False)
    torch.testing.assert_close(logits(), with_it, rtol=0.05, atol=0.02)
    assert not used


def test_training_with_it_follows_training_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", length=6, steps=6, lr=0.1)
    used = []

    def counted(*args: object) -> Tensor:
        used.append(1)
        return grouped_attention(*args)

    def losses() -> list[float]:
        half = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer(), name="tiny")
        return [entry["loss"] for entry in foreword.train(half, MEMORY, settings).history]

    monkeypatch.setattr(attention, "grouped_attention", counted)
    with_it = losses()
    assert len(used) == 6 * 3
    monkeypatch.setattr(attention, "pays", lambda *_: False)
    assert losses() == pytest.approx(with_it, rel=2e-3)
    assert len(used) == 6 * 3
