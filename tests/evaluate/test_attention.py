"""Attention given to a prefix: equal to what a text in the context gets."""

from __future__ import annotations

import pytest
import torch

import foreword
from foreword.errors import UnsupportedModel
from foreword.evaluate.attention import attention_to, summarised
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle.families import FAMILIES, LENGTH, Family

TEXT = "<s>Name the place."
INPUT = "name[Zizzi]"


@pytest.fixture(scope="module")
def eager() -> foreword.Backbone:
    model = tiny_model(attn_implementation="eager")
    return foreword.Backbone(model, byte_tokenizer(), name="tiny")


def in_context(
    backbone: foreword.Backbone, text: list[int], given: list[int]
) -> list[torch.Tensor]:
    """The frozen model's weights (1, A, Q, P + Q) where the text stands before the input."""
    ids = torch.tensor([text + given])
    with torch.no_grad():
        output = backbone.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True
        )
    return [weights[:, :, len(text) :] for weights in output.attentions]


def test_a_captured_text_gets_what_it_gets_in_the_context(eager: foreword.Backbone) -> None:
    prefix = eager.capture(TEXT)
    text, given = eager.tokens(TEXT), eager.tokens(INPUT)
    found = attention_to(eager, prefix, INPUT)
    reference = in_context(eager, text, given)
    assert found.sites == ("decoder.0", "decoder.1", "decoder.2")
    assert (found.inputs, len(found.tokens)) == (len(given), prefix.length)
    for heads, weights in zip(found.heads, reference, strict=True):
        wanted = weights[0, :, :, : len(text)].sum(-1).mean(-1)
        assert torch.tensor(heads) == pytest.approx(wanted.numpy(), abs=1e-5)
        assert all(0 < head <= 1 for head in heads)
    per_token = torch.stack(reference)[:, 0, :, :, : len(text)].mean((0, 1, 2))
    assert torch.tensor(found.tokens) == pytest.approx(per_token.numpy(), abs=1e-5)
    assert found.mean == pytest.approx(sum(found.tokens), abs=1e-5)
    assert found.mean == pytest.approx(per_token.sum().item(), abs=1e-5)

    other = in_context(eager, eager.tokens("<s>Zyx wvu tsrqp."), given)
    moved = torch.tensor(found.heads[1]) - other[1][0, :, :, : len(text)].sum(-1).mean(-1)
    assert moved.abs().max() > 1e-2


# Recurrent layers carry a text on by themselves, and chunks would cut it.
LIKE_TEXT = [family for family in FAMILIES if not (family.recurrent or family.chunked)]


@pytest.mark.parametrize("family", LIKE_TEXT, ids=lambda family: family.title)
def test_every_family_gives_a_texts_weights(family: Family) -> None:
    backbone = foreword.Backbone(family.build("eager"), byte_tokenizer(), name=family.name)
    text = list(range(10, 10 + LENGTH))
    prefix = backbone.capture(text).with_meta(windows="windowed")  # as text is
    given = [20, 31, 17, 44, 5, 63]
    ids = torch.tensor([given])
    with torch.no_grad(), backbone.attached(prefix):
        output = backbone.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True
        )
    labels = [site.label for site in backbone.sites]
    found = summarised(labels, output.attentions, set(labels), prefix.length)
    for heads, weights in zip(found.heads, in_context(backbone, text, given), strict=True):
        wanted = weights[0, :, :, : len(text)].sum(-1).mean(-1)
        assert torch.tensor(heads) == pytest.approx(wanted.numpy(), abs=1e-5)


def test_the_input_goes_through_the_prefixs_template(eager: foreword.Backbone) -> None:
    prefix = eager.capture(TEXT)
    plain = attention_to(eager, prefix, "x ->")
    recipe = {"prompt": "{mr} ->", "target": " {ref}"}
    made = prefix.with_meta(recipe=recipe)
    assert attention_to(eager, made, "x").heads == plain.heads
    assert attention_to(eager, made, {"mr": "x"}).heads == plain.heads
    assert attention_to(eager, made, "xy").heads != plain.heads


def test_sites_without_the_prefix_are_blank() -> None:
    torch.manual_seed(0)
    weights = [torch.rand(1, 4, 5, 7).softmax(-1), torch.rand(1, 2, 5, 5).softmax(-1)]
    found = summarised(["decoder.0", "decoder.1"], weights, {"decoder.0"}, 2)
    assert found.heads[1] is None
    assert found.heads[0] == pytest.approx(weights[0][0, :, :, :2].sum(-1).mean(-1).numpy())
    assert found.top(5) == [("decoder.0", pytest.approx(found.mean))]
    assert found.as_json()["sites"]["decoder.1"] is None
    assert found.inputs == 5


def test_top_sites_come_first(eager: foreword.Backbone) -> None:
    found = attention_to(eager, eager.capture(TEXT), INPUT)
    means = [mean for _, mean in found.top(3)]
    assert means == sorted(means, reverse=True)
    assert len(found.top(2)) == 2
    assert sum(means) / 3 == pytest.approx(found.mean)


def test_what_has_no_weights_is_refused(
    tiny: foreword.Backbone, eager: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tiny.capture(TEXT)
    with pytest.raises(UnsupportedModel, match="needs eager attention"):
        attention_to(tiny, prefix, INPUT)
    with pytest.raises(UnsupportedModel, match="a softmax of its own"):
        attention_to(eager, prefix.with_meta(softmax="own"), INPUT)
    with monkeypatch.context() as patch:
        patch.setattr(type(eager.model.model.layers[1].self_attn), "forward", without_weights())
        with pytest.raises(UnsupportedModel, match="'llama' gives the attention weights of 0 of"):
            attention_to(eager, prefix, INPUT)


def without_weights() -> object:
    """Llama's attention, which keeps its weights to itself."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    real = LlamaAttention.forward

    def forward(self: LlamaAttention, *args: object, **kwargs: object) -> tuple[object, None]:
        return real(self, *args, **kwargs)[0], None

    forward.__wrapped__ = real
    return forward
