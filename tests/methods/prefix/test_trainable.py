"""attach_trainable: a child of the model while it trains, identities of caches, and a clean way back."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

import foreword
from foreword.errors import CacheError, MismatchError, TrainingError, UnsupportedModel
from foreword.methods.prefix.parameterization import Parameterization
from foreword.methods.prefix.trainable import in_own_units
from foreword.prefix import Prefix
from tests.conftest import tiny_model
from tests.oracle.checks import checkpoint_activations

ROW = torch.tensor([[17, 60, 4, 99, 201, 33, 8, 120]])


@pytest.fixture
def start(tiny: foreword.Backbone) -> Prefix:
    return tiny.capture([5, 9, 44, 21])


def logits(model: nn.Module, row: Tensor = ROW) -> Tensor:
    with torch.no_grad():
        return model(row).logits


def step(model: nn.Module, trained: foreword.Trainable, lr: float = 1.0) -> float:
    """One step of gradient descent."""
    loss = model(ROW, labels=ROW).loss
    loss.backward()
    torch.optim.SGD(trained.parameterization.parameters(), lr).step()
    model.zero_grad()
    return loss.item()


def test_at_the_start_it_is_the_prefix_it_started_from(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    with tiny.attached(start):
        wanted = logits(tiny.model)
    trained = foreword.attach_trainable(tiny, start)
    torch.testing.assert_close(logits(tiny.model), wanted, rtol=1e-5, atol=1e-5)
    first = step(tiny.model, trained)
    assert step(tiny.model, trained) < first
    assert float((logits(tiny.model) - wanted).abs().max()) > 1e-4
    value = trained.prefix()
    assert value.meta == start.meta
    assert not any(t.requires_grad for t in (*value.keys, *value.values))
    assert any(t.requires_grad for t in trained.materialise().keys)


def test_zeros_can_be_started_from(tiny: foreword.Backbone, start: Prefix) -> None:
    zeros = tuple(torch.zeros_like(key) for key in start.keys)
    nothing = Prefix(start.sites, zeros, tuple(map(torch.zeros_like, start.values)), start.meta)
    assert in_own_units(nothing).key_scales == [1.0] * 3
    trained = foreword.attach_trainable(tiny, nothing)
    first = step(tiny.model, trained)
    assert step(tiny.model, trained) < first


def test_the_state_dict_holds_the_model_and_the_prefix(
    tiny: foreword.Backbone, start: Prefix, tmp_path: Path
) -> None:
    """Checkpoints restore both; `from_pretrained` still finds the model."""
    own = set(tiny.model.state_dict())
    trained = foreword.attach_trainable(tiny, start)
    step(tiny.model, trained)
    state = tiny.model.state_dict()
    added = set(state) - own
    assert len(added) == 6
    assert all(name.startswith("foreword_prefix.") for name in added)
    tiny.model.save_pretrained(tmp_path)
    wanted = logits(tiny.model)
    model, found = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(found["unexpected_keys"]) == added
    assert not found["missing_keys"]
    foreword.attach(model, trained.prefix())
    torch.testing.assert_close(logits(model), wanted, rtol=1e-5, atol=1e-5)
    twin = tiny_model()
    foreword.attach_trainable(twin, start)
    twin.load_state_dict(state)
    assert torch.equal(logits(twin), wanted)


# -- caches ------------------------------------------------------------------------------------------


def test_a_cache_lives_as_long_as_the_parameters_stay(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    trained = foreword.attach_trainable(tiny, start)
    model = tiny.model
    with torch.no_grad():
        cache = model(ROW[:, :5], use_cache=True).past_key_values
        rest = model(ROW[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(rest, logits(model)[:, 5:], rtol=1e-5, atol=1e-5)
    before = trained.identity
    step(model, trained)
    assert trained.identity != before
    with pytest.raises(CacheError, match="empty cache"):
        model(ROW[:, 5:], past_key_values=cache)
    state = trained.parameterization.state_dict()
    before = trained.identity
    trained.parameterization.load_state_dict(state)
    assert trained.identity != before


def test_generate_while_training_is_generate_under_the_value(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    trained = foreword.attach_trainable(tiny, start)
    tiny.model.train()
    step(tiny.model, trained, lr=30.0)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "num_beams": 2}
    tiny.model.eval()
    found = tiny.model.generate(ROW, **options)
    foreword.attach(tiny, trained.prefix())
    assert torch.equal(tiny.model.generate(ROW, **options), found)
    foreword.detach(tiny)
    assert not torch.equal(tiny.model.generate(ROW, **options), found)


class Counted(Parameterization):
    """A prefix times one number; counts how often it is made."""

    def __init__(self, start: Prefix) -> None:
        super().__init__()
        self.start = start
        self.strength = nn.Parameter(torch.ones(()))
        self.made = 0

    def materialise(self) -> Prefix:
        self.made += 1
        keys = tuple(key * self.strength for key in self.start.keys)
        return Prefix(self.start.sites, keys, self.start.values, self.start.meta)


def test_a_value_is_made_anew_where_it_must_be(tiny: foreword.Backbone, start: Prefix) -> None:
    """Each pass with gradients has its own graph; evaluation makes it once for each value."""
    own = Counted(start).eval()
    trained = foreword.attach_trainable(tiny, own)
    own.made = 0
    tiny.model.generate(ROW, max_new_tokens=5, do_sample=False, pad_token_id=1, eos_token_id=None)
    assert own.made == 1
    step(tiny.model, trained)
    step(tiny.model, trained)
    assert own.made == 3
    logits(tiny.model)
    assert own.made == 4
    own.train()
    logits(tiny.model)
    logits(tiny.model)
    assert own.made == 6


def test_checkpointed_gradients_are_the_plain_ones(tiny: foreword.Backbone, start: Prefix) -> None:
    """All layers share one number, through which backward goes once."""
    gradients = []
    for checkpointed in (False, True):
        model = tiny_model()
        if checkpointed:
            checkpoint_activations(model, enable=True)
        model.train()
        own = Counted(start)
        foreword.attach_trainable(model, own)
        model(ROW, labels=ROW, use_cache=False).loss.backward()
        gradients.append(own.strength.grad)
    assert abs(float(gradients[0])) > 1e-5
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("softmax", ["joint", "own"])
@pytest.mark.parametrize("options", [{}, {"use_reentrant": True}])
def test_reentrant_checkpointing_is_refused_for_training_only(
    tiny: foreword.Backbone, start: Prefix, options: dict[str, bool], softmax: str
) -> None:
    start = start.with_meta(softmax=softmax)
    model = tiny.model
    checkpoint_activations(model, enable=True)
    for layer in model.model.layers:
        layer._gradient_checkpointing_func = functools.partial(checkpoint, **options)
    model.train()
    foreword.attach_trainable(model, start)
    for _ in range(2):
        with pytest.raises(UnsupportedModel, match="no gradient"):
            model(ROW, use_cache=False)
    logits(model.eval())  # nothing to train: nothing to refuse
    model.train()
    checkpoint_activations(model, enable=False)
    model(ROW, use_cache=False).logits.sum().backward()


# -- the way back ------------------------------------------------------------------------------------


def test_another_start_and_a_finished_prefix_replace_it(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    required = [p.requires_grad_(i % 2 == 0).requires_grad for i, p in own_parameters(tiny)]
    first = foreword.attach_trainable(tiny, start)
    second = foreword.attach_trainable(tiny, tiny.capture([7, 7]))
    assert tiny.model.foreword_prefix is second.parameterization
    assert second.parameterization is not first.parameterization
    assert second.prefix().length == 2
    foreword.attach(tiny, start)
    assert not hasattr(tiny.model, "foreword_prefix")
    assert [p.requires_grad for _, p in own_parameters(tiny)] == required
    foreword.attach_trainable(tiny, start, freeze=False)
    assert [p.requires_grad for _, p in own_parameters(tiny)][: len(required)] == required
    foreword.detach(tiny)
    assert [p.requires_grad for _, p in own_parameters(tiny)] == required


def own_parameters(backbone: foreword.Backbone) -> list[tuple[int, nn.Parameter]]:
    return list(enumerate(backbone.model.parameters()))


def test_a_deep_copy_trains_apart(tiny: foreword.Backbone, start: Prefix) -> None:
    trained = foreword.attach_trainable(tiny, start)
    logits(tiny.model)
    twin = copy.deepcopy(tiny.model)
    before = logits(tiny.model)
    with torch.no_grad():
        cache = tiny.model(ROW, use_cache=True).past_key_values
        for parameter in twin.foreword_prefix.parameters():
            parameter.mul_(2)
    assert torch.equal(logits(tiny.model), before)
    assert float((logits(twin) - before).abs().max()) > 1e-4
    with pytest.raises(CacheError):
        twin(ROW, past_key_values=cache)
    foreword.detach(twin)
    assert not hasattr(twin, "foreword_prefix")
    assert tiny.model.foreword_prefix is trained.parameterization
    assert not any(p.requires_grad for p in twin.parameters())


def test_what_does_not_fit_leaves_the_model_as_it_was(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    other = tiny_model(head_dim=8)
    with pytest.raises(MismatchError, match="decoder.0"):
        foreword.attach_trainable(other, start)
    assert not hasattr(other, "foreword_prefix")
    assert "_foreword_attachment" not in other.__dict__
    tiny.model.foreword_prefix = nn.Identity()
    with pytest.raises(TrainingError, match="rename"):
        foreword.attach_trainable(tiny, start)
    assert isinstance(tiny.model.foreword_prefix, nn.Identity)
    assert "_foreword_attachment" not in tiny.model.__dict__
    foreword.attach(tiny, start)
    before = logits(tiny.model)
    with pytest.raises(TrainingError, match="rename"):
        foreword.attach_trainable(tiny, start)
    assert torch.equal(logits(tiny.model), before)  # what was attached stays


def test_other_weights_warn_and_the_prefix_itself_is_no_weight(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    fingerprint = foreword.Backbone(tiny_model()).fingerprint
    foreword.attach_trainable(tiny, start)
    assert foreword.Backbone(tiny.model).fingerprint == fingerprint
    with pytest.warns(foreword.OtherWeights, match="weights"):
        foreword.attach_trainable(tiny_model(seed=1), start)
