"""Encoder-decoders: rows, loss, training, generation and figures."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import foreword
from foreword.backbone.kinds.base import IGNORED
from foreword.data import Collator, Task
from foreword.data.seq2seq import Seq2SeqEncoder
from foreword.errors import DataError, UnsupportedModel
from foreword.objectives.supervised import score
from tests.conftest import byte_tokenizer
from tests.kinds import checks
from tests.kinds.families import BY_NAME, T5

SETTINGS = {"prompt": "{mr} ->", "target": " {ref}", "length": 4, "batch_size": 4}


@pytest.fixture
def backbone() -> foreword.Backbone:
    torch.manual_seed(0)
    config = T5Config(**{**T5, "vocab_size": 258, "pad_token_id": 1, "eos_token_id": 1})
    model = T5ForConditionalGeneration(config).eval().requires_grad_(False)
    return foreword.Backbone(model, byte_tokenizer(), name="tiny-t5")


def encoder(backbone: foreword.Backbone, limit: int = 1000) -> Seq2SeqEncoder:
    assert backbone.tokenizer is not None
    return Seq2SeqEncoder(
        backbone.tokenizer, Task("{mr} ->", " {ref}"), bos=backbone.bos, limit=limit
    )


def test_the_loss_is_transformers_own(
    backbone: foreword.Backbone, rows: list[dict[str, str]]
) -> None:
    encoded, _ = encoder(backbone).rows(rows[:3])
    batch = Collator(0)(encoded)
    scores = score(backbone.model, batch)
    with torch.no_grad():
        expected = backbone.model(**batch).loss
    torch.testing.assert_close(scores.nll_N.mean(), expected)
    assert len(scores.nll_N) == int((batch["labels"] != IGNORED).sum())
    assert scores.row_N.tolist() == sorted(scores.row_N.tolist())
    for index, row in enumerate(encoded):  # a batch is its rows
        alone = score(backbone.model, Collator(0)([row])).nll_N
        torch.testing.assert_close(scores.nll_N[scores.row_N == index], alone)


def test_source_and_target_are_the_decoders_and_the_encoders(
    backbone: foreword.Backbone, rows: list[dict[str, str]]
) -> None:
    row = encoder(backbone).row(rows[0])
    spelled = backbone.tokenizer.decode  # type: ignore[union-attr]
    assert spelled(row.input_ids) == f"{rows[0]['mr']} ->"
    assert spelled(row.labels) == f" {rows[0]['ref']}</s>"
    long = {**rows[0], "mr": 3 * rows[0]["mr"]}
    whole, cut = encoder(backbone).row(long), encoder(backbone, 40).row(long)
    assert cut.input_ids == whole.input_ids[-40:]
    assert cut.truncated == len(whole.input_ids) - 40 > 0
    with pytest.raises(DataError, match="target has"):
        encoder(backbone, 4).row(rows[0])
    with pytest.raises(DataError, match="chat"):
        Seq2SeqEncoder(backbone.tokenizer, Task(None, None), bos="none", limit=9).uncut("x")


@pytest.mark.parametrize("sites", [None, "cross", "encoder,decoder"])
def test_training_learns_and_figures_follow(
    backbone: foreword.Backbone, rows: list[dict[str, str]], sites: str | None
) -> None:
    settings = foreword.TrainSettings(**SETTINGS, steps=30, lr=0.1, sites=sites)
    result = foreword.train(backbone, rows, settings)
    stacks = {site.stack for site in result.prefix.sites}
    assert stacks == set((sites or "encoder,decoder,cross").split(","))
    figures = foreword.evaluate(
        backbone, result.prefix, rows, options=foreword.GenerateOptions(max_new_tokens=5)
    )
    assert figures.base is not None
    assert figures.prefix.nll < figures.base.nll - 0.05
    (texts,) = foreword.generate(backbone, [rows[0]], result.prefix)
    assert len(texts) == 1


def test_what_only_decoders_do_is_refused() -> None:
    from foreword.engine import Engine

    case = checks.case(BY_NAME["bart"])
    with pytest.raises(UnsupportedModel, match="serving in mixed batches needs a decoder"):
        Engine(case.backbone)
    bert = checks.case(BY_NAME["bert"]).backbone
    with pytest.raises(
        UnsupportedModel, match="generating text needs a decoder or encoder-decoder"
    ):
        foreword.generate(bert, ["text"])
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(UnsupportedModel, match="predicts no text"):
        score(bert.model, {"input_ids": ids, "attention_mask": ids, "labels": ids})
