"""`Head`: what turns a backbone's hidden states into labels: a linear layer, learned with its prefix.

P-tuning v2 (Liu et al., ACL 2022, section 3.3): deep prefixes with a linear head, no verbalizer.

Shapes: B rows, T tokens, D hidden size, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foreword.arguments import check_fields
from foreword.description import (
    HEAD_TASKS,
    LATER,
    MAX_LABEL,
    POOLED,
    POOLINGS,
    SPAN,
    VALUE,
    HeadTask,
    Pooling,
    check_head,
    check_scale,
    is_label,
)
from foreword.errors import PrefixError

__all__ = [
    "HEAD_TASKS",
    "MAX_LABEL",
    "POOLED",
    "POOLINGS",
    "SPAN",
    "VALUE",
    "Head",
    "HeadTask",
    "Pooling",
    "check_head",
    "check_scale",
    "is_label",
    "pooled",
]


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer over hidden states, and what its outputs mean.

    Attributes:
        task: ``classify``: a label for each row, from one vector that stands for it; ``tag``: a label
            for each word, from its first token; ``answer``: where an answer starts and ends;
            ``regress``: a number for each row; ``multilabel``: any number of labels for each row.
        labels: What each output means; of a head that answers, `SPAN`, of one that measures, `VALUE`.
            Of one for several labels each output is the logit of its own label alone.
        pooling: Which vector stands for a row that is classified or measured: the ``mean`` of its
            tokens, the ``first`` or the ``last``. None for the tasks `tag` and `answer`.
        weight: (L, D).
        bias: (L,), of the same dtype.
        pair: Whether a row that is classified or measured is two texts, which the tokenizer puts
            together.
        mean: What an output of 0 stands for, of a head that measures: the mean of what it was trained
            on. None for the other tasks.
        deviation: By how much a step of 1 of the output moves that; above 0.

    Raises:
        PrefixError: Something of it does not fit the rest.
    """

    task: HeadTask
    labels: tuple[str, ...]
    pooling: Pooling | None
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    pair: bool = False
    mean: float | None = None
    deviation: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, PrefixError)
        check_head(self.task, self.labels, self.pooling, pair=self.pair)
        check_scale(self.task, self.mean, self.deviation)
        shapes = tuple(self.weight.shape), tuple(self.bias.shape)
        fits = self.weight.ndim == 2 and shapes[1] == (len(self.labels),) == shapes[0][:1]
        if not fits or self.width < 1:
            raise PrefixError(
                f"a head of {len(self.labels)} labels needs a weight (labels, hidden size) and a bias "
                f"(labels,); found {shapes[0]} and {shapes[1]}"
            )
        if self.weight.dtype != self.bias.dtype:
            raise PrefixError(
                "a head's weight and bias need one dtype; found "
                f"{self.weight.dtype} and {self.bias.dtype}"
            )

    @property
    def width(self) -> int:
        """Hidden size D of the backbone that it is for."""
        return int(self.weight.shape[1])

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Weight and bias."""
        return self.weight, self.bias

    @property
    def is_plain(self) -> bool:
        """Whether task, labels and pooling say all of it, as in the heads of the format's version 3."""
        return not self.pair and not self.is_later

    @property
    def is_later(self) -> bool:
        """Whether its task is one that the format knows since version 5."""
        return self.task in LATER

    @property
    def measures(self) -> bool:
        """Whether it gives numbers."""
        return self.task == "regress"

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors' contents, as JSON values.

        Of a plain head there is no more than there was before there were others.
        """
        described = self.describe_all()
        if self.is_plain:
            del described["pair"]
        return described

    def describe_all(self) -> dict[str, Any]:
        """As `describe`, with what a row is, of every head."""
        scale = {"mean": self.mean, "deviation": self.deviation} if self.measures else {}
        return {
            "task": self.task,
            "labels": list(self.labels),
            "pooling": self.pooling,
            "width": self.width,
            "pair": self.pair,
            **scale,
        }

    def to(self, dtype: torch.dtype) -> Head:
        """The same head with tensors of `dtype`."""
        return self.made_of(self.weight.to(dtype), self.bias.to(dtype))

    def made_of(self, weight_LD: Tensor, bias_L: Tensor) -> Head:
        """The same head with other tensors."""
        return replace(self, weight=weight_LD, bias=bias_L)

    def scaled(self, logits: Tensor) -> Tensor:
        """What outputs stand for: of a head that measures numbers, else themselves."""
        if self.mean is None or self.deviation is None:
            return logits
        return self.mean + self.deviation * logits.double()

    def logits(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """Float32 logits: (B, L) of a head with a pooling, else (B, T, L).

        Args:
            hidden_BTD: The backbone's last hidden states.
            mask_BT: Which tokens are real.
        """
        if self.pooling is not None:
            hidden = pooled(hidden_BTD, mask_BT, self.pooling)
        else:
            hidden = hidden_BTD.float()
        weight, bias = (tensor.to(hidden.device).float() for tensor in self.tensors)
        return hidden @ weight.T + bias


def pooled(hidden_BTD: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """The vector that stands for each row, float32 (B, D).

    Args:
        hidden_BTD: Hidden states, of any floating dtype.
        mask_BT: Which tokens are real; at least one in each row.
        pooling: Their ``mean``, the ``first`` of them or the ``last``.
    """
    hidden_BTD = hidden_BTD.float()
    if pooling == "mean":
        weight_BT1 = mask_BT.to(hidden_BTD.dtype)[..., None]
        return (hidden_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1)
    real_BT = mask_BT.bool()
    if pooling == "last":
        place_BT = torch.arange(mask_BT.shape[1], device=mask_BT.device).expand_as(mask_BT)
        place_B = place_BT.masked_fill(~real_BT, -1).amax(dim=1)
    else:
        place_B = real_BT.int().argmax(dim=1)
    return hidden_BTD[torch.arange(len(place_B), device=place_B.device), place_B]
