"""`Head`: what turns a backbone's hidden states into labels: a linear layer, learned with its prefix.

P-tuning v2 (Liu et al., ACL 2022, section 3.3): deep prefixes with a linear head, no verbalizer.

Shapes: B rows, T tokens, D hidden size, L labels.
"""

from __future__ import annotations

import math
import reprlib
import unicodedata
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from foreword.arguments import check_fields
from foreword.errors import PrefixError

HeadTask = Literal["classify", "tag", "answer", "regress"]
Pooling = Literal["mean", "first", "last"]

HEAD_TASKS: tuple[HeadTask, ...] = get_args(HeadTask)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POOLED: tuple[HeadTask, ...] = ("classify", "regress")
"""Tasks in which one vector stands for a row."""
MAX_LABEL = 256
"""Longest label, in characters."""
_NO_TEXT = frozenset({"Cc", "Cs", "Co", "Zl", "Zp"})
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Embeddings, overrides and isolates of direction, which can make text read as another."""
SPAN = ("start", "end")
"""Labels of a head that answers: where an answer starts, and where it ends."""
VALUE = ("value",)
"""What the one output of a head that measures stands for."""


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer over hidden states, and what its outputs mean.

    Attributes:
        task: ``classify``: a label for each row, from one vector that stands for it; ``tag``: a label
            for each word, from its first token; ``answer``: where an answer starts and ends;
            ``regress``: a number for each row.
        labels: What each output means; of a head that answers, `SPAN`, of one that measures, `VALUE`.
        pooling: Which vector stands for a row that is classified or measured: the ``mean`` of its
            tokens, the ``first`` or the ``last``. None for the other tasks.
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
        return not self.pair and not self.measures

    @property
    def measures(self) -> bool:
        """Whether it gives numbers."""
        return self.task == "regress"

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors' contents, as JSON values.

        Of a plain head there is no more than there was before there were others.
        """
        plain = {
            "task": self.task,
            "labels": list(self.labels),
            "pooling": self.pooling,
            "width": self.width,
        }
        if self.is_plain:
            return plain
        scale = {"mean": self.mean, "deviation": self.deviation} if self.measures else {}
        return {**plain, "pair": self.pair, **scale}

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
        """Float32 logits: (B, L) of a head that classifies or measures, else (B, T, L).

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


def check_head(
    task: str, labels: tuple[str, ...], pooling: str | None, *, pair: bool = False
) -> None:
    """Check that a head's task, labels, pooling and inputs go together.

    Raises:
        PrefixError: They do not.
    """
    if task not in HEAD_TASKS:
        raise PrefixError(
            f"a head's task is one of {', '.join(HEAD_TASKS)}; found {reprlib.repr(task)}"
        )
    if task == "answer" and labels != SPAN:
        raise PrefixError(
            f"a head that answers has the labels {SPAN}; found {reprlib.repr(labels)}"
        )
    if task == "regress" and labels != VALUE:
        raise PrefixError(
            f"a head that measures has the labels {VALUE}; found {reprlib.repr(labels)}"
        )
    for label in labels:
        if not is_label(label):
            raise PrefixError(
                f"a label is 1 to {MAX_LABEL} printable characters; found {reprlib.repr(label)}"
            )
    if (len(labels) < 2 and task != "regress") or len(set(labels)) != len(labels):
        raise PrefixError(f"a head needs at least two labels, all different; found {len(labels)}")
    expected = POOLINGS if task in POOLED else (None,)
    if pooling not in expected:
        raise PrefixError(
            f"a head for {task!r} has a pooling among {expected}; found {reprlib.repr(pooling)}"
        )
    if pair and task not in POOLED:
        raise PrefixError(
            f"a head that reads pairs of texts classifies them or measures them; found one for {task!r}"
        )


def check_scale(task: str, mean: object, deviation: object) -> None:
    """Check that a head that measures, and no other, says what its output stands for.

    Raises:
        PrefixError: It does not.
    """
    if task != "regress":
        if (mean, deviation) != (None, None):
            raise PrefixError(f"a head for {task!r} has no mean and no deviation")
        return
    if not (type(mean) is float and math.isfinite(mean)):
        raise PrefixError(f"a head that measures has a finite mean; found {reprlib.repr(mean)}")
    if not (type(deviation) is float and 0 < deviation < math.inf):
        raise PrefixError(
            f"a head that measures has a deviation above 0; found {reprlib.repr(deviation)}"
        )


def is_label(text: object) -> bool:
    """Whether something can be the name of a class, in training as in a file.

    Names of all scripts can, with their joiners and spaces of every width. Control characters,
    surrogates, private characters, line breaks and what turns the direction of other text cannot.
    """
    if not (isinstance(text, str) and 0 < len(text) <= MAX_LABEL):
        return False
    return not any(unicodedata.category(c) in _NO_TEXT or c in _TURNING for c in text)


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
