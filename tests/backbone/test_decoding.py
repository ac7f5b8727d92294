"""What a model's own generation config says of decoding changes no text of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

import foreword
from foreword.backbone.decoding import neutral
from foreword.generate import GenerateOptions, generate
from tests.conftest import byte_tokenizer
from tests.kinds.families import BART

INPUTS = ["name[Zizzi], food[Thai]", "x"]
AUTHORS: dict[str, Any] = {
    "min_length": 56,
    "min_new_tokens": 30,
    "max_length": 9,
    "early_stopping": True,
    "do_sample": True,
    "num_beams": 4,
    "num_return_sequences": 2,
    "temperature": 3.0,
    "top_k": 7,
    "min_p": 0.2,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.1,
    "repetition_penalty": 2.5,
    "encoder_repetition_penalty": 2.0,
    "length_penalty": 4.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "bad_words_ids": [[70], [71, 72]],
    "forced_bos_token_id": 65,
    "forced_eos_token_id": 67,
    "suppress_tokens": list(range(2, 250, 2)),
    "begin_suppress_tokens": list(range(3, 250, 2)),
    "exponential_decay_length_penalty": (1, 9.0),
    "renormalize_logits": True,
    "prompt_lookup_num_tokens": 3,
    "stop_strings": ["e"],
    "return_dict_in_generate": True,
    "output_scores": True,
}
"""One value of each kind that changes texts, or what `generate` returns."""


def tiny_bart(tokenizer: Any = None, **changes: Any) -> foreword.Backbone:
    """A random BART over bytes."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    sizes |= {"max_position_embeddings": 160, "decoder_start_token_id": 1}
    config = BartConfig(**{**BART, **sizes, **changes})
    model = BartForConditionalGeneration(config).eval().requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "position" not in name:
                parameter.mul_(3)
    return foreword.Backbone(model, tokenizer or byte_tokenizer(), name="tiny-bart")


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_the_models_own_options_change_no_text(kind: str, tiny: foreword.Backbone) -> None:
    """bart-large-cnn's own minimum of 56 tokens made every short answer wrong."""
    backbone = tiny if kind == "decoder" else tiny_bart()
    asked = [
        GenerateOptions(max_new_tokens=12),
        GenerateOptions(max_new_tokens=12, num_beams=3, num_return_sequences=2),
        GenerateOptions(max_new_tokens=12, do_sample=True, top_k=0, seed=3),
    ]
    expected = [generate(backbone, INPUTS, options=options) for options in asked]
    assert len({str(texts) for texts in expected}) == len(asked)
    own = backbone.model.generation_config
    before = own.to_dict()
    for name, value in AUTHORS.items():
        setattr(own, name, value)
    if kind == "decoder":
        found = [generate(backbone, INPUTS, options=options) for options in asked]
    else:
        with pytest.warns(UserWarning, match="forced_bos_token_id=65"):
            found = [generate(backbone, INPUTS, options=options) for options in asked]
    assert found == expected
    assert own.to_dict() == {**before, **own.to_dict(), **AUTHORS}, "the config is left as it is"


def test_padding_stays_a_word_that_is_not_written(tiny: foreword.Backbone) -> None:
    """Marian's padding has a logit of zero that nothing trained, and its config forbids it."""
    own = tiny.model.generation_config
    own.bad_words_ids = [[1]]
    assert neutral(tiny.model, 1) == {}
    assert neutral(tiny.model, 0) == {"bad_words_ids": None}
    own.bad_words_ids = [[1], [70]]
    assert neutral(tiny.model, 1) == {"bad_words_ids": None}


def test_how_fast_the_model_decodes_is_its_own_affair(tiny: foreword.Backbone) -> None:
    own = tiny.model.generation_config
    own.use_cache, own.cache_implementation = False, "static"
    assert neutral(tiny.model, 1) == {}
    tiny.model.generation_config = None
    assert neutral(tiny.model, 1) == {}
