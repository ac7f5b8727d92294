"""IA3, adapters and full fine-tuning against peft, a formula, and plain PyTorch."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from torch import nn
from transformers import BertConfig, BertModel

import foreword
from foreword.errors import TrainingError
from foreword.methods.adapter import Adapter, AdapterMethod, AdapterSettings, adapted_layers
from foreword.methods.base import Method
from foreword.methods.full import FullMethod, FullSettings
from foreword.methods.ia3 import IA3Method, IA3Settings
from foreword.methods.registry import OWN
from foreword.objectives.settings import DataSettings
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from tests.conftest import MEMORY, byte_tokenizer, tiny_model
from tests.methods.by_hand import IDS, LOOP, TEXT, batch_of, train
from tests.peft.reference import PEFTS_OWN
from tests.tasks.models import ROWS as LABELLED
from tests.tasks.models import tiny_encoder
from tests.train.test_run import StopAt

Backbone = foreword.Backbone
METHODS: dict[str, tuple[Method[Any, Any], Any]] = {
    "ia3": (IA3Method(), IA3Settings(**TEXT)),
    "adapter": (AdapterMethod(), AdapterSettings(**TEXT, width=6)),
    "full": (FullMethod(), FullSettings(**TEXT)),
}


def logits_under(found: Any) -> torch.Tensor:
    with torch.no_grad(), found.start.applied(found.value) as applied:
        logits: torch.Tensor = applied.backbone.model(IDS).logits
        return logits


@PEFTS_OWN
def test_ia3_is_that_of_peft_used_by_hand(tiny: Backbone) -> None:
    found = fit(tiny, MEMORY, *METHODS["ia3"], LOOP)
    other = Backbone(tiny_model(), byte_tokenizer())
    batch = batch_of(other, *METHODS["ia3"])
    config = IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    model = get_peft_model(other.model, config).eval()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    train(parameters.values(), lambda ids, mask: model(ids, mask).logits, batch)
    assert len(found.value.tensors) == len(parameters) == 3 * 3
    for name, theirs in parameters.items():
        own = found.value.tensors[name.removeprefix("base_model.model.")]
        torch.testing.assert_close(own, theirs.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(logits_under(found), model(IDS).logits, rtol=1e-4, atol=1e-5)


class Bottlenecked(nn.Module):
    """A linear layer and an adapter after the formula x + W2 relu(W1 x + b1) + b2."""

    def __init__(self, linear: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.linear = linear
        down, up = adapter.down, adapter.up
        self.own = nn.ParameterList(
            p.detach().clone() for p in (down.weight, down.bias, up.weight, up.bias)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.linear(x)
        w1, b1, w2, b2 = self.own
        added: torch.Tensor = out + torch.relu(out @ w1.T + b1) @ w2.T + b2
        return added


def test_adapters_are_those_of_the_formula_behind_each_sublayer(tiny: Backbone) -> None:
    """Each in place of the layer that it stands behind, in a model that plain PyTorch trains."""
    method, settings = METHODS["adapter"]
    found = fit(tiny, MEMORY, method, settings, LOOP)
    other = Backbone(tiny_model(), byte_tokenizer())
    batch = batch_of(other, method, settings)
    torch.manual_seed(0)
    parameters = []
    for layer in other.model.model.layers:
        for holder, name in ((layer.self_attn, "o_proj"), (layer.mlp, "down_proj")):
            adapted = Bottlenecked(getattr(holder, name), Adapter(32, 6))
            setattr(holder, name, adapted)
            parameters += list(adapted.own)
    train(parameters, lambda ids, mask: other.model(ids, mask).logits, batch)
    for own, theirs in zip(found.value.tensors.values(), parameters, strict=True):
        torch.testing.assert_close(own, theirs.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        expected = other.model(IDS).logits
    torch.testing.assert_close(logits_under(found), expected, rtol=1e-4, atol=1e-5)


def test_adapters_have_the_published_numbers_of_parameters() -> None:
    """AdapterHub gives 894,528 after Pfeiffer and 1,789,056 after Houlsby for BERT base and M = 48."""
    with torch.device("meta"):
        model = BertModel(BertConfig())
    bert: Any = SimpleNamespace(model=model, name="", family="bert")
    counted = {
        places: sum(2 * one.width * 48 + one.width + 48 for one in adapted_layers(bert, places))  # type: ignore[arg-type]
        for places in ("pfeiffer", "houlsby")
    }
    assert counted == {"pfeiffer": 894_528, "houlsby": 1_789_056}
    assert sum(p.numel() for p in Adapter(768, 48).parameters()) == 2 * 768 * 48 + 768 + 48


def test_full_fine_tuning_is_that_of_plain_pytorch(tiny: Backbone) -> None:
    found = fit(tiny, MEMORY, *METHODS["full"], LOOP)
    other = Backbone(tiny_model(), byte_tokenizer())
    batch = batch_of(other, *METHODS["full"])
    model = copy.deepcopy(other.model).requires_grad_(True)
    train(model.parameters(), lambda ids, mask: model(ids, mask).logits, batch)
    for name, theirs in model.named_parameters():
        torch.testing.assert_close(found.value.tensors[name], theirs.detach(), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(logits_under(found), model(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_backbone_is_left_as_it_was(tiny: Backbone, name: str) -> None:
    before = {key: tensor.clone() for key, tensor in tiny.model.state_dict().items()}
    classes = [type(module) for module in tiny.model.modules()]
    logits = tiny.model(IDS).logits
    found = fit(tiny, MEMORY, *METHODS[name], LOOP)
    assert not torch.equal(logits_under(found), logits)
    assert torch.equal(tiny.model(IDS).logits, logits)
    after = tiny.model.state_dict()
    assert [type(module) for module in tiny.model.modules()] == classes
    assert set(after) == set(before)
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_to_the_same_bits(tiny: Backbone, tmp_path: Path, name: str) -> None:
    method, settings = METHODS[name]
    loop = LoopSettings(optimizer="adamw", lr=0.003, steps=6, checkpoint_every=2)
    whole = fit(tiny, MEMORY, method, settings, loop).value
    fit(tiny, MEMORY, method, settings, loop, folder=tmp_path, callbacks=[StopAt(3)])
    again = fit(tiny, MEMORY, method, settings, loop, folder=tmp_path, resume=True).value
    for key, tensor in whole.tensors.items():
        assert torch.equal(again.tensors[key], tensor)


@pytest.mark.parametrize("name", METHODS)
def test_a_head_is_trained_beside_it(name: str) -> None:
    method, settings = METHODS[name]
    changed = {"task": "classify", "prompt": None, "target": None}
    loop = LoopSettings(optimizer="adamw", lr=0.003, steps=30, batch_size=12)
    own = type(settings)(**{**settings.as_json(), **changed})
    found = fit(tiny_encoder(), LABELLED["classify"], method, own, loop)
    assert found.value.head is not None
    losses = [one["loss"] for one in found.history if "loss" in one]
    assert losses[-1] < 0.8 * losses[0]
    assert found.value.numbers == found.start.numbers == found.training["trained_parameters"]


def test_settings_are_checked() -> None:
    with pytest.raises(TrainingError, match="width must be"):
        AdapterSettings(**TEXT, width=0)
    with pytest.raises(TrainingError, match="places must be one of houlsby, pfeiffer"):
        AdapterSettings(**TEXT, places="everywhere")  # type: ignore[arg-type]


def test_settings_of_another_method_are_refused(tiny: Backbone) -> None:
    known = OWN["lora"]
    settings = OWN["adapter"].made(DataSettings(**TEXT))
    with pytest.raises(TrainingError, match="lora has .* LoraSettings; found AdapterSettings"):
        fit(tiny, MEMORY, known.method, settings, LoopSettings(steps=1))
