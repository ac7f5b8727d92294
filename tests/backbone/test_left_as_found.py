"""A refusal changes nothing: the model is as it was before, attached, and after it is detached.

transformers lowers `num_hidden_layers` around the pass of `assistant_early_exit`. Refused inside that
pass, a model of three layers had two from then on, also after it was detached.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

import foreword
from foreword.errors import BypassError, ForewordError
from foreword.prefix import Prefix
from tests.conftest import tiny_model
from tests.oracle.checks import checkpoint_activations
from tests.oracle.families import BY_NAME, attention_of

ROW = torch.tensor([[17, 60, 4, 9, 2, 33, 8, 41]])
OWN = ("_foreword_attachment", "_foreword_measured", "_foreword_place")
"""What Foreword keeps with a model and its modules."""


def state(model: PreTrainedModel) -> dict[str, Any]:
    """Everything of a model that a refusal could leave changed, tensors by their sum."""
    found: dict[str, Any] = {"generation": str(model.generation_config)}
    for name, module in model.named_modules():
        config = module.__dict__.get("config")
        if config is not None:
            found[f"{name}.config"] = str(config.to_dict()), config._attn_implementation_internal
        plain = (bool, int, float, str, type(None), list, dict, tuple)
        for key, value in module.__dict__.items():
            if key in OWN or key in ("_modules", "_parameters", "_buffers"):
                continue
            hooks = "hooks" in key
            found[f"{name}.{key}"] = len(value) if hooks else repr(value)
            if not hooks and not isinstance(value, plain):
                found[f"{name}.{key}"] = type(value)
    for name, parameter in model.named_parameters():
        found[name] = parameter.requires_grad, parameter.dtype, float(parameter.detach().sum())
    return found


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ROW % model.config.vocab_size).logits
    return found


def model_of(family: str) -> PreTrainedModel:
    if family == "tiny":
        return tiny_model()
    if family == "checkpointed":
        model = tiny_model()
        checkpoint_activations(model, enable=True)
        for layer in model.model.layers:
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=True)
        return model
    return BY_NAME[family].build(attention_of(BY_NAME[family]), 0)


def early(model: PreTrainedModel, **changes: Any) -> None:
    model.generate(ROW, assistant_early_exit=2, max_new_tokens=4, **changes)


def early_by_config(model: PreTrainedModel) -> None:
    model.generate(ROW, GenerationConfig(assistant_early_exit=2, max_new_tokens=4))


def continuous(model: PreTrainedModel) -> None:
    model.generate_batch([[5, 6, 7]], max_new_tokens=2)


def continuous_without_an_end(model: PreTrainedModel) -> None:
    """Transformers writes -1 into the generation config before it looks at the attention."""
    end, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        continuous(model)
    finally:
        assert model.generation_config.eos_token_id is None
        model.generation_config.eos_token_id = end


def reentrant(model: PreTrainedModel) -> None:
    foreword.attach_trainable(model, foreword.Backbone(model).capture([3, 4]))
    model.train()
    try:
        model(ROW, use_cache=False)
    finally:
        model.eval()


def of_another(model: PreTrainedModel, **changes: Any) -> Prefix:
    return foreword.Backbone(tiny_model(**changes)).capture([5, 6])


def old_cache(model: PreTrainedModel) -> None:
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), foreword.Backbone(model).attached(None):
        model(ROW, past_key_values=cache)
    model(ROW, past_key_values=cache)


REFUSALS: dict[str, tuple[str, Callable[[PreTrainedModel], Any]]] = {
    "early exit": ("tiny", early),
    "early exit, by config": ("tiny", early_by_config),
    "early exit, sampled": ("tiny", lambda m: early(m, do_sample=True)),
    "continuous batching": ("tiny", continuous),
    "continuous batching without an end": ("tiny", continuous_without_an_end),
    "weights of attention": ("tiny", lambda m: m(ROW, output_attentions=True)),
    "weights, in generate": (
        "tiny",
        lambda m: m.generate(
            ROW, output_attentions=True, return_dict_in_generate=True, max_new_tokens=2
        ),
    ),
    "no text": ("tiny", lambda m: m()),
    "a cache of another": ("tiny", old_cache),
    "a layer by itself": (
        "tiny",
        lambda m: m.model.layers[0](
            torch.zeros(1, 2, 32), position_embeddings=(torch.ones(1, 2, 12), torch.zeros(1, 2, 12))
        ),
    ),
    "reentrant checkpointing": ("checkpointed", reentrant),
    "geometry": ("tiny", lambda m: foreword.attach(m, of_another(m, head_dim=8))),
    "geometry, in training": (
        "tiny",
        lambda m: foreword.attach_trainable(m, of_another(m, head_dim=8)),
    ),
    "rows": (
        "tiny",
        lambda m: foreword.attach(m, [of_another(m)] * 3)(ROW),
    ),
    "rows, in generate": (
        "tiny",
        lambda m: foreword.attach(m, [of_another(m)] * 3).generate(ROW, max_new_tokens=2),
    ),
    "no row at all": ("tiny", lambda m: foreword.attach(m, [])),
    "too long for a table": ("gpt2", lambda m: m(torch.ones(1, 4096, dtype=torch.long))),
    "a softmax of its own": (
        "mpt",
        lambda m: foreword.attach(m, foreword.Backbone(m).capture([5, 6]).with_meta(softmax="own"))(
            ROW
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_leaves_the_model_as_it_was(name: str) -> None:
    family, refused = REFUSALS[name]
    model = model_of(family)
    bare, bare_logits = state(model), logits(model)
    prefix = foreword.Backbone(model).capture([5, 6, 7])
    foreword.attach(model, prefix)
    held, held_logits = state(model), logits(model)
    with pytest.raises(ForewordError):
        refused(model)
    foreword.attach(model, prefix)  # some refusals come under a prefix of their own
    assert differing(held, state(model)) == {}
    assert torch.equal(logits(model), held_logits)
    foreword.detach(model)
    assert differing(bare, state(model)) == {}
    assert torch.equal(logits(model), bare_logits)
    model.generate(ROW % model.config.vocab_size, max_new_tokens=2, pad_token_id=0)


def differing(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (before.get(name), after.get(name))
        for name in {*before, *after}
        if before.get(name) != after.get(name)
    }


def test_layers_without_the_prefix_may_be_left_out() -> None:
    """As its own assistant the model ends behind the layers that the prefix joins."""
    model = tiny_model()
    backbone = foreword.Backbone(model)
    whole = backbone.capture([5, 6, 7])
    first = Prefix(whole.sites[:2], whole.keys[:2], whole.values[:2], whole.meta)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1}
    with backbone.attached(first):
        wanted = model.generate(ROW, **options)
        assert torch.equal(model.generate(ROW, assistant_early_exit=2, **options), wanted)
    assert model.config.num_hidden_layers == 3


def test_continuous_batching_is_refused_as_the_guide_says() -> None:
    """A ValueError of transformers came instead, with no word of the prefix."""
    model = tiny_model()
    foreword.attach(model, foreword.Backbone(model).capture([5, 6, 7]))
    with pytest.raises(BypassError, match=r"generate_batch.*foreword.Engine"):
        continuous(model)
    with pytest.raises(BypassError, match="generate_batch"):
        model.init_continuous_batching()
    foreword.detach(model)
    assert "init_continuous_batching" not in model.__dict__
