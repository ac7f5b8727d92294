"""A softmax of its own: against a formula written out by hand, rows alone, the cache, the base model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import foreword
from foreword.attention.bound import bind
from foreword.errors import UnsupportedModel
from tests.backbone.test_attach import close, ids, logits, together_equals_alone
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle.by_hand import by_hand
from tests.oracle.checks import checkpoint_activations
from tests.oracle.families import BY_NAME, attention_of


def own(backbone: foreword.Backbone, text: Tensor, **meta: object) -> foreword.Prefix:
    """The text's keys and values under a softmax of their own."""
    return backbone.capture(text.tolist()).with_meta(softmax="own", **meta)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_logits_and_gradients_are_those_of_the_formula(kernel: str) -> None:
    model = tiny_model()
    model.set_attn_implementation(kernel)
    backbone = foreword.Backbone(model, byte_tokenizer())
    text, row = ids(6, 9)
    prefix = own(backbone, text)
    leaves = [t.clone().requires_grad_() for t in (*prefix.keys, *prefix.values)]
    live = foreword.Prefix(prefix.sites, tuple(leaves[:3]), tuple(leaves[3:]), prefix.meta)

    def outcome() -> tuple[Tensor, tuple[Tensor, ...]]:
        found = model(row[None], use_cache=False).logits[0]
        return found.detach(), torch.autograd.grad(found.logsumexp(-1).sum(), leaves)

    with backbone.attached(None) as attachment, attachment.using(bind(live, backbone.sites)):
        found, gradients = outcome()
    with by_hand(live):
        wanted, wanted_gradients = outcome()
    with by_hand(live.with_meta(softmax="joint")):
        other, _ = outcome()
    assert close(found, wanted)
    assert not close(found, other)
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert bool(theirs.any())


