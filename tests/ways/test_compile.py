"""torch.compile over a prefixed model: the logits, tokens and gradients of the model as it is."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import PreTrainedModel

import foreword
from foreword.attention.bound import bind
from foreword.backbone import Backbone
from foreword.errors import BypassError
from foreword.prefix import Prefix, WindowPolicy
from tests.oracle import checks
from tests.oracle.families import BY_NAME

EXACT = 1e-5

# Dynamo looks at the .grad of every input, those that are no leaves included.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test compiles anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def text_prefix(backbone: Backbone, length: int, seed: int = 0) -> Prefix:
    generator = torch.Generator().manual_seed(seed)
    return backbone.capture(torch.randint(3, 90, (length,), generator=generator).tolist())


def inputs() -> dict[str, Tensor]:
    """Two rows, the first padded on the left."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 90, (2, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Callable[..., Any]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**inputs()).logits[inputs()["attention_mask"].bool()]
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "windows"),
    [("llama", "visible"), ("gpt2", "visible"), ("gemma2", "windowed"), ("mpt", "visible")],
)
def test_compiled_logits_are_those_of_text_in_context(name: str, windows: WindowPolicy) -> None:
    """Compiled: rotary, absolute positions, an eager kernel with windows, ALiBi."""
    case = checks.case(BY_NAME[name], windows)
    prefix, expected = case.prefix(), case.references()
    case.model.forward = torch.compile(case.model.forward, backend="aot_eager")  # type: ignore[method-assign]
    found = checks.forward(case, prefix, "left")
    assert checks.difference(found, expected) <= EXACT


def test_a_new_length_is_compiled_once_and_never_again(tiny: Backbone) -> None:
    """With the tensors reached through the model, each length had a graph of its own."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(tiny.model, backend=counter)
    for length in (6, 7, 9, 20):
        foreword.attach(tiny.model, text_prefix(tiny, length))
        assert difference(logits(compiled), logits(tiny.model)) <= EXACT
    # One graph of the whole model for the first length, one for all others: hooks, prefix and masks
    # break none.
    assert counter.frame_count == 2


def test_strengths_break_no_graph_and_share_one(tiny: Backbone) -> None:
    """A pass under a strength is one graph, and another strength needs no new one."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(tiny.model, backend=counter)
    whole = text_prefix(tiny, 6)
    foreword.attach(tiny.model, whole)
    seen = [logits(tiny.model)]
    for strength in (0.3, 0.7, -0.2, 1.5):
        foreword.attach(tiny.model, whole.strength(strength))
        seen.append(logits(tiny.model))
        assert difference(logits(compiled), seen[-1]) <= EXACT
    assert all(difference(a, b) > checks.MOVED for a, b in itertools.combinations(seen, 2))
    assert counter.frame_count == 1


def test_strengths_per_row_and_of_pieces(tiny: Backbone) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(tiny.model, backend=counter)
    short, long = text_prefix(tiny, 5), text_prefix(tiny, 9)
    both = foreword.concat(short.strength(0.4), long.strength(1.3))
    for rows in ([short.strength(0.4), long], [None, both]):
        foreword.attach(tiny.model, rows)
        assert difference(logits(compiled), logits(tiny.model)) <= EXACT
    assert counter.frame_count == 2


def test_prefixes_per_row(tiny: Backbone) -> None:
    compiled = torch.compile(tiny.model, backend="aot_eager")
    short, long = text_prefix(tiny, 5), text_prefix(tiny, 9)
    for rows in ([short, long], [None, short]):
        foreword.attach(tiny.model, rows)
        assert difference(logits(compiled), logits(tiny.model)) <= EXACT


def test_attaching_swapping_and_detaching_under_a_compiled_model(tiny: Backbone) -> None:
    compiled = torch.compile(tiny.model, backend="aot_eager")
    bare = logits(tiny.model)
    assert difference(logits(compiled), bare) <= EXACT
    seen = [bare]
    for seed in (1, 2):
        foreword.attach(tiny.model, text_prefix(tiny, 6, seed))
        seen.append(logits(tiny.model))
        assert difference(logits(compiled), seen[-1]) <= EXACT
    assert all(difference(a, b) > checks.MOVED for a, b in itertools.combinations(seen, 2))
    foreword.detach(tiny.model)
    assert difference(logits(compiled), bare) <= EXACT


def test_a_switched_implementation_is_seen_by_a_compiled_model_too(tiny: Backbone) -> None:
    compiled = torch.compile(tiny.model, backend="aot_eager")
    foreword.attach(tiny.model, text_prefix(tiny, 6))
    logits(compiled)
    tiny.model.set_attn_implementation("sdpa")
    with pytest.raises(BypassError, match="was changed"):
        logits(compiled)


def test_generate_with_a_compiled_forward(tiny: Backbone) -> None:
    tiny.model.generation_config.eos_token_id = None
    foreword.attach(tiny.model, text_prefix(tiny, 6))
    arguments = {
        **inputs(), "max_new_tokens": 3, "do_sample": False, "cache_implementation": "static",
        "output_logits": True, "return_dict_in_generate": True, "pad_token_id": 1,
    }  # fmt: skip
    expected = tiny.model.generate(**arguments)
    tiny.model.forward = torch.compile(tiny.model.forward, backend="aot_eager", dynamic=True)  # type: ignore[method-assign]
    found = tiny.model.generate(**arguments)
    assert torch.equal(found.sequences, expected.sequences)
    assert difference(torch.stack(found.logits), torch.stack(expected.logits)) <= EXACT


def gradients(model: PreTrainedModel, call: Callable[..., Any], backbone: Backbone) -> list[Tensor]:
    """Of the loss in the keys and values of a prefix."""
    prefix = text_prefix(backbone, 6)
    leaves = [t.detach().clone().requires_grad_() for t in (*prefix.keys, *prefix.values)]
    half = len(prefix.keys)
    live = Prefix(prefix.sites, tuple(leaves[:half]), tuple(leaves[half:]), prefix.meta)
    with (
        backbone.attached(None) as attachment,
        attachment.using(bind(live, backbone.sites, live=True)),
    ):
        batch = inputs()
        loss = call(**batch, labels=batch["input_ids"], use_cache=False).loss
        return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_compiled_model(tiny: Backbone, checkpointing: bool) -> None:
    model = tiny.model
    expected = gradients(model, model, tiny)
    if checkpointing:
        model.train()
        checks.checkpoint_activations(model, enable=True)
    found = gradients(model, torch.compile(model, backend="aot_eager"), tiny)
    largest = max(float(gradient.abs().max()) for gradient in expected)
    assert largest > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert float((ours - theirs).abs().max()) <= EXACT * max(largest, 1.0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_inductor(tiny: Backbone) -> None:
    foreword.attach(tiny.model, text_prefix(tiny, 6))
    compiled = torch.compile(tiny.model)
    assert difference(logits(compiled), logits(tiny.model)) <= EXACT
