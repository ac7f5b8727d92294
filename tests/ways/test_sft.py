"""TRL's SFTTrainer over `attach_trainable`: padded, padding-free and packed, each against the hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

import foreword
from foreword.prefix import WindowPolicy
from tests.conftest import MEMORY, byte_tokenizer, tiny_model
from tests.ways.reference import Way, way
from tests.ways.training import LR, STEPS, by_hand, losses_of

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")

HOWS: dict[str, dict[str, Any]] = {
    "padded": {},
    "padding-free": {"padding_free": True, "max_length": None},
    "packed": {"packing": True, "max_length": 48},
    "checkpointed and packed": {"packing": True, "max_length": 64, "gradient_checkpointing": True},
}
CASES: list[tuple[str, WindowPolicy, str]] = [
    *(("llama", "visible", how) for how in HOWS),
    ("gpt2", "visible", "packed"),
    ("mistral", "visible", "packed"),
    ("mistral", "windowed", "packed"),
    ("gemma2", "windowed", "padding-free"),
]


def config(folder: Path, **changes: Any) -> SFTConfig:
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 3,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
    }
    return SFTConfig(**{**given, **changes})


def rows_of(case: Way) -> Dataset:
    labels = [[-100, *row.tolist()[1:]] for row in case.rows]
    ids = [row.tolist() for row in case.rows]
    return Dataset.from_list(
        [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]
    )


@pytest.mark.parametrize(("family", "windows", "how"), CASES)
def test_sft_does_what_is_done_by_hand_through_the_cache(
    family: str, windows: WindowPolicy, how: str, tmp_path: Path
) -> None:
    """Packed rows are several in one: each must see the prefix, and nothing of the others."""
    case = way(family, windows)
    start = case.shared
    wanted, tensors = by_hand(case, start)
    trained = foreword.attach_trainable(case.model, start)
    run = SFTTrainer(
        case.model,
        config(tmp_path, **HOWS[how]),
        train_dataset=rows_of(case),
        processing_class=byte_tokenizer(),
    )
    run.train()
    assert losses_of(run) == pytest.approx(wanted, rel=1e-5)
    found = trained.prefix()
    told = zip((*found.keys, *found.values), tensors, (*start.keys, *start.values), strict=True)
    for ours, theirs, before in told:
        learned = theirs - before
        assert float(learned.abs().max()) > 1e-4, "nothing was learned"
        assert float((ours - before - learned).abs().max()) <= 1e-3 * float(learned.abs().max())


def test_sft_as_it_comes_lowers_the_loss(tmp_path: Path) -> None:
    """Gradient checkpointing and bfloat16 are its defaults; texts are tokenized by it."""
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    trained = foreword.attach_trainable(backbone, backbone.capture("Restaurants."))
    settings = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=12,
        learning_rate=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    assert settings.gradient_checkpointing
    assert settings.bf16
    texts = Dataset.from_list([{"text": f"{row['mr']} -> {row['ref']}"} for row in MEMORY])
    run = SFTTrainer(
        backbone.model, settings, train_dataset=texts, processing_class=backbone.tokenizer
    )
    run.train()
    losses = losses_of(run)
    assert losses[-1] < losses[0] - 0.05
    assert all(map(math.isfinite, losses))
    assert all(p.dtype == torch.float32 for p in trained.parameterization.parameters())
