"""attach and detach: guards, rows, caches, positions, and a model that is left as it was found."""

from __future__ import annotations

import copy
import dataclasses
import gc
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

import foreword
from foreword.attention import running as frame
from foreword.attention.attachment import attachment_of
from foreword.attention.bound import bind
from foreword.errors import (
    BypassError,
    CacheError,
    MismatchError,
    RowsError,
    UnsupportedModel,
)
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle.checks import checkpoint_activations
from tests.oracle.families import BY_NAME

EXACT = 1e-5


def ids(*lengths: int, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 258, (length,), generator=generator) for length in lengths]


def logits(model: torch.nn.Module, row: Tensor, **inputs: object) -> Tensor:
    with torch.no_grad():
        return model(input_ids=row[None], **inputs).logits[0]


def in_context(backbone: foreword.Backbone, text: Tensor, row: Tensor) -> Tensor:
    """What the plain model gives on `row` with `text` before it."""
    return logits(backbone.model, torch.cat([text, row]))[len(text) :]


def close(found: Tensor, expected: Tensor) -> bool:
    scale = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) <= EXACT * scale


@pytest.fixture
def texts() -> list[Tensor]:
    return ids(7, 5, 9, seed=11)


def test_attach_gives_text_in_context_and_keeps_the_class(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    (row,) = ids(12)
    expected = in_context(tiny, texts[0], row)
    prefix = tiny.capture(texts[0].tolist())
    assert foreword.attach(tiny.model, prefix) is tiny.model
    assert type(tiny.model) is LlamaForCausalLM
    assert close(logits(tiny.model, row), expected)


def test_attaching_again_replaces_the_prefix(tiny: foreword.Backbone, texts: list[Tensor]) -> None:
    (row,) = ids(12)
    expected = [in_context(tiny, text, row) for text in texts[:2]]
    for text, wanted in zip(texts[:2], expected, strict=True):
        foreword.attach(tiny, tiny.capture(text.tolist()))
        assert close(logits(tiny.model, row), wanted)


# -- detach ------------------------------------------------------------------------------------------


def fingerprint(model: torch.nn.Module) -> dict[str, object]:
    """Everything that attaching could have changed."""
    return {
        "attention": model.config._attn_implementation,
        "config": model.config.to_dict(),
        "attributes": sorted(set(model.__dict__) - {"_foreword_measured"}),
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for m in model.modules()
        ],
        "gradients": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "state": list(model.state_dict()),
    }


def test_detach_restores_the_model_bit_for_bit(texts: list[Tensor]) -> None:
    model = tiny_model()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    model.model.layers[1].train()
    (row,) = ids(12)
    before, wanted = fingerprint(model), logits(model, row)
    prefix = foreword.Backbone(model).capture(texts[0].tolist())
    foreword.attach(model, prefix)
    assert not torch.equal(logits(model, row), wanted)
    foreword.detach(model)
    assert torch.equal(logits(model, row), wanted)
    assert fingerprint(model) == before


def test_detach_restores_gradient_checkpointing_and_an_own_generate(texts: list[Tensor]) -> None:
    model = tiny_model()
    checkpoint_activations(model, enable=True)
    functions = [layer._gradient_checkpointing_func for layer in model.model.layers]
    own = lambda *args, **kwargs: "own"  # noqa: E731
    model.generate = own
    foreword.attach(model, foreword.Backbone(model).capture(texts[0].tolist()))
    model.train()
    model(input_ids=ids(6)[0][None], use_cache=False)
    assert model.generate() == "own"
    foreword.detach(model)
    assert model.generate is own
    assert [layer._gradient_checkpointing_func for layer in model.model.layers] == functions


