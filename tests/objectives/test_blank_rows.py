"""Rows without a target, which fill up the batches of several processes: no task of a head sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import foreword
from foreword.data import Collator, Encoded
from foreword.head import Head
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.headed import with_head
from foreword.methods.prefix.learner import PrefixLearner
from foreword.methods.prefix.start import start
from foreword.objectives.class_weights import class_weights
from foreword.objectives.encode import encode
from foreword.objectives.supervised import Supervised, head_scores
from foreword.objectives.task import for_task
from foreword.prefix import Prefix
from foreword.train.shares import BLANK
from tests.tasks.models import ANSWER, CLASSIFY, TAG, tiny_encoder

NUMBERS = [{"text": "ab", "label": 0.5}, {"text": "c", "label": 1.5}, {"text": "d", "label": 2.5}]
SEVERAL: list[dict[str, Any]] = [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "classify": [*CLASSIFY[:3], CLASSIFY[-1]],
    "tag": TAG[:4],
    "answer": ANSWER[:4],
    "regress": NUMBERS,
    "multilabel": SEVERAL,
}
SETTINGS = foreword.TrainSettings(length=3, steps=1, parameterization="direct")


class Trained:
    """A task's rows as they are trained on, with a head whose weights are not zero.

    Args:
        task: The task.
        settings: What training does.
    """

    def __init__(self, task: str, settings: foreword.TrainSettings = SETTINGS) -> None:
        self.backbone, rows = tiny_encoder(), ROWS[task]
        self.settings = for_task(self.backbone, settings, rows)
        bare = start(self.backbone, self.settings, rows)
        first = with_head(self.backbone, bare, self.settings, rows)
        self.first = self._seen(first)
        self.rows = encode(self.backbone, rows, self.settings, self.first)[0]

    @property
    def head(self) -> Head:
        assert self.first.head is not None
        return self.first.head

    def _seen(self, first: Prefix) -> Prefix:
        assert first.head is not None
        weight = torch.randn(first.head.weight.shape, generator=torch.Generator().manual_seed(0))
        return first.with_head(first.head.made_of(weight, first.head.bias))

    def step(self, rows: list[Encoded]) -> tuple[float, int, list[Tensor]]:
        """Loss and targets of a batch in training, and the gradients."""
        made = parameterise(self.backbone, self.first, self.settings, self.rows)
        weights = class_weights(self.settings, self.rows, len(self.head.labels))
        dropout = PrefixDropout(0.0, 0, 0)
        with self.backbone.attached(None) as attachment:
            objective = Supervised(headed=True, weights_L=weights)
            module = PrefixLearner(made, self.backbone, attachment, dropout, objective).train()
            found = module(**Collator(1)(rows))
            found["loss"].backward()
        gradients = [p.grad for p in made.parameters() if p.grad is not None]
        return float(found["loss"].detach()), int(found["targets"]), gradients


@pytest.mark.parametrize("task", ROWS)
def test_a_blank_row_adds_nothing_to_loss_count_or_gradient(task: str) -> None:
    """One that was classified counted as a target, and made the mean of its step too small."""
    trained = Trained(task)
    loss, count, gradients = trained.step(trained.rows)
    filled_loss, filled_count, filled = trained.step([*trained.rows, BLANK, BLANK])
    assert count == filled_count > 0
    assert filled_loss == pytest.approx(loss, rel=1e-5)
    assert len(filled) == len(gradients) > 0
    for own, other in zip(gradients, filled, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ROWS)
def test_a_batch_of_blank_rows_is_nothing(task: str) -> None:
    loss, count, gradients = Trained(task).step([BLANK, BLANK])
    assert (loss, count) == (0, 0)
    assert all(not gradient.any() for gradient in gradients)


def test_weights_of_classes_stay_with_their_rows() -> None:
    settings = foreword.TrainSettings(length=3, steps=1, task="classify", class_weights="balanced")
    trained = Trained("classify", settings)
    rows = [trained.rows[0], *trained.rows]
    loss, count, _ = trained.step(rows)
    assert trained.step([BLANK, *rows, BLANK])[:2] == (pytest.approx(loss, rel=1e-5), count)


@pytest.mark.parametrize("task", ROWS)
def test_each_target_says_its_own_row(task: str) -> None:
    trained = Trained(task)
    batch = Collator(1)([BLANK, *trained.rows])
    ids_BT, mask_BT = batch["input_ids"], batch["attention_mask"]
    hidden_BTD = torch.randn(*ids_BT.shape, trained.head.width)
    logits = trained.head.logits(hidden_BTD, mask_BT)
    scores = head_scores(trained.head, logits, batch["labels"], mask_BT)
    assert set(scores.row_N.tolist()) == set(range(1, len(trained.rows) + 1))
