"""A prefix and a PEFT LoRA on one model: logits, trained apart and together, switched off, merged."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers import DynamicCache, Trainer

import foreword
from foreword.errors import CacheError, MismatchError
from tests.oracle.checks import EXACT, difference
from tests.oracle.reference import nll
from tests.ways.reference import Way, agrees, generated, way
from tests.ways.training import arguments, collated, losses_of

# peft asks by the name that transformers 5.23 has replaced
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")

TARGETS = {"llama": ["q_proj", "v_proj", "up_proj"], "gpt2": ["c_attn"]}


def with_lora(case: Way, **changes: Any) -> nn.Module:
    """The case's model under a LoRA that moves the logits, in evaluation mode."""
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=TARGETS[case.family.name],
        init_lora_weights=False,
        fan_in_fan_out=case.family.name == "gpt2",
        **changes,
    )
    torch.manual_seed(9)
    return peft.get_peft_model(case.model, settings).eval()


def lora_of(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("given", ["the PeftModel", "the model inside", "a Backbone"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_are_those_of_the_text_in_context_under_the_lora(family: str, given: str) -> None:
    case = way(family)
    bare = case.logits(case.texts[0], case.rows[0])
    model = with_lora(case)
    expected = [case.logits(case.texts[0], row) for row in case.rows]
    assert difference([expected[0]], [bare]) > 100 * EXACT, "the LoRA changes nothing"
    target: Any = {
        "the PeftModel": model,
        "the model inside": model.get_base_model(),
        "a Backbone": foreword.Backbone(model),
    }[given]
    prefix = foreword.Backbone(model).capture(case.texts[0].tolist())
    attached = foreword.attach(target, prefix)
    assert attached is (model.get_base_model() if given == "a Backbone" else target)
    with torch.no_grad():
        found = [model(input_ids=row[None]).logits[0] for row in case.rows]
    assert difference(found, expected) <= EXACT
    out = generated(model, case.rows, num_beams=1)
    foreword.detach(target)
    assert agrees(case, [case.texts[0]] * 3, case.rows, out)


def test_a_lora_beside_the_weights_leaves_them_the_same_weights() -> None:
    """No warning either way; a merged one changes them and is told."""
    case = way()
    prefix = case.shared
    wanted, count = case.backbone.fingerprint, sum(p.numel() for p in case.model.parameters())
    model = with_lora(case, modules_to_save=["lm_head"])
    assert foreword.Backbone(model).fingerprint == wanted
    assert foreword.Backbone(model).parameters == count
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foreword.attach(model, prefix, strict=True)
    foreword.detach(model)
    model.merge_adapter()
    with pytest.raises(MismatchError, match="weights"):
        foreword.attach(model, prefix, strict=True)


def test_switched_off_and_merged_while_attached() -> None:
    case = way()
    row, text = case.rows[0], case.texts[0]
    bare = case.logits(text, row)
    model = with_lora(case)
    under_lora = case.logits(text, row)
    own = foreword.Backbone(model).capture(text.tolist())
    foreword.attach(model, own)
    with torch.no_grad(), model.disable_adapter():
        off = model(input_ids=row[None]).logits[0]
        foreword.attach(model, case.shared)
        assert difference([model(input_ids=row[None]).logits[0]], [bare]) <= EXACT
    assert difference([off], [bare]) > 100 * EXACT, "the prefix was captured under the LoRA"
    foreword.attach(model, own)
    with torch.no_grad():
        merged = model.merge_and_unload()
        assert merged is case.model
        assert difference([merged(input_ids=row[None]).logits[0]], [under_lora]) <= EXACT
        foreword.detach(merged)
        assert difference([case.logits(text, row)], [under_lora]) <= EXACT


def test_peft_may_come_after_the_prefix() -> None:
    case = way()
    prefix = case.shared
    foreword.attach(case.model, prefix)
    model = with_lora(case)
    with torch.no_grad():
        found = model(input_ids=case.rows[0][None]).logits[0]
    foreword.detach(model)
    with case.backbone.attached(prefix), torch.no_grad():
        again = model(input_ids=case.rows[0][None]).logits[0]
    assert torch.equal(found, again)


def test_pefts_own_prefix_over_ours_is_refused() -> None:
    """`attach` refuses the PeftModel; here ours is on the model inside."""
    case = way()
    settings = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = peft.get_peft_model(case.model, settings).eval()
    foreword.attach(model.get_base_model(), case.shared)
    with pytest.raises(CacheError, match="4 tokens"):
        model(input_ids=case.rows[0][None], attention_mask=torch.ones(1, len(case.rows[0])))


# -- training ----------------------------------------------------------------------------------------


def loss_of(model: nn.Module, case: Way) -> torch.Tensor:
    return nll(model(input_ids=case.rows[0][None], use_cache=False).logits[0], case.rows[0])


def step(parameters: list[nn.Parameter], loss: torch.Tensor) -> None:
    gradients = torch.autograd.grad(loss, parameters)
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 0.003 * gradient


def test_together_both_get_the_gradients_that_the_cache_route_gives() -> None:
    """The reference hands the same keys and values over as `past_key_values` of the LoRA model."""
    case = way()
    model = with_lora(case)
    start = foreword.Backbone(model).capture(case.texts[0].tolist())
    row = case.rows[0]
    leaves = [t.detach().clone().requires_grad_() for t in (*start.keys, *start.values)]
    cache = DynamicCache()
    for layer in range(3):
        cache.update(leaves[layer][None], leaves[3 + layer][None], layer)
    place = torch.arange(len(row))[None]
    mask = torch.ones(1, start.length + len(row))
    logits = model(
        input_ids=row[None], attention_mask=mask, position_ids=place, past_key_values=cache
    ).logits
    loras = list(lora_of(model).values())
    wanted = torch.autograd.grad(nll(logits[0], row), [*leaves, *loras])

    trained = foreword.attach_trainable(model, start, freeze=False)
    parameters = list(trained.parameterization.parameters())
    assert {p for p in model.parameters() if p.requires_grad} == {*parameters, *loras}
    before = loss_of(model, case)
    live = trained.materialise()
    found = torch.autograd.grad(before, [*parameters, *loras])
    units = [*trained.parameterization.key_scales, *trained.parameterization.value_scales]
    assert len(live.keys) + len(live.values) == len(units)
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        unit = units[index] if index < len(units) else 1.0
        scale = max(float(theirs.abs().max()), 1.0)
        assert float((ours / unit - theirs).abs().max()) <= 1e-5 * scale
    step([*parameters, *loras], loss_of(model, case))
    assert loss_of(model, case).item() < before.item()


@pytest.mark.parametrize("what", ["the prefix", "the LoRA"])
def test_apart_only_one_is_trained(what: str) -> None:
    case = way()
    model = with_lora(case)
    start = foreword.Backbone(model).capture(case.texts[0].tolist())
    loras = list(lora_of(model).values())
    before = [p.detach().clone() for p in loras]
    if what == "the prefix":
        trained = foreword.attach_trainable(model, start)
        parameters = list(trained.parameterization.parameters())
    else:
        foreword.attach(model, start)
        parameters = loras
    assert [p for p in model.parameters() if p.requires_grad] == parameters
    first = loss_of(model, case)
    step(parameters, first)
    assert loss_of(model, case).item() < first.item()
    same = [torch.equal(a, b) for a, b in zip(before, loras, strict=True)]
    assert not any(same) if what == "the LoRA" else all(same)
    foreword.detach(model)
    assert [p for p in model.parameters() if p.requires_grad] == loras


def test_together_under_trainer_and_resumed(tmp_path: Path) -> None:
    """The model inside is handed to Trainer: its state dict holds both, a PeftModel's only its own."""
    how: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps"}

    def run(resume: str | None) -> tuple[Trainer, foreword.Trainable, nn.Module]:
        case = way()
        model = with_lora(case)
        trained = foreword.attach_trainable(model, case.shared, freeze=False)
        rows = [{"input_ids": row.tolist()} for row in case.rows]
        trainer = Trainer(
            model.get_base_model(),
            arguments(tmp_path, max_steps=4, save_steps=2, **how),
            train_dataset=rows,
            data_collator=collated,
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer, trained, model

    first, whole, model = run(None)
    assert losses_of(first)[-1] < losses_of(first)[0]
    _, again, twin = run(str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(again.prefix().keys, whole.prefix().keys, rtol=1e-6, atol=1e-6)
    ours, theirs = lora_of(twin), lora_of(model)
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name], parameter, rtol=1e-6, atol=1e-6)
