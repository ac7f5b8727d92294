"""Embeddings in front of what encoders read, on every family: they are what text there would be."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, BertModel

import foreword
from foreword.errors import BypassError, UnsupportedModel
from foreword.methods.in_front import in_front, prove, table_of
from foreword.methods.registry import OWN
from foreword.objectives.settings import DataSettings
from tests.conftest import MEMORY, byte_tokenizer
from tests.kinds import checks
from tests.kinds.checks import EXACT, MOVED, Case
from tests.kinds.families import BY_NAME, Family
from tests.kinds.test_oracle import EVERY, PAIRS
from tests.methods.by_hand import TEXT
from tests.methods.test_layers import state
from tests.tasks.models import ROWS as LABELLED
from tests.tasks.models import tiny_encoder

LENGTH = checks.LENGTH
PROMPTS = ("prompt-tuning", "p-tuning")


def learned(case: Case, length: int = LENGTH, seed: int = 3) -> Tensor:
    """Embeddings (P, D) that no token has, of the size of a token's."""
    table = table_of(case.backbone)
    generator = torch.Generator().manual_seed(seed)
    size = table(case.source).std()
    return torch.randn(length, table.weight.shape[1], generator=generator) * size


def under(case: Case, embeddings: Tensor, source: Tensor | None = None, **more: Any) -> Tensor:
    with in_front(case.backbone, embeddings):
        return case.run(case.source if source is None else source, case.target, **more)


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_texts_own_embeddings_in_front_are_the_text(family: Family, attention: str) -> None:
    if attention not in family.kernels:
        pytest.skip(f"{family.name} has no {attention}")
    case = checks.case(family, attention)
    own = table_of(case.backbone)(case.source[0, :LENGTH])
    for attached in (False, True):
        whole, rest = case.run(case.source, case.target), None
        if attached:
            with case.backbone.attached(None):
                rest = under(case, own, case.source[:, LENGTH:])
        else:
            rest = under(case, own, case.source[:, LENGTH:])
        assert checks.distance(rest, whole[:, LENGTH:] if case.is_encoder else whole) <= EXACT


@pytest.mark.parametrize("family", EVERY)
def test_embeddings_in_front_are_those_that_a_model_is_given_by_hand(family: Family) -> None:
    """Marian and Pegasus scale tokens after the table, and what they are given by hand not at all."""
    assert not getattr(AutoConfig.for_model(family.name, **family.config), "scale_embedding", False)
    case = checks.case(family)
    embeddings = learned(case)
    model: Any = case.model
    words = table_of(case.backbone)(case.source)
    inputs: dict[str, Any] = {"inputs_embeds": torch.cat([embeddings[None], words], dim=1)}
    if not case.is_encoder:
        inputs |= {"decoder_input_ids": case.target, "use_cache": False}
    with torch.no_grad():
        expected = model(**inputs)[0]
    found = under(case, embeddings)
    assert checks.distance(found, expected[:, LENGTH:] if case.is_encoder else expected) <= EXACT
    assert checks.distance(found, case.run(case.source, case.target)) > MOVED


@pytest.mark.parametrize("family", EVERY)
def test_a_batch_is_its_rows(family: Family) -> None:
    case = checks.case(family)
    embeddings, sizes = learned(case), (checks.TEXT, checks.TEXT - 4, checks.TEXT - 7)
    ids, mask = (torch.zeros(3, checks.TEXT, dtype=torch.long) for _ in range(2))
    for row, size in enumerate(sizes):
        ids[row, :size], mask[row, :size] = case.source[0, :size], 1
    with in_front(case.backbone, embeddings):
        together = case.run(ids, case.target.repeat(3, 1), attention_mask=mask)
        for row, size in enumerate(sizes):
            alone = case.run(ids[row : row + 1, :size], case.target)
            found = together[row : row + 1]
            own = found[:, :size] if case.is_encoder else found
            assert checks.distance(own, alone) <= EXACT


@pytest.mark.parametrize("family", EVERY)
def test_every_embedding_gets_a_gradient(family: Family) -> None:
    case = checks.case(family)
    embeddings = learned(case).requires_grad_()
    inputs = {"input_ids": case.source}
    if not case.is_encoder:
        inputs["decoder_input_ids"] = case.target
    with in_front(case.backbone, embeddings):
        out = case.model(**inputs)[0]
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((out * weights).sum(), [embeddings])
    assert torch.isfinite(gradient).all()
    assert bool(gradient.abs().amax(dim=-1).gt(0).all())


@pytest.mark.parametrize("family", EVERY)
def test_afterwards_the_model_is_as_it_was(family: Family) -> None:
    case = checks.case(family)
    before, kept = case.run(case.source, case.target), everything(case)
    assert not torch.equal(under(case, learned(case)), before)
    with pytest.raises(ZeroDivisionError), in_front(case.backbone, learned(case)):
        raise ZeroDivisionError
    assert everything(case) == kept
    assert torch.equal(case.run(case.source, case.target), before)


