"""Text at an offset in decoders whose table of positions is computed, not learned.

M2M100 (NLLB) was attached without a word, and its first pass ended in an AttributeError.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
)

import foreword
from foreword.backbone import Backbone
from foreword.errors import UnsupportedModel
from tests.kinds.families import BART
from tests.oracle.checks import EXACT, difference

COMPUTED = ["m2m_100", "nllb-moe", "pegasus_x"]
SOURCE, TARGET = torch.arange(5, 13)[None], torch.arange(20, 27)[None]


def built(family: str) -> PreTrainedModel:
    """A tiny model; NLLB-MoE without experts."""
    changes = {"pad_token_id": 1, "bos_token_id": 0, "block_size": 4}
    sparse = {"encoder_sparse_step": 0, "decoder_sparse_step": 0, "num_experts": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**BART, **changes, **sparse})
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.requires_grad_(False)


def of_decoder(backbone: Backbone) -> foreword.Prefix:
    """A prefix at the decoder's own attention, at positions 0..P-1."""
    whole = backbone.capture([9, 8, 7], "offset")
    rows = zip(whole.sites, whole.keys, whole.values, strict=True)
    sites, keys, values = zip(*(row for row in rows if row[0].stack == "decoder"), strict=True)
    return foreword.Prefix(sites, keys, values, whole.meta)


def through_the_cache(model: PreTrainedModel, prefix: foreword.Prefix, target: Tensor) -> Tensor:
    """Logits with the prefix as the decoder's past, as PEFT hands it over."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for layer, pair in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.self_attention_cache.update(*(tensor[None] for tensor in pair), layer)
    with torch.no_grad():
        found: Tensor = model(
            input_ids=SOURCE, decoder_input_ids=target, past_key_values=cache, use_cache=True
        ).logits
    return found


@pytest.mark.parametrize("family", [*COMPUTED, "bart"])
def test_text_starts_behind_the_prefix(family: str) -> None:
    model = built(family)
    backbone = Backbone(model)
    prefix = of_decoder(backbone)
    expected = through_the_cache(model, prefix, TARGET)
    with torch.no_grad():
        bare = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    foreword.attach(model, prefix)
    with torch.no_grad():
        found = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits
        first = model(input_ids=SOURCE, decoder_input_ids=TARGET[:, :4], use_cache=True)
        rest = model(
            input_ids=SOURCE,
            decoder_input_ids=TARGET[:, 4:],
            past_key_values=first.past_key_values,
        ).logits
    assert difference([bare], [expected]) > 1e-3
    assert difference([found], [expected]) <= EXACT
    assert difference([rest], [expected[:, 4:]]) <= EXACT


@pytest.mark.parametrize("family", COMPUTED)
def test_a_computed_table_has_no_end(family: str) -> None:
    model = built(family)
    backbone = Backbone(model)
    prefix = of_decoder(backbone)
    long = torch.full((1, 70), 20)
    expected = through_the_cache(model, prefix, long)
    foreword.attach(model, prefix)
    with torch.no_grad():
        found = model(input_ids=SOURCE, decoder_input_ids=long).logits
    assert difference([found], [expected]) <= EXACT


def test_a_learned_table_has_one() -> None:
    model = built("bart")
    foreword.attach(model, of_decoder(Backbone(model)))
    with pytest.raises(UnsupportedModel, match="64 positions"):
        model(input_ids=SOURCE, decoder_input_ids=torch.full((1, 62), 20))
