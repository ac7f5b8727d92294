"""Figures read back from the JSON of an evaluation."""

from __future__ import annotations

import json

import pytest

import foreword
from foreword.errors import DataError
from foreword.evaluate.scores import scores_of


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
    ):
        with pytest.raises(DataError, match=message):
            scores_of({**printed, **changes}, prefix)
    with pytest.raises(DataError, match="not a JSON object"):
        scores_of([printed], prefix)