def everything(case: Case) -> list[Any]:
    """What a block might leave on a model, and what each of its modules has of its own."""
    modules = list(case.model.modules())
    hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in modules]
    return [*state(case.model), hooks, [sorted(module.__dict__) for module in modules]]


@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_and_without_a_cache_is_the_same(family: Family, beams: int) -> None:
    case = checks.case(family)
    source = torch.cat([case.source, case.source.flip(1)])
    mask = torch.ones_like(source)
    mask[1, -3:] = 0

    scores = partial(checks.written_scores, case.model, beams=beams)
    with in_front(case.backbone, learned(case)), case.backbone.inferring(None):
        cached, uncached = scores(source, mask), scores(source, mask, use_cache=False)
        alone = scores(source[1:, :-3], mask[1:, :-3])
    torch.testing.assert_close(cached, uncached, rtol=0, atol=1e-4)
    torch.testing.assert_close(alone, cached[1:], rtol=0, atol=1e-4)
    assert float((scores(source, mask) - cached).abs().max()) > MOVED


@pytest.mark.parametrize("family", EVERY)
@pytest.mark.parametrize("name", PROMPTS)
def test_a_family_is_started_and_left_as_it_was(family: Family, name: str) -> None:
    case, known = checks.case(family), OWN[name]
    backbone = foreword.Backbone(case.model, byte_tokenizer())
    before = everything(case)
    labelled = DataSettings(task="classify", prompt="{text}", target="{label}", pooling="mean")
    data = labelled if case.is_encoder else DataSettings(**TEXT)
    fields = {"init": "vocab"} if name == "prompt-tuning" else {}
    rows: Any = LABELLED["classify"] if case.is_encoder else MEMORY
    start = known.method.start(backbone, known.made(data, length=4, **fields), rows)
    assert start.in_front.length == 4
    assert start.numbers >= 4 * table_of(backbone).weight.shape[1]
    assert everything(case) == before


# -- what is refused ---------------------------------------------------------------------------------


class Counting(BertModel):
    """Adds to every hidden state what it counts of token ids, as no table of embeddings does."""

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        output = super().forward(input_ids=input_ids, **kwargs)
        assert input_ids is not None
        output.last_hidden_state = output.last_hidden_state + input_ids.sum() * 1e-9
        return output


class Alone(BertModel):
    """Looks up its words by itself."""

    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        words: Any = self.get_input_embeddings()
        return super().forward(inputs_embeds=words.weight[input_ids], **kwargs)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Counting, "move its output by .* no text to it"), (Alone, "no virtual tokens can be put")],
)
def test_a_model_to_which_embeddings_are_no_text_is_refused(kind: Any, said: str) -> None:
    model: Any = tiny_encoder().model
    model.__class__ = kind
    backbone = foreword.Backbone(model)
    before = state(model)
    with pytest.raises(UnsupportedModel, match=f"{said}.*Choose another method"):
        prove(backbone)
    assert state(model) == before


def test_ways_to_call_a_model_that_leave_them_out_are_refused() -> None:
    case = checks.case(BY_NAME["t5"])
    model: Any = case.model
    with torch.no_grad():
        made = model.get_encoder()(input_ids=case.source)
    words = table_of(case.backbone)(case.source)
    mask = torch.ones_like(case.source)
    with torch.no_grad(), in_front(case.backbone, learned(case)):
        with pytest.raises(BypassError, match="expected 5 virtual tokens more than the mask"):
            model(encoder_outputs=made, attention_mask=mask, decoder_input_ids=case.target)
        with pytest.raises(UnsupportedModel, match="without input_ids"):
            model(inputs_embeds=words, attention_mask=mask, decoder_input_ids=case.target)
        with pytest.raises(UnsupportedModel, match="mask of two dimensions"):
            model(case.source, mask[:, None, None].bool(), decoder_input_ids=case.target)
        inner = in_front(case.backbone, learned(case))
        with pytest.raises(BypassError, match="in front of this model's input already"), inner:
            pass
    assert "forward" not in table_of(case.backbone).__dict__


def test_positions_and_types_that_are_given_move_with_the_text() -> None:
    """Those of BERT, counted from 0, and of RoBERTa, from behind its padding token."""
    for name, first in (("bert", 0), ("roberta", 1)):
        case = checks.case(BY_NAME[name])
        embeddings = learned(case)
        places = torch.arange(first, first + checks.TEXT)[None]
        types = torch.zeros_like(places)
        given = under(case, embeddings, position_ids=places, token_type_ids=types)
        assert torch.equal(given, under(case, embeddings))
        tuples = under(case, embeddings, return_dict=False)
        assert torch.equal(tuples, given)


def test_a_forward_that_is_anothers_is_there_again() -> None:
    """The library accelerate puts one on the instance, where weights are offloaded."""
    case = checks.case(BY_NAME["bert"])
    table = table_of(case.backbone)
    own = table.forward
    embeddings, table.forward = learned(case), lambda ids: own(ids)
    placed = table.forward
    found = under(case, embeddings)
    assert table.__dict__["forward"] is placed
    del table.forward
    assert torch.equal(found, under(case, embeddings))
