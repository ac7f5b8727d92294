"""Heads that start at zero and are trained beside whatever a method trains.

Shapes: B rows, T tokens, L labels, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from foreword.backbone import Backbone
from foreword.backbone.kinds import KINDS
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.head import HEAD_TASKS, Head
from foreword.objectives.settings import DataSettings
from foreword.objectives.task import labelling_rows
from foreword.prefix import Prefix, rms
from foreword.tasks.regress import scale_of_numbers

HEAD_RATE = 0.06
"""Learning rate that suits a head in its natural units, whatever the rate of what is beside it."""

SEEN = 16
"""Rows that the size of hidden states is measured on."""


def trained_head(
    backbone: Backbone, head: Head | None, rows: Sequence[Encoded], rate: float
) -> TrainedHead | None:
    """A head in training beside what moves at another rate; None without one.

    Args:
        backbone: The backbone.
        head: Where it starts.
        rows: Encoded training rows, some of which its scale is measured on.
        rate: Peak learning rate of what is beside it.
    """
    if head is None:
        return None
    return TrainedHead(head, scale_of(backbone, None, rows), HEAD_RATE / rate)


def numbers_of(head: Head | None) -> int:
    """How many numbers a head has."""
    return 0 if head is None else sum(tensor.numel() for tensor in head.tensors)


def new_head(
    backbone: Backbone, settings: DataSettings, rows: Sequence[Mapping[str, Any]]
) -> Head | None:
    """A head of zeros for the rows' labels, float32; None for a task that needs none.

    Raises:
        DataError: A row has not what the task needs.
    """
    task = settings.task
    if task not in HEAD_TASKS:
        return None
    labels = labelling_rows(rows, settings)
    shapes = (len(labels), backbone.width), (len(labels),)
    weight, bias = (torch.zeros(shape, dtype=torch.float32) for shape in shapes)
    mean, deviation = None, None
    if task == "regress":
        mean, deviation = scale_of_numbers(settings.templates, rows)
    pair = settings.pair is not None
    return Head(task, labels, settings.pooling, weight, bias, pair, mean, deviation)


@torch.no_grad()
def scale_of(backbone: Backbone, start: Prefix | None, rows: Sequence[Encoded]) -> float:
    """Size of a natural step of a head's weight: all D of them together move a logit by about 1."""
    batch = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))(rows[:SEEN])
    inputs = {name: batch[name].to(backbone.device) for name in batch if name != "labels"}
    with backbone.attached(start):
        hidden_BTD = KINDS[backbone.kind].hidden(backbone.model, inputs)
    real = hidden_BTD[inputs["attention_mask"].bool()]
    return 1 / (max(rms(real), 1e-6) * math.sqrt(real.shape[-1]))


class TrainedHead(nn.Module):
    """A linear head, in units in which a step of one learning rate suits it.

    Args:
        head: Where it starts.
        scale: Size of a natural step of a weight, as `scale_of` measures it.
        moved: What steps are multiplied by, where the learning rate is another part's.
    """

    def __init__(self, head: Head, scale: float, moved: float = 1.0) -> None:
        super().__init__()
        self._start = (head,)
        self._units = (scale * moved, moved)
        weight, bias = self._units
        self.weight = nn.Parameter(head.weight.detach().float() / weight)
        self.bias = nn.Parameter(head.bias.detach().float() / bias)

    @property
    def head(self) -> Head:
        """The head as it is now, with gradients into its parameters."""
        weight, bias = self._units
        return self._start[0].made_of(self.weight * weight, self.bias * bias)
