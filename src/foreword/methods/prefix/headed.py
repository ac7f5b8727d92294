"""A prefix that is trained with the head that it carries.

Shapes: L labels, D hidden size.
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
from foreword.methods.prefix.parameterization import Parameterization
from foreword.methods.prefix.settings import PrefixSettings
from foreword.objectives.task import labelling_rows
from foreword.prefix import Prefix, rms
from foreword.tasks.regress import scale_of_numbers

SEEN = 16
"""Rows that the size of hidden states is measured on."""


class HeadedParameterization(Parameterization):
    """Keys and values, however they are made, and beside them a linear head.

    The weight is trained in units of `scale`, so that the learning rate of keys and values suits it.

    Args:
        inner: What makes keys and values.
        head: Where the head starts.
        scale: Size of a natural step of a weight.
    """

    def __init__(self, inner: Parameterization, head: Head, scale: float) -> None:
        super().__init__()
        self.inner = inner
        self.head = head
        self.scale = scale
        self.weight = nn.Parameter(head.weight.detach().float() / scale)
        self.bias = nn.Parameter(head.bias.detach().float().clone())

    def materialise(self) -> Prefix:
        """The inner prefix with this head."""
        head = self.head.made_of(self.weight * self.scale, self.bias)
        return self.inner.materialise().with_head(head)


def with_head(
    backbone: Backbone, start: Prefix, settings: PrefixSettings, rows: Sequence[Mapping[str, Any]]
) -> Prefix:
    """The start of a prefix with a head of zeros for the rows' labels.

    A head that it has already stays, if it is for this task and knows the labels.

    Raises:
        DataError: A row has not what the task needs.
    """
    task = settings.task
    if task not in HEAD_TASKS:
        return start.with_head(None)
    labels = labelling_rows(rows, settings)
    has = start.head
    pair = settings.pair is not None
    wanted = (task, settings.pooling, pair)
    same = has is not None and (has.task, has.pooling, has.pair) == wanted
    if has is not None and same and set(labels) <= set(has.labels):
        return start
    shapes = (len(labels), backbone.width), (len(labels),)
    weight, bias = (torch.zeros(shape, dtype=torch.float32) for shape in shapes)
    mean, deviation = None, None
    if task == "regress":
        mean, deviation = scale_of_numbers(settings.templates, rows)
    head = Head(task, labels, settings.pooling, weight, bias, pair, mean, deviation)
    return start.with_head(head)


@torch.no_grad()
def scale_of(backbone: Backbone, start: Prefix, rows: Sequence[Encoded]) -> float:
    """Size of a natural step of a head's weight: all D of them together move a logit by about 1."""
    batch = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))(rows[:SEEN])
    inputs = {name: batch[name].to(backbone.device) for name in batch if name != "labels"}
    with backbone.attached(start):
        hidden_BTD = KINDS[backbone.kind].hidden(backbone.model, inputs)
    real = hidden_BTD[inputs["attention_mask"].bool()]
    return 1 / (max(rms(real), 1e-6) * math.sqrt(real.shape[-1]))
