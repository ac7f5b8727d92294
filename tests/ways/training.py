"""Training by hand: the prefix as `past_key_values` of the plain model, gradients through the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from foreword.prefix import Prefix, rms
from foreword.train.trainer import _checkpointing
from tests.oracle.reference import gradients_through_cache
from tests.ways.reference import Way

LR = 5.0
STEPS = 3


def by_hand(case: Way, start: Prefix, steps: int = STEPS) -> tuple[list[float], list[Tensor]]:
    """Losses and keys and values of gradient descent over all rows, in units of each site's RMS.

    The model must be the plain one: nothing is attached to it here.
    """
    tensors = [tensor.clone() for tensor in (*start.keys, *start.values)]
    units = [rms(tensor) for tensor in tensors]
    first = start.length if start.meta.positions == "offset" else 0
    half, losses = len(start.keys), []
    for _ in range(steps):
        found = [
            gradients_through_cache(
                case.family,
                case.model,
                tensors[:half],
                tensors[half:],
                row,
                first_position=first,
                visible=case.windows == "visible",
            )
            for row in case.rows
        ]
        targets = sum(len(row) - 1 for row in case.rows)
        losses.append(float(sum(loss for loss, _ in found)) / targets)
        for index, unit in enumerate(units):
            gradient = sum(gradients[index] for _, gradients in found) / targets
            tensors[index] = tensors[index] - LR * unit**2 * gradient
    return losses, tensors


def collated(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Rows as a right-padded batch; padding has no label."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[index, :length] = labels[index, :length] = torch.tensor(row["input_ids"])
        mask[index, :length] = 1
    labels[:, 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def arguments(folder: Path, *, checkpointing: bool = False, **changes: Any) -> TrainingArguments:
    """Plain gradient descent, every step logged."""
    os.environ.setdefault("WANDB_DISABLED", "true")
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 3,
        "max_steps": STEPS,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **_checkpointing(checkpointing),
    }
    return TrainingArguments(**{**given, **changes})


def losses_of(trainer: Any) -> list[float]:
    """What the trainer logged at each step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
