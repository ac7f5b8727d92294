"""A few steps of plain PyTorch, which what `fit` leaves is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import foreword
from foreword.data import Collator
from foreword.data.collate import padding_of
from foreword.methods.base import Method
from foreword.objectives.encode import encode
from foreword.train.settings import LoopSettings
from tests.conftest import MEMORY

TEXT: dict[str, Any] = {"prompt": "{mr} ->", "target": " {ref}"}
STEPS = 4
LOOP = LoopSettings(
    optimizer="adamw", lr=0.01, steps=STEPS, batch_size=12, warmup=0.0, group_by_length=False
)
"""Every step sees all rows, so that their order is of no matter."""

IDS = torch.tensor([[5, 6, 7, 8]])
"""A text that logits are compared on."""


def batch_of(
    backbone: foreword.Backbone, method: Method[Any, Any], settings: Any
) -> dict[str, Tensor]:
    """All rows as one batch, as the method reads them."""
    front = method.start(backbone, settings, MEMORY).in_front
    rows, _ = encode(backbone, MEMORY, settings, front)
    return Collator(padding_of(backbone.tokenizer, backbone.vocabulary))(rows)


def train(
    parameters: Iterable[nn.Parameter],
    logits_of: Callable[[Tensor, Tensor], Tensor],
    batch: dict[str, Tensor],
) -> None:
    """Train by AdamW at a rate that falls to zero, gradients clipped as transformers' Trainer does it.

    Args:
        parameters: What is trained.
        logits_of: Logits of token ids under a mask, for each token of the text.
        batch: The rows.
    """

    def loss() -> Tensor:
        logits = logits_of(batch["input_ids"], batch["attention_mask"])[:, :-1]
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
        )

    descend(parameters, loss)


def descend(parameters: Iterable[nn.Parameter], loss_of: Callable[[], Tensor]) -> None:
    """As `train`, by any loss.

    Args:
        parameters: What is trained.
        loss_of: The loss as it is now.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=LOOP.lr, weight_decay=0.0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LOOP.lr * (1 - step / STEPS)
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
