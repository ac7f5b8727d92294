"""A prefix that something freezes, replaces or drops under another trainer is noticed.

PEFT's get_peft_model, and a trainer's peft_config, freeze every parameter of the model. The loss then
fell through the LoRA alone, and the saved prefix was the start.
"""

from __future__ import annotations

import copy
import gc
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

import foreword
from foreword.errors import TrainingError
from foreword.methods.prefix.parameterization import Parameterization
from foreword.methods.prefix.watch import NotTrained
from foreword.prefix import Prefix
from tests.conftest import byte_tokenizer
from tests.ways.training import arguments, collated

ROW = torch.tensor([[17, 60, 4, 99, 201, 33, 8, 120]])
LORA = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"),
]


@pytest.fixture
def start(tiny: foreword.Backbone) -> Prefix:
    return tiny.capture([5, 9, 44, 21])


def loss(model: nn.Module) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ROW, labels=ROW).loss
    return found


def frozen_by_peft(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(model, LORA)


def frozen_for_kbit(model: nn.Module) -> nn.Module:
    return peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def frozen_by_hand(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def frozen_in_part(model: nn.Module) -> nn.Module:
    next(model.foreword_prefix.parameters()).requires_grad_(False)
    return model


FREEZING = [frozen_by_peft, frozen_for_kbit, frozen_by_hand, frozen_in_part]


@pytest.mark.parametrize("freeze", FREEZING)
def test_a_frozen_prefix_is_noticed_at_the_first_step(
    tiny: foreword.Backbone, start: Prefix, freeze: Any
) -> None:
    foreword.attach_trainable(tiny, start)
    model = freeze(tiny.model)
    with pytest.raises(TrainingError, match=r"need no gradients any more \(first: foreword_prefix"):
        loss(model.train())
    with torch.no_grad():
        loss(model)  # a pass that trains nothing goes on


def test_a_lora_that_learns_alone_is_noticed_in_evaluation_mode_too(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    foreword.attach_trainable(tiny, start)
    model = frozen_by_peft(tiny.model).eval()
    with pytest.raises(TrainingError, match="get_peft_model"):
        loss(model)
    loss(frozen_by_hand(model))  # nothing learns: a mere look


class Layered(Parameterization):
    """A user's own: a linear layer moves the keys of a start."""

    def __init__(self, start: Prefix) -> None:
        super().__init__()
        self.start = start
        self.layer = nn.Linear(start.keys[0].shape[-1], start.keys[0].shape[-1])

    def materialise(self) -> Prefix:
        keys = tuple(key + self.layer(key) for key in self.start.keys)
        return Prefix(self.start.sites, keys, self.start.values, self.start.meta)


def test_a_lora_inside_the_prefix_itself_is_noticed(tiny: foreword.Backbone, start: Prefix) -> None:
    """`all-linear` finds the linear layers of a reparameterisation as well."""
    foreword.attach_trainable(tiny, Layered(start))
    model = peft.get_peft_model(tiny.model, peft.LoraConfig(target_modules="all-linear"))
    with pytest.raises(TrainingError, match="something froze them"):
        loss(model.train())


def test_sft_with_a_peft_config_raises_at_its_first_step(
    tiny: foreword.Backbone, start: Prefix, tmp_path: Path
) -> None:
    foreword.attach_trainable(tiny, start)
    settings = SFTConfig(
        str(tmp_path), max_steps=2, use_cpu=True, report_to="none", bf16=False, disable_tqdm=True
    )
    run = SFTTrainer(
        tiny.model,
        settings,
        train_dataset=Dataset.from_list([{"text": "Zizzi serves Thai food."}] * 8),
        processing_class=byte_tokenizer(),
        peft_config=LORA,
    )
    with pytest.raises(TrainingError, match="freeze=False"):
        run.train()


@pytest.mark.parametrize("how", ["taken out", "replaced"])
def test_a_prefix_that_the_model_lost_is_noticed(
    tiny: foreword.Backbone, start: Prefix, how: str
) -> None:
    foreword.attach_trainable(tiny, start)
    if how == "taken out":
        del tiny.model.foreword_prefix
    else:
        tiny.model.foreword_prefix = nn.Identity()
    with pytest.raises(TrainingError, match="no longer the prefix in training"):
        loss(tiny.model)


def test_an_optimiser_from_before_trains_nothing(tiny: foreword.Backbone, start: Prefix) -> None:
    early = torch.optim.SGD(tiny.model.parameters(), 0.1)
    foreword.attach_trainable(tiny, start)
    loss(tiny.model).backward()
    with pytest.raises(TrainingError, match="SGD holds none of the prefix's parameters"):
        early.step()


def test_an_optimiser_of_the_lora_alone_is_told_once(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    adapted = frozen_by_peft(tiny.model)
    foreword.attach_trainable(adapted, start, freeze=False)
    lora = [p for name, p in adapted.named_parameters() if "lora_" in name]
    optimizer = torch.optim.SGD(lora, 0.1)
    for warned in (False, True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss(adapted).backward()
        assert [w.category for w in caught] == [NotTrained] * warned
        optimizer.step()


def test_what_trains_the_prefix_is_left_alone(
    tiny: foreword.Backbone, start: Prefix, tmp_path: Path
) -> None:
    """Two optimisers, one of another model, a copy, and a Trainer: no word of any."""
    adapted = frozen_by_peft(tiny.model)
    trained = foreword.attach_trainable(adapted, start, freeze=False)
    both = [
        torch.optim.SGD([p for name, p in adapted.named_parameters() if "lora_" in name], 0.1),
        torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1),
        torch.optim.SGD(trained.parameterization.parameters(), 0.1),
    ]
    for _ in range(2):
        loss(adapted.train()).backward()
        for optimizer in both:
            optimizer.step()
    twin = copy.deepcopy(tiny.model)
    loss(twin).backward()
    torch.optim.SGD(twin.parameters(), 0.1).step()
    loss(twin)
    model = tiny.model
    row = {"input_ids": ROW[0].tolist()}
    settings = arguments(tmp_path, learning_rate=0.1)
    before = trained.prefix().digest
    Trainer(model, settings, train_dataset=[row] * 6, data_collator=collated).train()
    assert trained.prefix().digest != before


def test_a_prefix_no_longer_in_training_is_not_looked_after(
    tiny: foreword.Backbone, start: Prefix
) -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks as hooks

    gc.collect()
    before = len(hooks)
    optimizer = torch.optim.SGD(tiny.model.parameters(), 0.1)
    foreword.attach_trainable(tiny, start)
    foreword.attach_trainable(tiny, start)
    assert len(hooks) == before + 1
    foreword.attach(tiny, start)
    assert len(hooks) == before
    optimizer.step()
    foreword.attach_trainable(tiny, start)
    twin = copy.deepcopy(tiny.model)
    assert len(hooks) == before + 2
    del twin
    foreword.detach(tiny)
    gc.collect()
    assert len(hooks) == before
