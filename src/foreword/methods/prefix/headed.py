"""A prefix that is trained with the head that it carries.

Shapes: L labels, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from foreword.backbone import Backbone
from foreword.head import Head
from foreword.methods.heads import new_head
from foreword.methods.prefix.parameterization import Parameterization
from foreword.methods.prefix.settings import PrefixSettings
from foreword.prefix import Prefix


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
    head = new_head(backbone, settings, rows)
    has = start.head
    if head is None or has is None:
        return start.with_head(head)
    wanted = (head.task, head.pooling, head.pair)
    if (has.task, has.pooling, has.pair) == wanted and set(head.labels) <= set(has.labels):
        return start
    return start.with_head(head)
