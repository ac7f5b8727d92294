"""Packed weights: the same products, and the model as it was afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreword.weights import packing
from foreword.weights.packing import packed
from tests.conftest import tiny_model

CAN = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and bool(
    torch.ops.mkldnn._is_mkldnn_bf16_supported()
)
needs_onednn = pytest.mark.skipif(not CAN, reason="this processor has no bfloat16 products")


def model() -> nn.Module:
    made: nn.Module = tiny_model(tie_word_embeddings=True).to(torch.bfloat16)
    return made


def logits(of: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = of(input_ids=torch.arange(3, 40)[None], use_cache=False).logits
    return out.float()


@needs_onednn
def test_packed_layers_give_what_the_layers_give() -> None:
    made = model()
    expected = logits(made)
    with packed(made) as layers:
        found = logits(made)
    assert layers == 3 * 7
    torch.testing.assert_close(
        found, expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max())
    )
    assert torch.equal(logits(made), expected)


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
def test_layers_that_read_the_same_are_one_product(bias: bool) -> None:
    made: nn.Module = tiny_model(attention_bias=bias).to(torch.bfloat16)
    expected = logits(made)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with packed(made, lambda: logits(made)) as layers:
        first: Any = made.model.layers[0]  # type: ignore[union-attr, index]
        products = [
            first.self_attn.q_proj.__dict__["forward"].func.__self__.layers,
            first.mlp.gate_proj.__dict__["forward"].func.__self__.layers,
        ]
        assert [len(each) for each in products] == [3, 2]
        found = logits(made)
        again = logits(made)
    assert layers == 3 * 7 + 1
    torch.testing.assert_close(
        found, expected, rtol=2**-6, atol=2**-6 * float(expected.abs().max())
    )
    assert torch.equal(again, found)
    assert all(torch.equal(made.state_dict()[name], tensor) for name, tensor in before.items())


class Changes(nn.Module):
    """Reads one tensor twice, and changes it in between."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(16, 8).bfloat16(), nn.Linear(16, 8).bfloat16()

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.clone()
        first: Tensor = self.one(inputs)
        return torch.cat([first, self.two(inputs.neg_())], dim=-1)


@needs_onednn
def test_layers_that_only_seem_to_read_the_same_stay_apart() -> None:
    torch.manual_seed(0)
    made = Changes()
    inputs = torch.randn(3, 16).bfloat16()
    expected = made(inputs)
    with packed(made, lambda: made(inputs)) as layers:
        assert layers == 2
        torch.testing.assert_close(made(inputs), expected, rtol=2**-6, atol=2**-6)


@needs_onednn
def test_a_layer_with_a_bias_and_more_than_two_dimensions() -> None:
    layer = nn.Linear(24, 10).bfloat16()
    inputs = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = layer(inputs)
    with packed(nn.Sequential(layer)):
        torch.testing.assert_close(layer(inputs), expected, rtol=2**-6, atol=2**-6)


@needs_onednn
def test_the_model_is_left_as_it_was_even_after_an_error() -> None:
    made = model()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    flags = {name: p.requires_grad for name, p in made.named_parameters()}
    with pytest.raises(RuntimeError, match="boom"), torch.inference_mode(), packed(made):
        raise RuntimeError("boom")
    after = made.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {name: p.requires_grad for name, p in made.named_parameters()} == flags
    assert not any(p.is_inference() for p in made.parameters())
    assert not any("forward" in module.__dict__ for module in made.modules())


@needs_onednn
def test_what_is_shared_wide_or_hooked_up_otherwise_stays() -> None:
    made: nn.Module = tiny_model()
    with packed(made) as layers:
        assert layers == 0  # float32
    half = model()
    head = half.get_output_embeddings()  # type: ignore[operator]
    first = half.model.layers[0].mlp.up_proj  # type: ignore[union-attr, index]
    first.forward = lambda inputs: nn.functional.linear(inputs, first.weight)
    with packed(half) as layers:
        assert layers == 3 * 7 - 1
        assert head.weight.device.type == first.weight.device.type == "cpu"
    assert "forward" in first.__dict__


@needs_onednn
def test_weights_that_pack_wrongly_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    expected = logits(made)
    monkeypatch.setattr(packing, "_alike", lambda *_: False)
    with packed(made) as layers:
        assert layers == 0
        assert torch.equal(logits(made), expected)


def test_without_the_operators_the_model_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_can_be_packed", lambda _: False)
    with packed(model()) as layers:
        assert layers == 0
