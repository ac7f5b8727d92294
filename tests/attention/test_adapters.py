"""Families with an attention of their own: what attaching guarantees holds for them too.

That their numbers are right is the oracle's matter (test_families.py).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import foreword
from foreword.attention.adapters import adapt
from foreword.attention.adapters.table import both_ways
from foreword.attention.frame import Frame
from foreword.errors import BypassError, UnsupportedModel
from tests.oracle import checks
from tests.oracle.families import BY_NAME
from tests.oracle.own import OWN

TITLES = [family.title for family in OWN]
ALIBI = [family.title for family in OWN if family.alibi]


@pytest.fixture(params=TITLES)
def case(request: pytest.FixtureRequest) -> checks.Case:
    return checks.case(BY_NAME[request.param])


def state(model: nn.Module) -> dict[tuple[str, str], object]:
    """Everything that an adapter could leave behind."""
    found: dict[tuple[str, str], object] = {}
    for name, module in model.named_modules():
        found[name, "hooks"] = (len(module._forward_pre_hooks), len(module._forward_hooks))
        found[name, "config"] = id(module.__dict__.get("config"))
        found[name, "keys"] = frozenset(module.__dict__) - {"_foreword_measured"}
        for key, buffer in module._buffers.items():
            found[name, key] = (id(buffer), None if buffer is None else buffer._version)
    return found


def test_detach_leaves_nothing_and_gives_the_same_logits(case: checks.Case) -> None:
    model = case.model
    before, keys = state(model), list(model.state_dict())
    plain = checks.forward(case, None, "left")
    foreword.attach(model, case.prefix())
    assert list(model.state_dict()) == keys
    prefixed = checks.forward(case, case.prefix(), "left")
    assert checks.difference(prefixed, plain) > checks.MOVED
    foreword.detach(model)
    after = state(model)
    assert after == before
    again = checks.forward(case, None, "left")
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_the_cache_holds_real_tokens_only(case: checks.Case) -> None:
    row = case.rows[0][None]
    with case.backbone.attached(case.prefix()), torch.no_grad():
        cache = case.model(input_ids=row, use_cache=True).past_key_values
    assert cache.get_seq_length() == row.shape[1]
    assert {layer.keys.shape[2] for layer in cache.layers} == {row.shape[1]}


def test_an_attention_module_called_alone_is_seen(case: checks.Case) -> None:
    module = case.model.get_submodule(case.backbone.sites[0].name)
    width = case.model.get_input_embeddings().weight.shape[1]
    foreword.attach(case.model, case.prefix())
    with pytest.raises(BypassError, match=type(module).__name__):
        module(torch.zeros(1, 2, width), attention_mask=None)


def test_an_attention_module_that_is_skipped_is_seen(
    case: checks.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = case.backbone.sites[1].name
    foreword.attach(case.model, case.prefix())
    module = case.model.get_submodule(name)

    def instead(hidden_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, None]:
        return hidden_states, None

    monkeypatch.setattr(module, "forward", instead)
    with pytest.raises(BypassError, match="1 of 3 sites"):
        case.model(input_ids=case.rows[0][None])


def test_buffers_come_back_when_a_forward_fails(case: checks.Case) -> None:
    before = state(case.model)
    foreword.attach(case.model, case.prefix())
    last = case.model.get_submodule(case.backbone.sites[-1].name)

    def fails(*args: object) -> None:
        raise RuntimeError("no more memory")

    handle = last.register_forward_pre_hook(fails)
    with pytest.raises(RuntimeError, match="memory"):
        case.model(input_ids=case.rows[0][None])
    handle.remove()
    foreword.detach(case.model)
    assert state(case.model) == before


@pytest.mark.parametrize("title", [title for title in TITLES if title.startswith("falcon")])
def test_falcons_eager_path_is_exact_too(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ALiBi it is another function: it adds the bias to the scores and to the mask."""
    sdpa = checks.case(BY_NAME[title])
    monkeypatch.setattr("tests.oracle.checks.attention_of", lambda _: "eager")
    eager = checks.case(BY_NAME[title])
    assert eager.model.config._attn_implementation == "eager"
    same = checks.difference(
        checks.forward(eager, None, "left"), checks.forward(sdpa, None, "left")
    )
    assert (same > checks.MOVED) == eager.family.alibi
    assert checks.forward_error(eager, "left") <= checks.EXACT
    assert checks.gradient_error(eager) <= checks.EXACT


