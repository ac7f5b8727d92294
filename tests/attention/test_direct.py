"""`model.forward(...)` called by its name: where the model is the only one of transformers, too.

sentence-transformers calls it so. No hook ran, and BertModel's attention was refused with advice that
did not apply.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

import foreword
from foreword.prefix import Positions

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
LONE = ["bert", "mpnet", "llama", "gpt2", "modernbert"]
IDS = torch.tensor([[17, 60, 4, 9, 2, 33], [8, 41, 5, 6, 0, 0]])
MASK = (IDS != 0).long()


def lone(family: str) -> PreTrainedModel:
    """A bare model: no other of transformers around or inside it."""
    torch.manual_seed(0)
    sizes = (
        {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4} if family == "gpt2" else SIZES
    )
    model = AutoModel.from_config(AutoConfig.for_model(family, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.requires_grad_(False)


def prefix_of(model: PreTrainedModel) -> foreword.Prefix:
    return foreword.Backbone(model).capture([5, 9, 44])


def states(call: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = call(input_ids=IDS, attention_mask=MASK)[0]
    return found


class Pooled(nn.Module):
    """Sentence vectors as a library around a model makes them."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.takes = set(inspect.signature(model.forward).parameters)

    def forward(self, **features: Tensor) -> Tensor:
        known = {name: value for name, value in features.items() if name in self.takes}
        tokens = self.model.forward(**known, return_dict=True).last_hidden_state
        mask = features["attention_mask"][..., None]
        pooled: Tensor = (tokens * mask).sum(1) / mask.sum(1)
        return pooled


@pytest.mark.parametrize("family", LONE)
def test_forward_gives_what_a_call_gives(family: str) -> None:
    model = lone(family)
    bare = states(model)
    assert torch.equal(states(model.forward), bare)
    signature = inspect.signature(model.forward)
    foreword.attach(model, prefix_of(model))
    wanted = states(model)
    assert float((wanted - bare).abs().max()) > 1e-3
    assert torch.equal(states(model.forward), wanted)
    assert inspect.signature(model.forward) == signature
    foreword.detach(model)
    assert torch.equal(states(model.forward), bare)
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("positions", ["free", "offset"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_sentence_vectors_are_those_of_the_model_called(family: str, positions: Positions) -> None:
    model = lone(family)
    pooled = Pooled(model)
    foreword.attach(model, prefix_of(model).with_meta(positions=positions))
    tokens = states(model)
    wanted = (tokens * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    with torch.no_grad():
        unknown = torch.zeros(1)
        found = pooled(input_ids=IDS, attention_mask=MASK, sentence_indices=unknown)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_prefix_is_trained_through_forward() -> None:
    gradients = []
    for name in ("__call__", "forward"):
        model = lone("bert")
        trained = foreword.attach_trainable(model, prefix_of(model))
        call = getattr(model, name)
        call(input_ids=IDS, attention_mask=MASK).last_hidden_state[:, 0].pow(2).sum().backward()
        gradients.append([p.grad for p in trained.parameterization.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        assert float(theirs.abs().max()) > 0
        assert torch.equal(ours, theirs)


def test_a_copy_runs_its_own_model() -> None:
    model = lone("bert")
    foreword.attach(model, prefix_of(model))
    wanted = states(model)
    twin = copy.deepcopy(model)
    foreword.detach(model)
    bare = states(model.forward)
    assert torch.equal(states(twin.forward), wanted)
    assert not torch.equal(bare, wanted)
    foreword.detach(twin)
    assert torch.equal(states(twin.forward), bare)


@pytest.mark.parametrize("first", ["the prefix", "accelerate"])
def test_accelerate_may_replace_forward_before_or_after(first: str) -> None:
    model = lone("bert")
    bare, prefix = states(model), prefix_of(model)
    foreword.attach(model, prefix)
    wanted = states(model)
    foreword.detach(model)
    if first == "the prefix":
        foreword.attach(model, prefix)
        cpu_offload(model, execution_device="cpu")
    else:
        cpu_offload(model, execution_device="cpu")
        foreword.attach(model, prefix)
    assert torch.equal(states(model), wanted)
    assert torch.equal(states(model.forward), wanted)
    foreword.detach(model)
    assert torch.equal(states(model.forward), bare)
    remove_hook_from_submodules(model)
    assert torch.equal(states(model), bare)


def test_it_compiles_in_one_graph() -> None:
    torch._dynamo.reset()
    model = lone("bert")
    foreword.attach(model, prefix_of(model))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=False)
    torch.testing.assert_close(states(compiled), states(model), rtol=1e-5, atol=1e-5)
    explained = torch._dynamo.utils.counters["graph_break"]
    assert not any("forward" in reason for reason in explained), explained
    torch._dynamo.reset()