def test_the_plain_kernel_gives_the_same_under_bfloat16() -> None:
    """It steps in for short training passes on the CPU in bfloat16: compared with SDPA without grad."""
    backbone = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer())
    text, row = ids(6, 9)
    prefix = own(backbone, text)
    leaves = tuple(key.clone().requires_grad_() for key in prefix.keys)
    live = foreword.Prefix(prefix.sites, leaves, prefix.values, prefix.meta)
    with backbone.attached(live):
        plain = backbone.model(row[None], use_cache=False).logits[0]
        usual = logits(backbone.model, row, use_cache=False)
    assert plain.requires_grad
    torch.testing.assert_close(plain.detach().float(), usual.float(), rtol=0.05, atol=0.3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_values_of_zero_are_the_base_model_bit_for_bit(family: str) -> None:
    spec = BY_NAME[family]
    backbone = foreword.Backbone(spec.build(attention_of(spec)))
    row = ids(20)[0] % 97
    wanted = logits(backbone.model, row)
    prefix = own(backbone, ids(5, seed=5)[0] % 97, positions="free")
    shut = dataclasses.replace(prefix, values=tuple(v * 0 for v in prefix.values))
    with backbone.attached(shut):
        assert torch.equal(logits(backbone.model, row), wanted)
    with backbone.attached(prefix):
        assert not close(logits(backbone.model, row), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_rows_of_both_kinds_and_of_none_equal_each_alone(family: str, side: str) -> None:
    spec = BY_NAME[family]
    backbone = foreword.Backbone(spec.build(attention_of(spec)))
    rows = [row % 97 for row in ids(20, 24, 22, 21, 23)]
    texts = [text % 97 for text in ids(6, 3, 8, 4, seed=5)]
    mixed = [
        own(backbone, texts[0]),
        None,
        backbone.capture(texts[1].tolist()),
        own(backbone, texts[2], windows="windowed"),
        own(backbone, texts[3]).only(["decoder.1"]),
    ]
    wanted = together_equals_alone(backbone, mixed, rows, side)
    plain = logits(backbone.model, rows[1])
    assert close(wanted[1], plain)


def test_a_window_drops_it_to_exactly_nothing() -> None:
    """Beyond the window nothing is seen: a softmax over nothing is not a number, or a mean."""
    backbone = foreword.Backbone(BY_NAME["mistral"].build())
    row = ids(24)[0] % 97
    text = ids(4, seed=5)[0] % 97
    windowed = own(backbone, text, windows="windowed").only(["decoder.2"])
    plain = logits(backbone.model, row)
    with backbone.attached(windowed):
        found = logits(backbone.model, row)
    # The last virtual token stands one before the text, and a query sees 9 tokens, itself included.
    assert torch.equal(found[8:], plain[8:])
    assert not any(close(a, b) for a, b in zip(found[:8], plain[:8], strict=True))


def test_cached_equals_uncached_and_generate_goes_on(tiny: foreword.Backbone) -> None:
    text, row = ids(6, 9)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    with tiny.attached(own(tiny, text)):
        cached = tiny.model.generate(row[None], **options)
        uncached = tiny.model.generate(row[None], use_cache=False, **options)
        static = tiny.model.generate(row[None], cache_implementation="static", **options)
        whole = logits(tiny.model, cached[0])
    assert torch.equal(cached, uncached)
    assert torch.equal(cached, static)
    assert torch.equal(whole[8:-1].argmax(-1), cached[0, 9:])


def test_checkpointed_gradients_are_the_plain_ones() -> None:
    text, row = ids(6, 9)

    def gradients(*, checkpointed: bool) -> tuple[Tensor, ...]:
        model = tiny_model()
        checkpoint_activations(model, enable=checkpointed)
        model.train(checkpointed)
        backbone = foreword.Backbone(model)
        prefix = own(backbone, text)
        values = tuple(value.clone().requires_grad_() for value in prefix.values)
        live = foreword.Prefix(prefix.sites, prefix.keys, values, prefix.meta)
        kept = [True, False, True, True, False, True]
        with backbone.attached(None) as attachment:
            attachment.bound = bind(live, backbone.sites, live=True, kept=kept)
            loss = model(row[None], use_cache=False).logits.logsumexp(-1).sum()
            attachment.bound = None
            return torch.autograd.grad(loss, values)

    for ours, theirs in zip(
        gradients(checkpointed=True), gradients(checkpointed=False), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert not theirs[:, 1].any()
        assert bool(theirs[:, 0].any())


def test_attention_weights_hold_both_softmaxes() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    backbone = foreword.Backbone(model)
    text, row = ids(5, 6)
    with backbone.attached([own(backbone, text), None]):
        weights = model(torch.stack([row, row]), output_attentions=True).attentions[1]
    assert tuple(weights.shape) == (2, 4, 6, 5 + 6)
    torch.testing.assert_close(weights[0, ..., :5].sum(-1), torch.ones(4, 6))
    torch.testing.assert_close(weights[0, ..., 5:].sum(-1), torch.ones(4, 6))
    assert not weights[1, ..., :5].any()


def test_attention_sinks_are_refused_by_name() -> None:
    backbone = foreword.Backbone(BY_NAME["gpt_oss"].build("eager"))
    with (
        backbone.attached(own(backbone, torch.tensor([5, 6, 7]))),
        pytest.raises(UnsupportedModel, match="GptOssAttention has attention sinks"),
    ):
        logits(backbone.model, ids(9)[0] % 97)


def test_a_position_bias_is_refused_by_name(tiny: foreword.Backbone) -> None:
    """As it is for a prefix that shares the softmax: what the bias of its columns is, is not known."""
    from foreword.attention.call import _refuse_what_cannot_be_apart

    module = tiny.model.model.layers[0].self_attn
    with pytest.raises(UnsupportedModel, match="LlamaAttention has learned biases"):
        _refuse_what_cannot_be_apart(module, {"position_bias": torch.zeros(1)})
