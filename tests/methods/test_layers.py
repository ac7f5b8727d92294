"""Which layers methods add to, on every family of the oracle, and what is left when they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import foreword
from foreword.attention.checkpointing import CheckpointInEvaluation, CheckpointInFrame
from foreword.errors import ForewordError, TrainingError
from foreword.methods.layers import chosen_layers, last_layers, linear_layers
from foreword.methods.registry import OWN
from foreword.objectives.settings import DataSettings
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from tests.backbone.test_decoding import tiny_bart
from tests.conftest import MEMORY, byte_tokenizer, tiny_model
from tests.kinds.families import T5
from tests.methods.by_hand import TEXT
from tests.oracle.families import FAMILIES, Family, attention_of

Backbone = foreword.Backbone
ADDED = ("lora", "adapter", "ia3")
OUT_OF_REACH = {
    *("mixtral", "qwen3_moe", "gpt_oss", "qwen3_next", "llama4_text"),
    *("deepseek_v3", "jamba", "granitemoehybrid"),
}
"""Families whose MLPs adapters cannot stand behind: mixtures of experts."""


def gpt2() -> Backbone:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4, n_positions=256)
    return Backbone(GPT2LMHeadModel(config).eval(), byte_tokenizer())


def t5() -> Backbone:
    torch.manual_seed(0)
    config = T5Config(**{**T5, "vocab_size": 258, "pad_token_id": 1, "eos_token_id": 1})
    return Backbone(T5ForConditionalGeneration(config).eval(), byte_tokenizer())


def bfloat16() -> Backbone:
    return Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer())


def state(model: nn.Module) -> list[Any]:
    """All that a method might leave changed."""
    flags = [parameter.requires_grad for parameter in model.parameters()]
    return [list(model.state_dict()), [type(module) for module in model.modules()], flags]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_adapters_stand_where_a_sublayer_ends(family: Family) -> None:
    """What a layer adds to the residual stream is what its attention, and its MLP, gave last."""
    backbone = Backbone(family.build(attention_of(family)))
    if family.name in OUT_OF_REACH:
        with pytest.raises(TrainingError, match="choose another method"):
            last_layers(backbone)
        return
    attentions, mlps = last_layers(backbone)
    known = {one.name: backbone.model.get_submodule(one.name) for one in (*attentions, *mlps)}
    layers = {one.layer for one in linear_layers(backbone.model)}
    assert {one.layer for one in mlps} == layers
    for name, module in known.items():
        assert _is_last(backbone, name, module), name


def _is_last(backbone: Backbone, name: str, module: nn.Module) -> bool:
    """Whether no other linear layer of its attention or MLP runs after it."""
    order: list[str] = []
    mine = next(one for one in linear_layers(backbone.model) if one.name == name)
    hooks = [
        backbone.model.get_submodule(one.name).register_forward_hook(
            lambda *_, own=one.name: order.append(own)
        )
        for one in linear_layers(backbone.model)
        if one.name.rpartition(".")[0] == mine.name.rpartition(".")[0]
    ]
    with torch.no_grad():
        backbone.model(torch.tensor([[5, 6, 7]]))
    for hook in hooks:
        hook.remove()
    return order[-1] == name


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("name", ADDED)
def test_a_family_is_started_or_refused_in_words_and_left_as_it_was(
    family: Family, name: str
) -> None:
    backbone = Backbone(family.build(attention_of(family)))
    before = state(backbone.model)
    known = OWN[name]
    said = ""
    try:
        start = known.method.start(backbone, known.made(DataSettings(**TEXT)), MEMORY)
        with start.added() as (_, parameters):
            said = f"{len(parameters)} are added, choose"
    except ForewordError as error:
        said = str(error)
    assert "choose" in said.lower()
    assert state(backbone.model) == before


@pytest.mark.parametrize("make", [gpt2, t5, bfloat16], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", [*ADDED, "full"])
def test_other_kinds_of_models_learn(make: Any, name: str) -> None:
    backbone, known = make(), OWN[name]
    before = state(backbone.model)
    rate = {"full": 0.003, "ia3": 0.1}.get(name, 0.03)
    loop = LoopSettings(optimizer="adamw", lr=rate, steps=12, batch_size=12)
    found = fit(backbone, MEMORY, known.method, known.made(DataSettings(**TEXT)), loop)
    losses = [one["loss"] for one in found.history]
    assert losses[-1] < losses[0] - 0.02
    assert all(tensor.dtype == torch.float32 for tensor in found.value.tensors.values())
    assert state(backbone.model) == before


@pytest.mark.parametrize("name", [*ADDED, "prompt-tuning", "p-tuning"])
def test_gradient_checkpointing_changes_nothing(tiny: Backbone, name: str) -> None:
    known = OWN[name]
    settings = known.made(DataSettings(**TEXT))
    losses = []
    for checkpointed in (False, True):
        loop = LoopSettings(
            optimizer="adamw", lr=0.01, steps=3, gradient_checkpointing=checkpointed
        )
        losses.append(
            [one["loss"] for one in fit(tiny, MEMORY, known.method, settings, loop).history]
        )
    assert losses[0] == losses[1]


@pytest.mark.parametrize("make", [t5, tiny_bart], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["prefix", "lora"])
def test_checkpointed_layers_drop_nothing_out(make: Any, name: str) -> None:
    """Their configurations say 0.1, and they drop numbers out by the sign by which they checkpoint."""
    known, losses = OWN[name], []
    for checkpointed in (False, True):
        backbone = make()
        loop = LoopSettings(
            optimizer="adamw", lr=0.01, steps=2, gradient_checkpointing=checkpointed
        )
        settings = known.made(DataSettings(**TEXT))
        fitted = fit(backbone, MEMORY, known.method, settings, loop)
        losses.append([one["loss"] for one in fitted.history])
        assert not any(module.training for module in backbone.model.modules())
        assert not any(
            isinstance(value, CheckpointInEvaluation | CheckpointInFrame)
            for module in backbone.model.modules()
            for value in vars(module).values()
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_finished_run_with_checkpointing_is_found_finished(
    tiny: Backbone, tmp_path: Path
) -> None:
    """Nothing is checkpointed then, and there is nothing to undo."""
    known = OWN["lora"]
    settings = known.made(DataSettings(**TEXT))
    loop = LoopSettings(
        optimizer="adamw", lr=0.01, steps=2, checkpoint_every=1, gradient_checkpointing=True
    )
    values = [
        fit(tiny, MEMORY, known.method, settings, loop, folder=tmp_path / "run", resume=True).value
        for _ in range(2)
    ]
    for name, tensor in values[0].tensors.items():
        assert torch.equal(tensor, values[1].tensors[name])


def test_what_fails_in_the_middle_leaves_nothing(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    before, made = state(tiny.model), LoraModel._create_and_replace
    calls: list[int] = []

    def failing(self: Any, *args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of memory")
        return made(self, *args, **named)

    monkeypatch.setattr(LoraModel, "_create_and_replace", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        OWN["lora"].method.start(tiny, OWN["lora"].made(DataSettings(**TEXT)), MEMORY)
    assert state(tiny.model) == before


@pytest.mark.parametrize("name", [*ADDED, "full"])
def test_a_backbone_with_an_adapter_is_refused(name: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny_model()
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model)  # type: ignore[no-untyped-call]
    backbone, known = Backbone(model, byte_tokenizer()), OWN[name]
    loop = LoopSettings(steps=1)
    with pytest.raises(TrainingError, match="has an adapter of the peft library already"):
        fit(backbone, MEMORY, known.method, known.made(DataSettings(**TEXT)), loop)


@pytest.mark.parametrize("name", ["lora", "ia3", "prompt-tuning"])
def test_without_peft_it_says_what_to_install(
    tiny: Backbone, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    known = OWN[name]
    with pytest.raises(TrainingError, match="pip install 'foreword"):
        fit(tiny, MEMORY, known.method, known.made(DataSettings(**TEXT)), LoopSettings(steps=1))


def test_mixtures_of_experts_are_told_of() -> None:
    family = next(one for one in FAMILIES if one.name == "mixtral")
    backbone = Backbone(family.build(attention_of(family)))
    with pytest.raises(TrainingError, match="mixtures of experts .*targets='attention'"):
        chosen_layers(backbone, "all-linear")
    assert len(chosen_layers(backbone, "attention")) == 4 * backbone.model.config.num_hidden_layers


def test_attributes_are_refused_where_nothing_selects(tiny: Backbone) -> None:
    rows = [{**row, "food": "Thai"} for row in MEMORY]
    settings = OWN["lora"].made(DataSettings(**TEXT, attributes="food"))
    with pytest.raises(TrainingError, match="attributes are of control prefixes alone"):
        fit(tiny, rows, OWN["lora"].method, settings, LoopSettings(steps=1))
