"""transformers' text-generation pipeline over an attached model, against `foreword.generate`."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import decoders
from transformers import pipeline

import foreword
from foreword.data import Task

INPUTS = [
    "name[Zizzi], food[Thai]",
    "x",
    "name[The Cambridge Blue], near[Café Brazil], area",
    "Hi?",
]
PLAIN = Task("{input}", "{output}")


@pytest.fixture
def spelled(tiny: foreword.Backbone) -> foreword.Backbone:
    """The tiny backbone, whose texts have one character per token: equal texts are equal tokens."""
    tiny.tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    return tiny


def run(backbone: foreword.Backbone, **options: Any) -> list[str]:
    pipe = pipeline("text-generation", model=backbone.model, tokenizer=backbone.tokenizer)
    found = pipe(INPUTS, max_new_tokens=12, do_sample=False, return_full_text=False, **options)
    return [texts[0]["generated_text"].strip() for texts in found]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_pipeline_gives_what_generate_gives(spelled: foreword.Backbone, batch_size: int) -> None:
    prefix = spelled.capture("Restaurants are described here in one sentence each.")
    options = foreword.GenerateOptions(max_new_tokens=12)
    wanted = [texts[0] for texts in foreword.generate(spelled, INPUTS, prefix, options, task=PLAIN)]
    bare = [texts[0] for texts in foreword.generate(spelled, INPUTS, None, options, task=PLAIN)]
    foreword.attach(spelled, prefix)
    assert run(spelled, batch_size=batch_size) == wanted
    foreword.detach(spelled)
    assert run(spelled, batch_size=batch_size) == bare
    assert bare != wanted
