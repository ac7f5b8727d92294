"""The oracle on every encoder and encoder-decoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartForSequenceClassification,
)

import foreword
from foreword.errors import BypassError, RowsError, UnsupportedModel
from tests.kinds import checks
from tests.kinds.checks import EXACT, MOVED
from tests.kinds.families import BY_NAME, ENCODER_DECODERS, FAMILIES, Family

EVERY = [
    pytest.param(family, id=family.name, marks=() if family.available else pytest.mark.skip)
    for family in FAMILIES
]
PAIRS = [param for param in EVERY if param.values[0] in ENCODER_DECODERS]


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_texts_own_keys_and_values_split_off_are_the_text(family: Family, attention: str) -> None:
    if attention not in family.kernels:
        pytest.skip(f"{family.name} has no {attention}")
    case = checks.case(family, attention)
    assert case.backbone.kind == family.kind
    if case.is_encoder:
        assert checks.split_error(case, ("encoder",)) <= EXACT
        return
    assert checks.split_error(case, ("encoder", "cross", "decoder")) <= EXACT
    assert checks.split_error(case, ("encoder", "cross")) <= EXACT
    assert checks.split_error(case, ("decoder",)) <= EXACT
    assert checks.split_error(case, ("cross",)) <= EXACT


@pytest.mark.parametrize("family", EVERY)
def test_deliberate_mistakes_are_seen(family: Family) -> None:
    assert min(checks.controls(checks.case(family)).values()) > MOVED


@pytest.mark.parametrize("family", EVERY)
def test_every_tensor_gets_a_gradient(family: Family) -> None:
    for gradient in checks.gradients(checks.case(family)):
        assert torch.isfinite(gradient).all()
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("family", EVERY)
def test_a_batch_is_its_rows(family: Family) -> None:
    case = checks.case(family)
    assert checks.rows_error(case) <= EXACT
    if family.positions != "table":  # padding moves text in a table, with or without a prefix
        assert checks.rows_error(case, "left") <= EXACT


@pytest.mark.parametrize("family", EVERY)
def test_a_file_gives_back_the_prefix(family: Family, tmp_path: Path) -> None:
    case = checks.case(family)
    _, prefix = checks.whole(case)
    foreword.save_prefix(prefix, tmp_path / "p.safetensors")
    loaded = foreword.load_prefix(tmp_path / "p.safetensors")
    assert loaded.digest == prefix.digest
    found = []
    for one in (prefix, loaded):
        with case.backbone.attached(one):
            found.append(case.run(case.source, case.target))
    assert torch.equal(*found)


@pytest.mark.parametrize("family", EVERY)
def test_detaching_leaves_the_model_as_it_was(family: Family) -> None:
    case = checks.case(family)
    before = case.run(case.source, case.target)
    _, prefix = checks.whole(case)
    foreword.attach(case.model, prefix)
    assert not torch.equal(case.run(case.source, case.target), before)
    foreword.detach(case.model)
    assert torch.equal(case.run(case.source, case.target), before)


@pytest.mark.parametrize("family", EVERY)
def test_a_layer_that_is_skipped_is_an_error(family: Family) -> None:
    case = checks.case(family)
    _, prefix = checks.whole(case)
    parts = prefix.sites[-1].name.split(".")
    number = max(index for index, part in enumerate(parts) if part.isdigit())
    while number > 1 and parts[number - 2].isdigit():
        number -= 2
    whole = case.model.get_submodule(".".join(parts[: number - 1]))
    layers = getattr(whole, parts[number - 1])
    if len(layers) == 1:
        pytest.skip("its layers are one module")
    with case.backbone.attached(prefix):
        setattr(whole, parts[number - 1], layers[:-1])
        with pytest.raises(BypassError, match="not attended to at"):
            case.run(case.source, case.target)


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_and_without_a_cache_is_the_same(family: Family, beams: int) -> None:
    case = checks.case(family)
    _, prefix = checks.whole(case)
    short = checks.shortened(prefix, 3)
    source = torch.cat([case.source, case.source.flip(1)])

    scores = partial(checks.written_scores, case.model, beams=beams)
    with case.backbone.attached([prefix, short]):
        cached, uncached = scores(source), scores(source, use_cache=False)
    torch.testing.assert_close(cached, uncached, rtol=0, atol=1e-4)
    with case.backbone.attached(prefix):
        torch.testing.assert_close(scores(source[:1]), cached[:1], rtol=0, atol=1e-4)
    assert float((scores(source) - cached).abs().max()) > MOVED


@pytest.mark.parametrize("family", PAIRS)
def test_labels_alone_are_enough(family: Family) -> None:
    case = checks.case(family)
    _, prefix = checks.whole(case)
    with case.backbone.attached(prefix), torch.no_grad():
        by_labels = case.model(input_ids=case.source, labels=case.target)
        made = case.model.prepare_decoder_input_ids_from_labels(labels=case.target)
        by_hand = case.model(input_ids=case.source, decoder_input_ids=made)
    torch.testing.assert_close(by_labels.logits, by_hand.logits)


def test_rows_must_be_as_many_as_prefixes() -> None:
    case = checks.case(BY_NAME["bert"])
    _, prefix = checks.whole(case)
    with case.backbone.attached([prefix, prefix]), pytest.raises(RowsError, match="2 rows"):
        case.run(case.source, case.target)


def test_a_shared_module_is_one_site() -> None:
    family = BY_NAME["albert"]
    config = {**family.config, "num_hidden_layers": 3}
    backbone = foreword.Backbone(Family("albert", config).build())
    assert [site.label for site in backbone.sites] == ["encoder.0"]
    case = checks.Case(family, backbone, *(checks.case(family).source,) * 2)
    _, prefix = checks.whole(case)
    before = case.run(case.source, case.target)
    with backbone.attached(prefix):
        assert checks.distance(case.run(case.source, case.target), before) > MOVED


@pytest.mark.parametrize(
    "auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification]
)
def test_an_encoder_with_a_head_of_its_own(auto: Any) -> None:
    family = BY_NAME["bert"]
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model("bert", **family.config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    prefix = foreword.Backbone(model.bert).capture([5, 6, 7])
    backbone = foreword.Backbone(model)
    assert backbone.kind == "encoder"
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 0]]), torch.tensor([[1] * 4, [1, 1, 1, 0]])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        with backbone.attached(prefix):
            found = model(input_ids=ids, attention_mask=mask).logits
            alone = model(input_ids=ids[1:, :3]).logits
    assert checks.distance(found, before) > MOVED
    own = found[1:, :3] if found.dim() == 3 else found[1:]
    torch.testing.assert_close(own, alone, rtol=0, atol=EXACT)


def test_a_model_that_a_few_tokens_do_not_run_on_is_refused() -> None:
    """Its head wants as many ends of sequence in the source as in the output."""
    config = AutoConfig.for_model("bart", **BY_NAME["bart"].config, num_labels=3)
    with pytest.raises(UnsupportedModel, match="does not run on a few tokens"):
        foreword.Backbone(BartForSequenceClassification(config).eval())
