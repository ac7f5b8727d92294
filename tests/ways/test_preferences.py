"""TRL's trainers beside SFT over `attach_trainable`: DPO, KTO, GRPO, RLOO, Reward.

Those that compare with a reference load it from the policy's path, under the policy's attention: it
must be the frozen model without a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
)

import foreword
from tests.conftest import byte_tokenizer

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

STEPS = 2
PROMPTS = ["name[Zizzi] ->", "name[Aromi] ->", "food[Thai] ->", "food[fish] ->"]
PAIRS = [{"prompt": p, "chosen": " good food", "rejected": " bad"} for p in PROMPTS]
JUDGED = [
    {"prompt": p, "completion": " good food" if i % 2 else " bad", "label": bool(i % 2)}
    for i, p in enumerate(PROMPTS)
]
ROW = torch.tensor([[17, 60, 4, 99, 201, 33, 8, 120]])


def common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }


def letters(completions: list[str], **_: Any) -> list[float]:
    """A reward: how many letters a text has."""
    return [float(sum(map(str.isalpha, text))) for text in completions]


def dpo(model: PreTrainedModel, folder: Path) -> Any:
    rows = Dataset.from_list(PAIRS)
    settings = DPOConfig(**common(folder))
    return DPOTrainer(model, args=settings, train_dataset=rows, processing_class=byte_tokenizer())


def kto(model: PreTrainedModel, folder: Path) -> Any:
    rows = Dataset.from_list(JUDGED)
    settings = KTOConfig(**common(folder))
    return KTOTrainer(model, args=settings, train_dataset=rows, processing_class=byte_tokenizer())


def by_reward(trainer: Any, config: Any) -> Callable[[PreTrainedModel, Path], Any]:
    def made(model: PreTrainedModel, folder: Path) -> Any:
        sampling = {"num_generations": 2, "max_completion_length": 5, "beta": 0.1}
        settings = config(**common(folder), **sampling)
        rows = Dataset.from_list([{"prompt": p} for p in PROMPTS])
        given = {"args": settings, "train_dataset": rows, "processing_class": byte_tokenizer()}
        return trainer(model, letters, **given)

    return made


TRAINERS: dict[str, Callable[[PreTrainedModel, Path], Any]] = {
    "dpo": dpo,
    "kto": kto,
    "grpo": by_reward(GRPOTrainer, GRPOConfig),
    "rloo": by_reward(RLOOTrainer, RLOOConfig),
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ROW).logits
    return found


@pytest.mark.parametrize("name", TRAINERS)
def test_the_reference_is_the_frozen_model(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder).eval()
    bare = logits(model)
    start = foreword.Backbone(model).capture([5, 9, 44, 21])
    trained = foreword.attach_trainable(model, start)
    trainer = TRAINERS[name](model, tmp_path)
    assert trainer.ref_model is not None
    assert trainer.ref_model is not model
    torch.testing.assert_close(logits(trainer.ref_model.eval()), bare, rtol=1e-5, atol=1e-5)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == STEPS
    assert all(math.isfinite(entry["loss"]) for entry in logged)
    if name == "dpo":  # the prefix alone tells policy and reference apart, from the first step on
        assert logged[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)
    found = trained.prefix()
    moved = max(float((a - b).abs().max()) for a, b in zip(found.keys, start.keys, strict=True))
    assert moved > 1e-3
    foreword.detach(model)
    assert torch.equal(logits(model.eval()), bare)


@pytest.mark.parametrize("score", ["frozen", "trained"])
def test_a_reward_model_under_a_prefix(score: str, tiny_folder: Path, tmp_path: Path) -> None:
    """The score head is new and random: with `freeze` it stays, unless it is told to learn."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1).eval()
    start = foreword.Backbone(model).capture([5, 9, 44, 21])
    trained = foreword.attach_trainable(model, start)
    if score == "trained":
        model.score.requires_grad_(True)
    before = model.score.weight.detach().clone()
    rows = Dataset.from_list(PAIRS)
    settings = RewardConfig(**{**common(tmp_path), "max_steps": 4})
    trainer = RewardTrainer(
        model, args=settings, train_dataset=rows, processing_class=byte_tokenizer()
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert torch.equal(model.score.weight, before) == (score == "frozen")
    assert trained.prefix().digest != start.to(torch.float32).digest
