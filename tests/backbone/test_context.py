"""How many tokens a model takes: what the model itself does with one more is the reference."""

from __future__ import annotations

import pytest
import torch

import foreword
from tests.conftest import tiny_model
from tests.kinds.families import BY_NAME, FAMILIES, Family
from tests.oracle.families import BY_NAME as DECODERS
from tests.tasks.models import CLASSIFY, marking_tokenizer

AVAILABLE = [family for family in FAMILIES if family.available]


def runs(backbone: foreword.Backbone, tokens: int) -> bool:
    """Whether the model takes so many tokens."""
    assert tokens < 600, "more would fill the memory"
    ids = torch.full((1, tokens), 5)
    kind = backbone._measured.kind
    try:
        with torch.no_grad():
            backbone.model(**kind.inputs(backbone.model, ids, torch.ones_like(ids)))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("family", AVAILABLE, ids=lambda family: family.name)
def test_the_context_is_what_the_model_has_places_for(family: Family) -> None:
    """RoBERTa's 514 rows hold 512 tokens; the config's number was a raw IndexError."""
    backbone = foreword.Backbone(family.build())
    if family.positions == "distance":
        backbone.model.config.n_positions = 64  # T5's own configs have one, and no table
        assert backbone.context == 2**31
        assert runs(backbone, 100)
    else:
        assert runs(backbone, backbone.context)
        if family.positions == "table":
            assert not runs(backbone, backbone.context + 1)


@pytest.mark.parametrize("name", ["gpt2", "opt", "biogpt"])
def test_a_decoders_table_is_measured_too(name: str) -> None:
    backbone = foreword.Backbone(DECODERS[name].build())
    assert backbone.positions == "offset"
    assert runs(backbone, backbone.context)
    assert not runs(backbone, backbone.context + 1)


def test_rotary_positions_are_what_the_config_was_made_for() -> None:
    assert foreword.Backbone(tiny_model()).context == 256
    assert foreword.Backbone(tiny_model(max_position_embeddings=99)).context == 99


def test_measuring_leaves_the_model_and_what_is_attached_alone() -> None:
    backbone = foreword.Backbone(BY_NAME["roberta"].build())
    prefix = backbone.capture([5, 6, 7])
    foreword.attach(backbone.model, prefix)
    ids = torch.tensor([[8, 9, 10]])
    with torch.no_grad():
        before = backbone.model(ids)[0]
        assert backbone.context == 63
        assert torch.equal(backbone.model(ids)[0], before)
    foreword.detach(backbone.model)


def test_long_texts_are_cut_to_the_places_that_there_are() -> None:
    """Training on long texts failed in the embedding, without a word of Foreword's."""
    family = Family("roberta", {**BY_NAME["roberta"].config, "vocab_size": 258, "pad_token_id": 1})
    tokenizer = marking_tokenizer()
    backbone = foreword.Backbone(family.build(), tokenizer, name="tiny-roberta")
    assert backbone.context == 62
    rows = [{**row, "text": row["text"] * 30} for row in CLASSIFY]
    result = foreword.train(backbone, rows, foreword.TrainSettings(length=4, steps=1))
    assert result.report.truncated_rows == len(rows)
    assert foreword.features(backbone, ["long " * 50]).shape == (1, 32)
