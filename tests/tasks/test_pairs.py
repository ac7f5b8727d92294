"""Pairs of texts: encoded as the tokenizer encodes them, learned, used, kept, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

import foreword
from foreword.card import card
from foreword.cli.main import main
from foreword.data import Encoded, Task
from foreword.data.collate import Collator
from foreword.errors import DataError, PrefixError, TrainingError
from foreword.head import Head
from foreword.objectives.encode import encode, rows_digest
from foreword.objectives.task import for_task
from foreword.predict import features, head_logits, predict
from foreword.tasks import LABELLINGS, Classified, Reader, reader_for
from tests.tasks.models import CLASSIFY, save_folder, tiny_encoder

classify = LABELLINGS["classify"]
WORDS = ("cat", "dog", "sits", "runs", "here", "there", "no", "one")
PAIRS = [
    {"text": f"{one} {act}", "text_pair": f"{other} {act} {where}", "label": other}
    for one in ("cat", "dog")
    for other in ("cat", "dog")
    for act in ("sits", "runs")
    for where in ("here", "there")
]
RENAMED = [
    {"premise": row["text"], "hypothesis": row["text_pair"], "gold": row["label"]} for row in PAIRS
]
TEMPLATES = {"prompt": "{premise}", "pair": "{hypothesis}", "target": "{gold}"}
TEXTS = Task("{text}", "{label}", "{text_pair}")
SETTINGS = foreword.TrainSettings(length=4, steps=150, batch_size=8, lr=0.1)


def changed(**fields: object) -> foreword.TrainSettings:
    return foreword.TrainSettings(**{**SETTINGS.as_json(), **fields})


def word_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """One token per word, with marks as BERT or RoBERTa has them."""
    names = {"bert": ("[CLS]", "[SEP]", "[PAD]", "[UNK]"), "roberta": ("<s>", "</s>", "<pad>", "?")}
    cls, sep, pad, unknown = names[family]
    vocabulary = {word: place for place, word in enumerate((pad, cls, sep, unknown, *WORDS))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [(cls, 1), (sep, 2)]
    between = f"{sep}:0 $B:1 {sep}:1" if family == "bert" else f"{sep} {sep} $B {sep}"
    inner.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}", pair=f"{cls} $A {between}", special_tokens=marks
    )
    types = ["token_type_ids"] if family == "bert" else []
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        cls_token=cls,
        sep_token=sep,
        pad_token=pad,
        unk_token=unknown,
        model_input_names=["input_ids", *types, "attention_mask"],
    )


def backbone_of(family: str = "bert") -> foreword.Backbone:
    """A random encoder; BERT's two token types differ much."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 12,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    model: Any
    if family == "bert":
        model = BertModel(BertConfig(**sizes), add_pooling_layer=False)
    else:
        model = RobertaModel(RobertaConfig(**sizes, type_vocab_size=1), add_pooling_layer=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "position" not in name:
                parameter.mul_(5)
    return foreword.Backbone(
        model.eval().requires_grad_(False), word_tokenizer(family), name=f"tiny-{family}"
    )


def own_logits(
    backbone: foreword.Backbone, prefix: foreword.Prefix | None, head: Head, row: dict[str, Any]
) -> Tensor:
    """By transformers' own call of its own tokenizer's output, the mean of one pair's tokens."""
    assert backbone.tokenizer is not None
    inputs = backbone.tokenizer(row["text"], row["text_pair"], return_tensors="pt")
    with backbone.attached(prefix), torch.no_grad():
        states = backbone.model.base_model(**inputs)[0][0]
    return torch.nn.functional.linear(states.mean(dim=0), head.weight, head.bias)


@pytest.fixture(scope="module")
def trained() -> foreword.Prefix:
    """A prefix that tells which animal the second text is about, whatever the first says."""
    return foreword.train(backbone_of(), PAIRS, SETTINGS).prefix


# -- how pairs are encoded ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_pair_is_what_the_tokenizer_makes_of_it(family: str) -> None:
    backbone = backbone_of(family)
    assert backbone.tokenizer is not None
    reader = reader_for(backbone, "none", 40)
    for row in PAIRS:
        own = backbone.tokenizer(row["text"], row["text_pair"])
        reading = reader.pair(str(row["text"]), str(row["text_pair"]))
        assert reading.ids == own["input_ids"]
        assert reading.types == own.get("token_type_ids")
        assert reading.cut == 0
    assert (reading.types is not None) == (family == "bert")
    marks = [token for token in reading.ids if token in (1, 2)]
    assert marks == ([1, 2, 2] if family == "bert" else [1, 2, 2, 2])


def test_a_model_without_types_is_given_none() -> None:
    """RoBERTa's embeddings know one type of token; another tokenizer's second would be out of range."""
    roberta, bert = backbone_of("roberta"), backbone_of()
    mixed = foreword.Backbone(roberta.model, bert.tokenizer)
    assert reader_for(mixed, "none", 40).pair("cat", "dog").types is None


def test_what_does_not_fit_is_cut_from_the_longer_text() -> None:
    tokenizer = word_tokenizer("bert")
    reader = Reader(tokenizer, True, "none", 9, typed=True)
    first, second = "cat sits", "dog runs here there no one cat"
    reading = reader.pair(first, second)
    own = tokenizer(first, second, truncation="longest_first", max_length=9)
    assert (reading.ids, reading.types) == (own["input_ids"], own["token_type_ids"])
    assert (len(reading.ids), reading.cut) == (9, 3)
    assert tokenizer.decode(reading.ids) == "[CLS] cat sits [SEP] dog runs here there [SEP]"
    with pytest.raises(DataError, match="3 tokens leave no room for a pair of texts"):
        Reader(tokenizer, True, "none", 3).pair(first, second)
    with pytest.raises(DataError, match="its texts have no tokens"):
        reader.pair("", "")
    assert tokenizer.decode(reader.pair("cat", "").ids) == "[CLS] cat [SEP]"


def test_a_decoder_reads_both_as_one_text(tiny: foreword.Backbone) -> None:
    reader = reader_for(tiny, "none", 40)
    assert reader.pair("a cat", "a dog").ids == reader.read("a cat\na dog").ids
    assert reader.pair("a cat", "a dog").types is None


def test_types_are_padded_with_the_rest() -> None:
    rows = [Encoded([1, 4, 2, 5, 2], [0], types=[0, 0, 0, 1, 1]), Encoded([1, 4, 2], [1])]
    assert Collator(0)(rows)["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0] * 5]
    assert "token_type_ids" not in Collator(0)(rows[1:])


def test_the_digest_of_rows_knows_types_and_leaves_others_as_they_were() -> None:
    plain, typed = Encoded([1, 2], [0]), Encoded([1, 2], [0], types=[0, 1])
    assert rows_digest([plain]) != rows_digest([typed])
    other = Encoded([1, 2], [0], types=[0, 0])
    assert rows_digest([typed]) != rows_digest([other])


# -- what is learned ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_pairs_are_learned_whatever_their_columns_are_called(family: str) -> None:
    backbone = backbone_of(family)
    by_default = foreword.train(backbone, PAIRS, SETTINGS).prefix
    named = foreword.train(backbone, RENAMED, changed(**TEMPLATES)).prefix
    for prefix, rows in ((by_default, PAIRS), (named, RENAMED)):
        found = foreword.evaluate(backbone, prefix, rows, base=False)
        assert isinstance(found, foreword.LabelEvaluation)
        assert found.prefix["accuracy"] > 90
    assert by_default.head is not None
    assert by_default.head.pair
    assert by_default.meta.recipe["pair"] == "{text_pair}"
    assert all(
        torch.equal(one, other)
        for one, other in zip(by_default.tensors, named.tensors, strict=True)
    )


def test_a_decoder_learns_pairs(tiny: foreword.Backbone) -> None:
    prefix = foreword.train(tiny, PAIRS, changed(steps=3)).prefix
    assert prefix.head is not None
    assert (prefix.head.pair, prefix.head.pooling) == (True, "last")
    named = foreword.train(tiny, RENAMED, changed(**TEMPLATES, steps=3)).prefix
    assert named.meta.recipe["task"] == "classify"
    joined = [{"text": f"{r['text']}\n{r['text_pair']}", "label": r["label"]} for r in PAIRS]
    alone = foreword.train(tiny, joined, changed(steps=3)).prefix
    for one, other in zip(prefix.tensors, alone.tensors, strict=True):
        assert torch.equal(one, other)


def test_one_text_is_read_as_it_was() -> None:
    """Its settings, rows and head have no word of pairs, so digests and recipes are what they were."""
    backbone = tiny_encoder()
    settings = for_task(backbone, SETTINGS, CLASSIFY)
    assert "pair" not in settings.as_json()
    prefix = foreword.train(backbone, CLASSIFY, changed(steps=1)).prefix
    assert prefix.head is not None
    assert set(prefix.head.describe()) == {"task", "labels", "pooling", "width"}
    assert all(row.types is None for row in encode(backbone, CLASSIFY, settings, prefix)[0])
    chosen = changed(prompt="{text}", target="{label}")
    assert for_task(backbone, chosen, PAIRS).pair is None


def test_a_resumed_run_must_have_the_same_pair(tmp_path: Path) -> None:
    backbone, more = backbone_of(), {"steps": 4, "checkpoint_every": 2}
    foreword.train(backbone, RENAMED, changed(**TEMPLATES, **more), folder=tmp_path / "run")
    foreword.train(
        backbone, RENAMED, changed(**TEMPLATES, **more), folder=tmp_path / "run", resume=True
    )
    alone = {name: text for name, text in TEMPLATES.items() if name != "pair"}
    with pytest.raises(TrainingError, match="had pair='{hypothesis}', now it is None"):
        foreword.train(
            backbone, RENAMED, changed(**alone, **more), folder=tmp_path / "run", resume=True
        )


def test_a_head_for_one_text_starts_anew_for_two(tmp_path: Path, trained: foreword.Prefix) -> None:
    foreword.save_prefix(trained, tmp_path / "p.safetensors")
    rows = [{"text": row["text"], "label": row["label"]} for row in PAIRS]
    settings = changed(init=str(tmp_path / "p.safetensors"), length=None, steps=1)
    assert trained.head is not None
    kept = foreword.train(backbone_of(), PAIRS, settings).prefix.head
    fresh = foreword.train(backbone_of(), rows, settings).prefix.head
    assert kept is not None
    assert fresh is not None
    assert kept.pair
    assert not fresh.pair
    near = (kept.weight - trained.head.weight).abs().max()
    assert near < (fresh.weight - trained.head.weight).abs().max()


# -- how it is used ----------------------------------------------------------------------------------


def test_logits_are_those_of_transformers_own_pass(trained: foreword.Prefix) -> None:
    backbone, head = backbone_of(), trained.head
    assert head is not None
    for prefix in (trained, None):
        expected = [own_logits(backbone, prefix, head, row).softmax(dim=-1) for row in PAIRS]
        reader = reader_for(backbone, "none", 30)
        readings = [one for row in PAIRS for one in classify.read(reader, TEXTS, row)]
        found = head_logits(backbone, prefix, head, readings, 3)
        for logits, probabilities in zip(found, expected, strict=True):
            torch.testing.assert_close(logits.softmax(dim=-1), probabilities, rtol=1e-4, atol=1e-5)
    for row, one in zip(PAIRS, predict(backbone, PAIRS, trained), strict=True):
        assert isinstance(one, Classified)
        expected_row = own_logits(backbone, trained, head, row).softmax(dim=-1).tolist()
        assert list(one.probabilities.values()) == pytest.approx(expected_row, abs=1e-5)


def test_inputs_are_rows_or_their_json(trained: foreword.Prefix) -> None:
    backbone, row = backbone_of(), {name: PAIRS[0][name] for name in ("text", "text_pair")}
    assert predict(backbone, row, trained) == predict(backbone, [json.dumps(row)], trained)
    with pytest.raises(
        DataError, match="pair template '{text_pair}' names the columns text, text_"
    ):
        predict(backbone, ["cat"], trained)
    with pytest.raises(DataError, match="input 1: template '{text_pair}' names column 'text_pair'"):
        predict(backbone, [{"text": "cat"}], trained)
    with pytest.raises(DataError, match="row 1 has no column 'text_pair'"):
        foreword.evaluate(backbone, trained, [{"text": "cat", "label": "cat"}])


def test_features_of_pairs_are_pooled_hidden_states(trained: foreword.Prefix) -> None:
    backbone = backbone_of()
    assert backbone.tokenizer is not None
    for prefix in (None, trained):
        vectors = features(backbone, [*PAIRS[:3], "cat sits"], prefix)
        for row, vector in zip(PAIRS, vectors[:3], strict=False):
            inputs = backbone.tokenizer(row["text"], row["text_pair"], return_tensors="pt")
            with backbone.attached(prefix), torch.no_grad():
                states = backbone.model(**inputs)[0][0]
            torch.testing.assert_close(vector, states.mean(dim=0), rtol=1e-4, atol=1e-5)
        alone = features(backbone, "cat sits", prefix)[0]
        torch.testing.assert_close(alone, vectors[3], rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="a pair of texts is a row with text and text_pair"):
        features(backbone, [{"a": "x"}])


def test_a_file_gives_back_what_reads_pairs(trained: foreword.Prefix, tmp_path: Path) -> None:
    foreword.save_prefix(trained, tmp_path / "p.safetensors")
    loaded = foreword.load_prefix(tmp_path / "p.safetensors")
    assert loaded.digest == trained.digest
    assert b'"version":"4"' in (tmp_path / "p.safetensors").read_bytes()
    assert predict(backbone_of(), PAIRS, loaded) == predict(backbone_of(), PAIRS, trained)
    assert "the second by `" in card(trained, "me/pairs")


def test_the_command_line_reads_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    backbone = backbone_of()
    save_folder(backbone, tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, RENAMED)))
    options = [part for name, text in TEMPLATES.items() for part in (f"--{name}", text)]
    sizes = ["--length", "4", "--steps", "150", "--batch-size", "8", "--lr", "0.1"]
    model = ["--backbone", str(tmp_path / "model"), "--dtype", "float32"]
    assert main(["train", str(data), "--name", "same", *options, *sizes, *model]) == 0
    capfd.readouterr()
    for place in ("--input", None):
        given = ["--input", str(data)] if place else [json.dumps(RENAMED[0])]
        assert main(["predict", "same", *given]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert lines[0].split()[0] == str(RENAMED[0]["gold"])
        assert len(lines) == (len(RENAMED) if place else 1)
    assert main(["evaluate", "same", str(data)]) == 0
    assert "accuracy %" in capfd.readouterr().out
    out = str(tmp_path / "vectors.safetensors")
    assert main(["predict", "same", "--input", str(data), "--features", out]) == 0
    assert "16 vectors of 32" in capfd.readouterr().err
    assert main(["inspect", "same"]) == 0
    assert "classify pairs of texts: 2 labels (cat, dog)" in capfd.readouterr().out


# -- where they do not belong ------------------------------------------------------------------------


def test_what_pairs_cannot_be_used_for_is_refused() -> None:
    with pytest.raises(
        TrainingError,
        match="pair is only used with task='classify' or task='regress' or task='multilabel'; found",
    ):
        for_task(backbone_of(), changed(**TEMPLATES, task="tag"), RENAMED)
    with pytest.raises(DataError, match="the pair template '{b}' needs a prompt template"):
        changed(pair="{b}")
    with pytest.raises(DataError, match="the pair template 'b' names no column"):
        changed(prompt="{a}", target="{c}", pair="b")
    with pytest.raises(PrefixError, match="a head that reads pairs of texts classifies them"):
        Head("tag", ("a", "b"), None, torch.zeros(2, 4), torch.zeros(2), pair=True)
    with pytest.raises(DataError, match="row 2 has no value in column 'text_pair'"):
        foreword.train(backbone_of(), [PAIRS[0], {**PAIRS[1], "text_pair": None}], SETTINGS)
