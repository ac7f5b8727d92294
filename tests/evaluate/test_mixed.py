"""`evaluate` under a mixture against figures computed row by row from the formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import foreword
from foreword.attention.attachment import attachment_of
from foreword.data import Task
from foreword.errors import MismatchError
from foreword.evaluate import evaluate
from foreword.generate import GenerateOptions, generate
from foreword.mixture import Mixture
from foreword.prefix import Prefix
from tests.backbone.test_decoding import tiny_bart
from tests.conftest import byte_tokenizer, tiny_model
from tests.evaluate.test_run import figures
from tests.mixed_passes import formula, said

TASK = Task("{mr} ->", " {ref}")
OPTIONS = GenerateOptions(max_new_tokens=8, batch_size=5)


@pytest.fixture
def prefixes(tiny: foreword.Backbone) -> list[Prefix]:
    texts = ("Restaurants in short: ", "Once upon a time")
    return [tiny.capture(text).with_meta(recipe=TASK.as_json()) for text in texts]


def test_figures_equal_those_computed_row_by_row(
    tiny: foreword.Backbone, prefixes: list[Prefix], rows: list[dict[str, str]]
) -> None:
    mixture = Mixture(((1.2, prefixes[0]), (-0.4, prefixes[1])))
    found = evaluate(tiny, mixture, rows, options=OPTIONS)
    nll, hits, count = 0.0, 0, 0
    for row in rows:
        prompt = tiny.tokenizer(f"{row['mr']} ->")["input_ids"]
        target = [*tiny.tokenizer(f" {row['ref']}")["input_ids"], 1]
        scores = formula(tiny, mixture, [*prompt, *target])[len(prompt) - 1 : -1]
        nll -= float(scores[range(len(target)), target].sum())
        hits += int((scores.argmax(-1) == torch.tensor(target)).sum())
        count += len(target)
    assert found.targets == count
    assert found.prefix.nll == pytest.approx(nll / count, rel=1e-6)
    assert found.prefix.perplexity == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert found.prefix.token_accuracy == pytest.approx(100 * hits / count)
    asked = [f"{row['mr']} ->" for row in rows]
    plain = Task("{input}", "{output}")
    assert found.outputs == [t[0] for t in generate(tiny, asked, mixture, OPTIONS, task=plain)]
    frozen = evaluate(tiny, prefixes[0], rows, options=OPTIONS).base
    assert found.base is not None
    assert figures(found.base) == figures(frozen)
    assert found.digest == mixture.digest
    assert found.same_weights
    assert attachment_of(tiny.model) is None


def test_a_mixture_of_one_branch_has_that_ones_figures(
    tiny: foreword.Backbone, prefixes: list[Prefix], rows: list[dict[str, str]]
) -> None:
    a, b = prefixes
    own = evaluate(tiny, a, rows, options=OPTIONS)
    found = evaluate(tiny, Mixture(((0, b), (1, a))), rows, options=OPTIONS)
    assert figures(found.prefix) == figures(own.prefix)
    assert found.outputs == own.outputs
    none = evaluate(tiny, Mixture(((0, a),)), rows, options=OPTIONS)
    assert figures(none.prefix) == figures(own.base)
    assert none.outputs == none.base_outputs == own.base_outputs


def test_a_prefix_that_stands_for_a_mixture_has_the_mixtures_figures(
    tiny: foreword.Backbone, prefixes: list[Prefix], rows: list[dict[str, str]]
) -> None:
    a, b = prefixes
    stands = foreword.concat(a.strength(1.2), b.strength(-0.4), combination="logits")
    own = evaluate(tiny, Mixture(((1.2, a), (-0.4, b))), rows, options=OPTIONS)
    found = evaluate(tiny, stands.with_meta(recipe=TASK.as_json()), rows, options=OPTIONS)
    assert figures(found.prefix) == figures(own.prefix)
    assert found.outputs == own.outputs
    assert found.digest == stands.with_meta(recipe=TASK.as_json()).digest


def test_each_branch_is_scored_with_the_bos_that_its_prefix_leaves_to_the_input(
    rows: list[dict[str, str]],
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    backbone = foreword.Backbone(tiny_model(), tokenizer, name="tiny")
    carries = backbone.capture("one text").with_meta(recipe=TASK.as_json())
    assert carries.meta.bos == "prefix"
    found = evaluate(backbone, Mixture(((0.6, carries),)), rows, options=OPTIONS)
    nll, count = 0.0, 0
    for row in rows:
        ids = [*tokenizer(f"{row['mr']} ->", add_special_tokens=False)["input_ids"]]
        target = tokenizer(f" {row['ref']}", add_special_tokens=False)["input_ids"] + [1]
        total = 0.6 * said(backbone, carries, [*ids, *target])[len(ids) - 1 : -1]
        total += 0.4 * said(backbone, None, [0, *ids, *target])[len(ids) : -1]
        nll -= float(total.log_softmax(-1)[range(len(target)), target].sum())
        count += len(target)
    assert found.prefix.nll == pytest.approx(nll / count, rel=1e-6)


def test_an_encoder_decoder_is_evaluated_too(rows: list[dict[str, str]]) -> None:
    backbone = tiny_bart(byte_tokenizer())
    one, two = (backbone.capture(text).with_meta(recipe=TASK.as_json()) for text in ("ab", "cde"))
    mixture = Mixture(((0.9, one), (-0.5, two)))
    found = evaluate(backbone, mixture, rows, options=OPTIONS)
    nll, count = 0.0, 0
    for row in rows:
        ids = backbone.tokenizer(f"{row['mr']} ->")["input_ids"]
        target = [*backbone.tokenizer(f" {row['ref']}")["input_ids"], 1]
        start = backbone.model.config.decoder_start_token_id
        scores = formula(backbone, mixture, ids, [start, *target[:-1]])
        nll -= float(scores[range(len(target)), target].sum())
        count += len(target)
    assert found.targets == count
    assert found.prefix.nll == pytest.approx(nll / count, rel=1e-6)


def test_a_prefix_that_does_not_fit_is_refused(
    tiny: foreword.Backbone, prefixes: list[Prefix], rows: list[dict[str, str]]
) -> None:
    smaller = foreword.Backbone(tiny_model(num_hidden_layers=2), byte_tokenizer(), name="smaller")
    other = smaller.capture("abc")
    with pytest.raises(MismatchError, match="made on 'smaller'"):
        evaluate(tiny, Mixture(((1, prefixes[0]), (0, other))), rows, options=OPTIONS)
    foreign = replace(prefixes[1].meta, fingerprint="0" * 64)
    mixture = Mixture(((1, prefixes[0]), (1, replace(prefixes[1], meta=foreign))))
    with pytest.raises(MismatchError, match="weights"):
        evaluate(tiny, mixture, rows, options=OPTIONS, strict=True)
    with pytest.warns(foreword.OtherWeights):
        found = evaluate(tiny, mixture, rows, options=OPTIONS)
    assert not found.same_weights
