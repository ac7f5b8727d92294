"""LoRA as a method against peft used by hand, and what training by any method promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import foreword
from foreword.data import Collator
from foreword.errors import TrainingError
from foreword.methods.added import Added
from foreword.methods.layers import chosen_layers
from foreword.methods.lora import LoraMethod, LoraSettings
from foreword.objectives.encode import encode
from foreword.objectives.supervised import score
from foreword.train.fit import Fitted, fit
from foreword.train.settings import LoopSettings
from tests.conftest import MEMORY, byte_tokenizer, tiny_model
from tests.methods.by_hand import IDS, LOOP, TEXT, batch_of, train
from tests.peft.reference import PEFTS_OWN
from tests.tasks.models import ROWS as LABELLED
from tests.tasks.models import tiny_encoder
from tests.train.test_run import StopAt

Backbone = foreword.Backbone


def trained(backbone: Backbone, settings: LoraSettings, **more: Any) -> Fitted[Any, Added]:
    return fit(backbone, MEMORY, LoraMethod(), settings, LOOP, **more)


def by_hand(config: LoraConfig, seed: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """A PeftModel that plain PyTorch trained on the same batch: its logits' model and parameters."""
    backbone = Backbone(tiny_model(), byte_tokenizer())
    batch = batch_of(backbone, LoraMethod(), LoraSettings(**TEXT))
    torch.manual_seed(seed)
    model = get_peft_model(backbone.model, config).eval()
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    train(parameters.values(), lambda ids, mask: model(ids, mask).logits, batch)
    return model, {n.removeprefix("base_model.model."): p.detach() for n, p in parameters.items()}


@PEFTS_OWN
@pytest.mark.parametrize("rslora", [False, True])
def test_training_is_that_of_peft_used_by_hand(tiny: Backbone, rslora: bool) -> None:
    found = trained(tiny, LoraSettings(**TEXT, rank=2, rslora=rslora, targets="attention")).value
    names = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=2, lora_alpha=4, use_rslora=rslora, target_modules=names)
    model, parameters = by_hand(config, seed=0)
    assert set(found.tensors) == set(parameters)
    for name, theirs in parameters.items():
        torch.testing.assert_close(found.tensors[name], theirs, rtol=1e-4, atol=1e-5)
    start = LoraMethod().start(
        tiny, LoraSettings(**TEXT, rank=2, rslora=rslora, targets="attention"), MEMORY
    )
    with torch.no_grad(), start.applied(found) as applied:
        mine = applied.backbone.model(IDS).logits
    torch.testing.assert_close(mine, model(IDS).logits, rtol=1e-4, atol=1e-5)


def test_the_backbone_is_left_as_it_was(tiny: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    classes = [type(module) for module in tiny.model.modules()]
    trained(tiny, LoraSettings(**TEXT))
    after = tiny.model.state_dict()
    assert [type(module) for module in tiny.model.modules()] == classes
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in tiny.model.parameters())
    assert not hasattr(tiny.model, "peft_config")


def test_a_killed_run_goes_on_to_the_same_bits(tiny: Backbone, tmp_path: Path) -> None:
    settings = LoraSettings(**TEXT, rank=2)
    loop = LoopSettings(optimizer="soap", lr=0.01, steps=6, checkpoint_every=2)
    whole = fit(tiny, MEMORY, LoraMethod(), settings, loop).value
    fit(tiny, MEMORY, LoraMethod(), settings, loop, folder=tmp_path, callbacks=[StopAt(3)])
    again = fit(tiny, MEMORY, LoraMethod(), settings, loop, folder=tmp_path, resume=True).value
    for name, tensor in whole.tensors.items():
        assert torch.equal(again.tensors[name], tensor)


def test_another_method_does_not_go_on_with_a_run(tiny: Backbone, tmp_path: Path) -> None:
    trained(tiny, LoraSettings(**TEXT), folder=tmp_path)
    with pytest.raises(TrainingError, match="by the method lora, now it is prefix"):
        foreword.train(
            tiny, MEMORY, foreword.TrainSettings(**TEXT, steps=1), folder=tmp_path, resume=True
        )
    with pytest.raises(TrainingError, match="had rank=8, now it is 4"):
        trained(tiny, LoraSettings(**TEXT, rank=4), folder=tmp_path, resume=True)


def test_the_best_evaluation_is_kept_and_read_again(tiny: Backbone, tmp_path: Path) -> None:
    """What is learned makes other targets less likely, so that the first evaluation is the best."""
    loop = LoopSettings(optimizer="adamw", lr=0.03, steps=4, checkpoint_every=1, warmup=0.0)
    settings = LoraSettings(**TEXT, rank=2)
    others = [{"mr": row["mr"], "ref": "#" * 9} for row in MEMORY[:4]]
    found = fit(tiny, MEMORY, LoraMethod(), settings, loop, evaluation=others, folder=tmp_path)
    losses = [one["eval_loss"] for one in found.history if "eval_loss" in one]
    assert losses.index(min(losses)) < len(losses) - 1
    front = found.start.in_front
    rows, _ = encode(tiny, others, found.start.settings, front)
    batch = Collator(1)(rows)
    with torch.no_grad(), found.start.applied(found.value) as applied:
        scores = score(applied.backbone.model, batch)
    assert float(scores.nll_N.mean()) == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.parametrize("task", ["classify", "tag", "answer"])
def test_a_head_is_trained_beside_it(task: str) -> None:
    backbone = tiny_encoder()
    loop = LoopSettings(optimizer="adamw", lr=0.003, steps=30, batch_size=12)
    found = fit(backbone, LABELLED[task], LoraMethod(), LoraSettings(task=task), loop)  # type: ignore[arg-type]
    head = found.value.head
    assert head is not None
    assert head.weight.any()
    losses = [one["loss"] for one in found.history if "loss" in one]
    assert losses[-1] < 0.8 * losses[0]
    with found.start.applied(found.value) as applied:
        assert applied.in_front.head is head


def test_targets_choose_layers_of_every_family(tiny: Backbone) -> None:
    per_layer = {"query-value": 2, "attention": 4, "mlp": 3, "all-linear": 7}
    for targets, count in per_layer.items():
        names = chosen_layers(tiny, targets)  # type: ignore[arg-type]
        assert len(names) == 3 * count
        assert "lm_head" not in names
    encoder = tiny_encoder()
    assert len(chosen_layers(encoder, "query-value")) == 3 * 2
    assert len(chosen_layers(encoder, "attention")) == 3 * 4
    assert len(chosen_layers(encoder, "mlp")) == 3 * 2


def test_numbers_are_counted(tiny: Backbone) -> None:
    """R (in + out) for each layer."""
    settings = LoraSettings(**TEXT, rank=3, targets="query-value")
    found = trained(tiny, settings)
    expected = 3 * (3 * (32 + 48) + 3 * (32 + 24))
    assert found.training["trained_parameters"] == expected
    assert found.value.numbers == found.start.numbers == expected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rank": 0}, "rank must be"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"targets": "all"}, "targets must be one of"),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        LoraSettings(**TEXT, **fields)