def test_prefix_and_text_may_be_longer_than_mpts_table_of_biases() -> None:
    """The model's table has max_seq_len columns, enough for the text; the prefix needs more."""
    family = BY_NAME["mpt"]
    short = replace(family, config={**family.config, "max_seq_len": max(checks.ROWS)})
    tight, wide = checks.case(short), checks.case(family)
    found = checks.forward(tight, tight.prefix(), "left")
    assert checks.difference(found, wide.references()) <= checks.EXACT


@pytest.mark.parametrize("title", ALIBI)
def test_alibi_needs_no_offset_and_takes_prefixes_that_have_one(title: str) -> None:
    """PEFT counts a prefix at 0..P-1 and the text from P on: with ALiBi that is the same."""
    case = checks.case(BY_NAME[title])
    prefix = case.prefix()
    free = checks.forward(case, prefix, "left")
    offset = checks.forward(case, prefix.with_meta(positions="offset"), "left")
    assert checks.difference(offset, free) == 0


@pytest.mark.parametrize("title", ["bloom", "falcon (alibi)"])
def test_a_prefix_without_its_distance_would_be_wrong(
    title: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All virtual tokens at the text's first position: what a bias of zero means."""
    case = checks.case(BY_NAME[title])
    prefix, expected = case.prefix(), case.references()
    places = Frame.places
    monkeypatch.setattr(Frame, "places", lambda *args: places(*args) * 0)
    found = checks.forward(case, prefix, "left")
    assert checks.difference(found, expected) > checks.MOVED


@pytest.mark.parametrize("title", ["gptj", "codegen"])
def test_tables_of_rotary_positions_go_on_before_zero(title: str) -> None:
    """Row p of the wider table holds position p, as the formula gives it."""
    case = checks.case(BY_NAME[title])
    module = case.model.get_submodule(case.backbone.sites[0].name)
    table = both_ways(module.embed_positions)
    frequencies = table.shape[1] // 2
    for position in (-95, -7, -1, 0, 5, 95):
        angle = position / 10000 ** (torch.arange(frequencies) / frequencies)
        row = table[position % len(table)]
        assert torch.allclose(row, torch.cat([angle.sin(), angle.cos()]), atol=1e-5)


@pytest.mark.parametrize("title", ["gptj", "codegen"])
def test_texts_longer_than_the_table_of_positions_are_refused(title: str) -> None:
    """Positions would wrap around, in silence."""
    case = checks.case(BY_NAME[title])
    with pytest.raises(UnsupportedModel, match="at most 95 tokens"):
        case.backbone.capture([5] * 96)
    assert case.backbone.capture([5] * 95).length == 95


@pytest.mark.parametrize("use_cache", [True, False])
def test_xglms_cross_attention_stays_its_own(use_cache: bool) -> None:
    """A prefix joins its self-attention only: it is what lies before the text, for any encoder."""
    family = BY_NAME["xglm"]
    case = checks.case(replace(family, config={**family.config, "add_cross_attention": True}))
    ids = case.rows[0][None]
    told = {"encoder_hidden_states": torch.ones(1, 4, 32), "use_cache": use_cache}
    with torch.no_grad():
        plain = case.model(input_ids=ids, **told).logits
        with case.backbone.attached(None):
            unbound = case.model(input_ids=ids, **told).logits
        with case.backbone.attached(case.prefix()):
            prefixed = case.model(input_ids=ids, **told)
    assert torch.equal(unbound, plain)
    assert len(case.backbone.sites) == 3
    assert float((prefixed.logits - plain).abs().max()) > checks.MOVED
    if use_cache:
        assert prefixed.past_key_values.self_attention_cache.get_seq_length() == ids.shape[1]
        assert prefixed.past_key_values.cross_attention_cache.get_seq_length() == 4


def test_remote_code_of_the_same_name_gets_no_adapter() -> None:
    class BloomAttention(nn.Module):
        pass

    assert adapt([BloomAttention()]) == []


def test_families_without_position_ids_refuse_an_offset_unless_they_have_alibi() -> None:
    case = checks.case(BY_NAME["bloom"])
    prefix = case.prefix().with_meta(positions="offset")
    with case.backbone.attached(prefix) as attachment:
        for adapter in attachment._adapters:
            adapter.relative = False
        with pytest.raises(UnsupportedModel, match="takes no position_ids"):
            case.model(input_ids=case.rows[0][None])