def test_state_dict_and_saved_files_are_the_base_models_while_attached(
    tmp_path: Path, tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    state = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    tiny.model.save_pretrained(tmp_path / "base")
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    attached = tiny.model.state_dict()
    assert list(attached) == list(state)
    assert all(torch.equal(attached[name], state[name]) for name in state)
    tiny.model.save_pretrained(tmp_path / "attached")
    for file in (tmp_path / "base").iterdir():
        assert (tmp_path / "attached" / file.name).read_bytes() == file.read_bytes()


def test_a_deep_copy_of_an_attached_model_has_the_prefix_and_a_life_of_its_own(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    (row,) = ids(10)
    plain = logits(tiny.model, row)
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    wanted = logits(tiny.model, row)
    twin = copy.deepcopy(tiny.model)
    foreword.detach(tiny)
    assert torch.equal(logits(twin, row), wanted)
    assert torch.equal(logits(tiny.model, row), plain)
    generated = twin.generate(row[None], max_new_tokens=4, do_sample=False, pad_token_id=1)
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    again = tiny.model.generate(row[None], max_new_tokens=4, do_sample=False, pad_token_id=1)
    assert torch.equal(generated, again)


def test_a_deep_copy_may_run_inside_a_forward_pass_of_the_first(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    """Both had one frame between them: the inner pass ended the outer one's."""
    (row,) = ids(10)
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    wanted = logits(tiny.model, row)
    twin = copy.deepcopy(tiny.model)
    inner: list[Tensor] = []

    def run_twin(*args: object) -> None:
        inner.append(logits(twin, row))

    handle = tiny.model.model.layers[0].register_forward_hook(run_twin)
    assert torch.equal(logits(tiny.model, row), wanted)
    handle.remove()
    assert torch.equal(inner[0], wanted)


# -- a prefix that is bypassed raises ----------------------------------------------------------------


def test_another_attention_implementation_raises(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    tiny.model.set_attn_implementation("sdpa")
    with pytest.raises(BypassError, match="foreword.detach"):
        logits(tiny.model, ids(6)[0])
    with pytest.raises(BypassError):
        tiny.model.generate(ids(6)[0][None], max_new_tokens=2, pad_token_id=1)


def test_generate_batch_which_switches_the_attention_raises(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    """Transformers' continuous batching runs under a paged implementation: the prefix would go."""
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    with pytest.raises((ValueError, BypassError), match="foreword"):
        tiny.model.generate_batch([ids(6)[0].tolist()], max_new_tokens=2)


def test_a_skipped_layer_raises(
    tiny: foreword.Backbone, texts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    layer = tiny.model.model.layers[1]
    monkeypatch.setattr(layer, "forward", lambda hidden, **_: hidden)
    with pytest.raises(BypassError, match=r"1 of 3 sites \(first: model.layers.1"):
        logits(tiny.model, ids(6)[0])


def test_an_error_inside_the_model_is_not_hidden_by_ours(
    tiny: foreword.Backbone, texts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    (row,) = ids(6)
    wanted = logits(tiny.model, row)

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the model's own trouble")

    with monkeypatch.context() as patch:
        patch.setattr(tiny.model.model.layers[1], "forward", broken)
        with pytest.raises(RuntimeError, match="own trouble"):
            logits(tiny.model, row)
    assert torch.equal(logits(tiny.model, row), wanted)


@pytest.mark.parametrize("where", ["lm_head", "model.layers.1"])
def test_ctrl_c_in_a_forward_pass_leaves_nothing_behind(
    tiny: foreword.Backbone, texts: list[Tensor], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Torch runs no forward hook on KeyboardInterrupt, so the cut-off pass looked still open."""
    rows = ids(6, 9)
    inputs = padded(rows, "left")
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    with torch.no_grad():
        wanted = tiny.model(**inputs).logits

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny.model.get_submodule(where), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny.model(rows[1][None])
    with torch.no_grad():
        assert torch.equal(tiny.model(**inputs).logits, wanted)
    attachment = attachment_of(tiny.model)
    assert attachment is not None
    assert attachment._running.frame is None


def test_a_pass_that_ctrl_c_cut_off_does_not_outlive_generate_or_the_model(
    tiny: foreword.Backbone, texts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It once stayed until the next call, and kept a model alive that nobody else held."""
    (row,) = ids(6)
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    attachment = attachment_of(tiny.model)
    assert attachment is not None
    key = attachment._running.key

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny.model.lm_head, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny.model.generate(row[None], max_new_tokens=2)
    assert key not in frame._here.frames.by_key
    with pytest.raises(KeyboardInterrupt):
        tiny.model(row[None])
    assert key in frame._here.frames.by_key
    model = weakref.ref(tiny.model)
    monkeypatch.undo()
    del attachment, tiny.model
    gc.collect()
    assert model() is None
    assert key not in frame._here.frames.by_key


def test_calling_a_part_of_the_model_alone_raises(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    foreword.attach(tiny, tiny.capture(texts[0].tolist()))
    hidden, positions = torch.zeros(1, 4, 32), torch.arange(4)[None]
    rotary = tiny.model.model.rotary_emb(hidden, positions)
    with pytest.raises(BypassError, match="outside a forward pass"):
        tiny.model.model.layers[0](hidden, position_embeddings=rotary)


def test_calling_the_inner_model_alone_is_prefixed_too(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    (row,) = ids(9)
    text = texts[0]
    with torch.no_grad():
        whole = tiny.model.model(torch.cat([text, row])[None]).last_hidden_state[0, len(text) :]
        foreword.attach(tiny, tiny.capture(text.tolist()))
        found = tiny.model.model(row[None]).last_hidden_state[0]
    assert close(found, whole)


def test_output_attentions_needs_eager_and_then_includes_the_prefix(texts: list[Tensor]) -> None:
    (row,) = ids(6)
    for kernel in ("sdpa", "eager"):
        model = tiny_model()
        model.set_attn_implementation(kernel)
        foreword.attach(model, foreword.Backbone(model).capture(texts[0].tolist()))
        if kernel == "sdpa":
            with pytest.raises(UnsupportedModel, match="eager"):
                model(row[None], output_attentions=True)
            continue
        weights = model(row[None], output_attentions=True).attentions
        assert [tuple(w.shape) for w in weights] == [(1, 4, 6, len(texts[0]) + 6)] * 3
        torch.testing.assert_close(weights[0].sum(-1), torch.ones(1, 4, 6))


# -- rows --------------------------------------------------------------------------------------------


def padded(rows: list[Tensor], side: str) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    out = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(out)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        out[index, place], mask[index, place] = row, 1
    return {"input_ids": out, "attention_mask": mask}


def together_equals_alone(
    backbone: foreword.Backbone,
    prefixes: list[foreword.Prefix | None],
    rows: list[Tensor],
    side: str,
) -> list[Tensor]:
    """Check that each row of a padded batch has the logits that it has alone, which are returned."""
    wanted = []
    for prefix, row in zip(prefixes, rows, strict=True):
        with backbone.attached(prefix):
            wanted.append(logits(backbone.model, row))
    with backbone.attached(prefixes), torch.no_grad():
        inputs = padded(rows, side)
        found = backbone.model(**inputs).logits
    for index, row in enumerate(wanted):
        assert close(found[index][inputs["attention_mask"][index].bool()], row)
    return wanted


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_each_row_with_its_own_prefix_equals_that_row_alone(family: str, side: str) -> None:
    from tests.oracle.families import attention_of

    spec = BY_NAME[family]
    backbone = foreword.Backbone(spec.build(attention_of(spec)))
    rows = [row % 97 for row in ids(20, 24, 22, 21)]
    texts = [text % 97 for text in ids(6, 3, 8, seed=5)]
    prefixes = [backbone.capture(text.tolist()) for text in texts]
    mixed = [prefixes[0], None, prefixes[1].with_meta(windows="windowed"), prefixes[2]]
    together_equals_alone(backbone, mixed, rows, side)


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_rows_that_do_not_match_the_batch_raise(
    tiny: foreword.Backbone, texts: list[Tensor], batch: int
) -> None:
    foreword.attach(tiny, [tiny.capture(text.tolist()) for text in texts])
    inputs = torch.stack(ids(*[8] * batch))
    with pytest.raises(RowsError, match=f"batch of 3 rows.*found {batch}"):
        tiny.model(inputs)
    with pytest.raises(RowsError, match=f"batch of 3 rows.*found {batch}"):
        tiny.model.generate(inputs, max_new_tokens=2, pad_token_id=1)


def test_no_row_with_a_prefix_raises(tiny: foreword.Backbone) -> None:
    with pytest.raises(RowsError, match="at least one row"):
        foreword.attach(tiny, [None, None])
    assert "_foreword_attachment" not in tiny.model.__dict__


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beam_search_over_rows_equals_each_row_alone(
    tiny: foreword.Backbone, texts: list[Tensor], how: dict[str, int]
) -> None:
    prefixes = [tiny.capture(texts[0].tolist()), None]
    rows = ids(9, 9)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    wanted = []
    for prefix, row in zip(prefixes, rows, strict=True):
        with tiny.attached(prefix):
            wanted.append(tiny.model.generate(row[None], **options, **how)[:, 9:])
    with tiny.attached(prefixes):
        found = tiny.model.generate(torch.stack(rows), **options, **how)[:, 9:]
    assert torch.equal(found, torch.cat(wanted))


# -- generation against text in context --------------------------------------------------------------

WAYS = {
    "greedy": {"do_sample": False},
    "uncached": {"do_sample": False, "use_cache": False},
    "beam": {"num_beams": 4, "num_return_sequences": 3, "do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20, "num_return_sequences": 3},
    "static cache": {"do_sample": False, "cache_implementation": "static"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("positions", ["free", "offset"])
def test_generate_says_what_the_model_says_with_the_text_in_context(
    tiny: foreword.Backbone, texts: list[Tensor], way: str, positions: foreword.prefix.Positions
) -> None:
    text, (row,) = texts[0], ids(9)
    options = {"max_new_tokens": 8, "pad_token_id": 1, "eos_token_id": None, **WAYS[way]}
    whole = torch.cat([text, row])[None]
    prefix = tiny.capture(text.tolist(), positions)
    torch.manual_seed(5)
    wanted = tiny.model.generate(whole, **options)[:, whole.shape[1] :]
    with tiny.attached(prefix):
        torch.manual_seed(5)
        found = tiny.model.generate(row[None], **options)[:, len(row) :]
    assert torch.equal(found, wanted)


# -- caches ------------------------------------------------------------------------------------------


def test_a_cache_filled_under_the_prefix_can_be_used_again(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    first, second = ids(7, 6)
    with tiny.attached(tiny.capture(texts[0].tolist())), torch.no_grad():
        whole = logits(tiny.model, torch.cat([first, second]))[7:]
        cache = tiny.model(first[None], use_cache=True).past_key_values
        twin = copy.deepcopy(cache)
        for past in (cache, twin):
            found = tiny.model(second[None], past_key_values=past).logits[0]
            assert close(found, whole)


@pytest.mark.parametrize("held", ["nothing", "another prefix"])
def test_a_cache_filled_under_something_else_raises(
    tiny: foreword.Backbone, texts: list[Tensor], held: str
) -> None:
    first, second = ids(7, 6)
    prefixes = [tiny.capture(text.tolist()) for text in texts]
    if held == "nothing":
        cache = tiny.model(first[None], use_cache=True).past_key_values
    else:
        with tiny.attached(prefixes[1]):
            cache = tiny.model(first[None], past_key_values=DynamicCache()).past_key_values
    with tiny.attached(prefixes[0]), pytest.raises(CacheError, match="7 tokens"):
        tiny.model(second[None], past_key_values=cache)


def test_a_cache_returned_by_generate_is_bound_to_the_prefix(
    tiny: foreword.Backbone, texts: list[Tensor]
) -> None:
    (row,) = ids(7)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 1}
    prefixes = [tiny.capture(text.tolist()) for text in texts[:2]]
    with tiny.attached(prefixes[0]):
        out = tiny.model.generate(row[None], return_dict_in_generate=True, **options)
    with tiny.attached(prefixes[1]), pytest.raises(CacheError):
        tiny.model.generate(out.sequences, past_key_values=out.past_key_values, **options)


# -- positions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_left_padding_without_position_ids_equals_the_row_alone(family: str) -> None:
    """Models count padding as positions when left alone; with a prefix that was wrong by 6.6e-2."""
    backbone = foreword.Backbone(BY_NAME[family].build())
    rows = [row % 97 for row in ids(5, 14)]
    prefix = backbone.capture([7, 8, 9, 10, 11])
    with backbone.attached(prefix), torch.no_grad():
        alone = [logits(backbone.model, row) for row in rows]
        inputs = padded(rows, "left")
        found = backbone.model(**inputs).logits
    for index, wanted in enumerate(alone):
        assert close(found[index][inputs["attention_mask"][index].bool()], wanted)


@pytest.mark.parametrize("positions", ["free", "offset"])
def test_given_position_ids_are_those_of_the_text_alone(
    tiny: foreword.Backbone, texts: list[Tensor], positions: foreword.prefix.Positions
) -> None:
    (row,) = ids(8)
    with tiny.attached(tiny.capture(texts[0].tolist(), positions)), torch.no_grad():
        wanted = tiny.model(row[None]).logits
        place = torch.arange(8)[None]
        assert torch.equal(tiny.model(row[None], position_ids=place).logits, wanted)
        assert torch.equal(tiny.model(row[None], None, place).logits, wanted)
        embeds = tiny.model.get_input_embeddings()(row[None])
        assert close(tiny.model(inputs_embeds=embeds).logits, wanted)


def test_too_many_positions_for_a_learned_table_raise_by_name() -> None:
    backbone = foreword.Backbone(BY_NAME["gpt2"].build())
    with backbone.attached(backbone.capture([5, 6, 7, 8])):
        with pytest.raises(UnsupportedModel, match="96 learned positions.*need 98"):
            backbone.model(torch.full((1, 94), 9))
        assert backbone.model(torch.full((1, 92), 9)).logits.shape[1] == 92


# -- gradients ---------------------------------------------------------------------------------------


def gradient(backbone: foreword.Backbone, row: Tensor, text: Tensor, **how: bool) -> list[Tensor]:
    """Gradient in the keys of a captured prefix; `swap` binds another before backward."""
    captured = backbone.capture(text.tolist())
    other = backbone.capture(ids(len(text), seed=99)[0].tolist())
    keys = tuple(key.clone().requires_grad_() for key in captured.keys)
    live = foreword.Prefix(captured.sites, keys, captured.values, captured.meta)
    with backbone.attached(None) as attachment:
        attachment.bound = bind(live, backbone.sites, live=True)
        loss = backbone.model(row[None], use_cache=False).logits.logsumexp(-1).sum()
        if how.get("swap"):
            attachment.bound = bind(other, backbone.sites)
            backbone.model(row[None], use_cache=False)
        return list(torch.autograd.grad(loss, keys))


def test_checkpointed_backward_sees_the_prefix_of_its_forward(texts: list[Tensor]) -> None:
    """Without the frame, recomputation took the prefix bound by then: wrong gradients in silence."""
    (row,) = ids(9)
    wanted = gradient(foreword.Backbone(tiny_model()), row, texts[0])
    model = tiny_model()
    checkpoint_activations(model, enable=True)
    model.train()
    found = gradient(foreword.Backbone(model), row, texts[0], swap=True)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_checkpointed_backward_after_detach_raises(texts: list[Tensor]) -> None:
    model = tiny_model()
    checkpoint_activations(model, enable=True)
    model.train()
    backbone = foreword.Backbone(model)
    captured = backbone.capture(texts[0].tolist())
    keys = tuple(key.clone().requires_grad_() for key in captured.keys)
    live = foreword.Prefix(captured.sites, keys, captured.values, captured.meta)
    bound = bind(live, backbone.sites, live=True)
    with backbone.attached(None) as attachment, attachment.using(bound):
        loss = model(ids(9)[0][None], use_cache=False).logits.sum()
    with pytest.raises(BypassError):
        loss.backward()


# -- fit ---------------------------------------------------------------------------------------------


def test_other_geometry_is_refused_with_the_site(tiny: foreword.Backbone) -> None:
    other = foreword.Backbone(tiny_model(head_dim=8), byte_tokenizer(), name="other")
    with pytest.raises(MismatchError, match=r"decoder.0.*12.*8"):
        foreword.attach(other, tiny.capture([5, 6]))
    fewer = foreword.Backbone(tiny_model(num_hidden_layers=2), byte_tokenizer())
    with pytest.raises(MismatchError, match="3 sites.*2"):
        foreword.attach(fewer.model, tiny.capture([5, 6]))
    assert "_foreword_attachment" not in other.model.__dict__


def test_another_tokenizer_is_refused(tiny: foreword.Backbone) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["restaurant"])
    other = foreword.Backbone(tiny.model, tokenizer, name="other")
    with pytest.raises(MismatchError, match="another tokenizer"):
        other.check(tiny.capture([5, 6]))


def test_other_weights_warn_once_and_strict_refuses(tiny: foreword.Backbone) -> None:
    other = foreword.Backbone(tiny_model(seed=1), byte_tokenizer(), name="other")
    prefix = tiny.capture([5, 6])
    with pytest.warns(foreword.OtherWeights, match="weights"):
        foreword.attach(other, prefix)
    with pytest.raises(MismatchError, match="--strict"):
        foreword.attach(other, prefix, strict=True)
    other.check(prefix, warn=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foreword.attach(tiny, prefix, strict=True)


def test_the_same_weights_in_another_dtype_are_the_same_weights(tiny: foreword.Backbone) -> None:
    half = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer())
    assert half.fingerprint == tiny.fingerprint
    changed = tiny_model()
    changed.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    assert foreword.Backbone(changed).fingerprint != tiny.fingerprint


def test_a_number_that_float16_does_not_hold_is_refused(tiny: foreword.Backbone) -> None:
    """It became infinity, and every logit NaN, without a word."""
    prefix = tiny.capture([5, 6, 7])
    values = (prefix.values[0].clone().fill_(1e5), *prefix.values[1:])
    huge = dataclasses.replace(prefix, values=values)
    half = foreword.Backbone(copy.deepcopy(tiny.model).half())
    for use in (half.check, lambda p: foreword.attach(half, p)):
        with pytest.raises(MismatchError, match="up to 1e\\+05, and float16"):
            use(huge)
    model = foreword.attach(tiny.model, huge).half()
    with pytest.raises(MismatchError, match="float16"), torch.no_grad():
        model(ids(6)[0][None])
