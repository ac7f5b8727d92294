"""Figures read back from the JSON of an evaluation."""

from __future__ import annotations

import json

import pytest
import torch

import foreword
from foreword.cli.console import out
from foreword.cli.evaluate import label_figures
from foreword.errors import DataError
from foreword.evaluate.scores import scores_of
from foreword.head import Head


@pytest.fixture
def found(tiny: foreword.Backbone, rows) -> tuple[foreword.Prefix, dict]:
    prefix = tiny.capture("<s>abc")
    options = foreword.GenerateOptions(max_new_tokens=2)
    task = foreword.Task("{mr} ->", " {ref}")
    evaluation = foreword.evaluate(tiny, prefix, rows[:2], options=options, task=task)
    return prefix, json.loads(json.dumps(evaluation.as_json()))


def test_the_figures_come_back_and_anything_else_is_refused(found) -> None:
    prefix, printed = found
    scores = scores_of(printed, prefix)
    assert scores.prefix == printed["prefix"]
    assert scores.base == printed["base"]
    assert (scores.inputs, scores.rows, scores.data) == (2, 2, "")
    assert scores.same_weights
    assert scores_of({**printed, "base": None}, prefix).base is None
    other = prefix.with_meta(family="other")
    with pytest.raises(DataError, match=f"those of prefix '{prefix.digest[:12]}', expected"):
        scores_of(printed, other)
    for changes, message in (
        ({"digest": None}, "those of no prefix"),
        ({"prefix": [1]}, "'prefix' is not an object"),
        ({"base": "x"}, "'base' is not an object"),
        ({"prefix": {**printed["prefix"], "nll": float("nan")}}, "prefix.nll is not a finite"),
        ({"prefix": {**printed["prefix"], "bleu": True}}, "prefix.bleu is not a finite"),
        ({"base": {**printed["base"], "chrf": "9"}}, "base.chrf is not a finite"),
        ({"prefix": {**printed["prefix"], "nll": 10**400}}, "prefix.nll is not a finite"),
        ({"base": {}}, "base.nll is not a finite"),
        ({"inputs": 0}, "'inputs' is not a whole number"),
        ({"rows": 2.0}, "'rows' is not a whole number"),
        ({"tokenisation": "zh"}, "'tokenisation' is not an object"),
        ({"tokenisation": {"bleu": "spm"}}, "tokenisation.bleu is none of 13a, zh, char"),
    ):
        with pytest.raises(DataError, match=message):
            scores_of({**printed, **changes}, prefix)
    with pytest.raises(DataError, match="not a JSON object"):
        scores_of([printed], prefix)


def test_what_counts_as_a_word_stands_beside_the_figures(found) -> None:
    prefix, printed = found
    labels = [label for label, *_ in scores_of(printed, prefix).figures]
    assert {"BLEU", "ROUGE-L"} <= set(labels)
    said = {**printed, "tokenisation": {"bleu": "zh", "rouge_l": "unicode"}}
    labels = [label for label, *_ in scores_of(said, prefix).figures]
    assert {"BLEU (zh)", "ROUGE-L (unicode)"} <= set(labels)
    del printed["tokenisation"]  # as an earlier version printed it
    assert "BLEU" in [label for label, *_ in scores_of(printed, prefix).figures]


def test_figures_that_a_heads_tags_do_not_have_are_left_out_and_said(
    tiny: foreword.Backbone, capfd: pytest.CaptureFixture[str]
) -> None:
    """Numbers of classes had an entity F1 of 0 where every word was right."""
    head = Head("tag", ("0", "1"), None, torch.zeros(2, 32), torch.tensor([1.0, 0.0]))
    prefix = tiny.capture("<s>abc").with_head(head)
    rows = [{"tokens": ["a", "b"], "tags": [0, 1]}]
    evaluation = foreword.evaluate(tiny, prefix, rows)
    assert isinstance(evaluation, foreword.LabelEvaluation)
    assert evaluation.prefix["accuracy"] == 50
    assert "the tag '0' is a number" in evaluation.remarks[0]
    names = ["accuracy", "nll", "seconds"]
    assert [name for _, name, _ in evaluation.figures] == names
    scores = scores_of(json.loads(json.dumps(evaluation.as_json())), prefix)
    assert [name for _, name, _ in scores.figures] == names
    out.print(label_figures("numbers", evaluation))
    printed = capfd.readouterr().out
    assert "word accuracy" in printed
    assert "entity F1" not in printed
