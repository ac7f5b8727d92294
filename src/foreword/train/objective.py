"""Negative log-likelihood of the target tokens, logits computed where there are targets only.

Shapes: B rows, T tokens, N target tokens of the batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from foreword.data.encode import IGNORED
from foreword.train.nll import token_nll


@dataclass(frozen=True)
class Scores:
    """Per target token of a batch, in row-major order.

    Attributes:
        nll_N: Negative log-likelihood in nats, float32.
        hit_N: Whether the target is the most likely token.
        row_N: The row that the token belongs to.
    """

    nll_N: Tensor
    hit_N: Tensor
    row_N: Tensor


def score(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Scores:
    """Score the labelled tokens of a right-padded batch; each tensor is (B, T) int64."""
    wanted_BT = nn.functional.pad(labels[:, 1:] != IGNORED, (0, 1))
    with _head_sees(model, wanted_BT) as narrowed:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    logits_NV = logits[0] if narrowed else logits[wanted_BT]
    nll_N, hit_N = token_nll(logits_NV, labels[:, 1:][wanted_BT[:, :-1]])
    return Scores(nll_N, hit_N, wanted_BT.nonzero()[:, 0])


@contextmanager
def _head_sees(model: nn.Module, wanted_BT: Tensor) -> Iterator[list[bool]]:
    """The model's output layer gets the wanted positions only, as one row (1, N, D).

    Yields a list that is not empty after a call in which that happened. A model without a module for
    its output layer, or one that calls it otherwise, gives all logits as ever.
    """
    narrowed: list[bool] = []

    def narrow(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if len(inputs) != 1 or inputs[0].shape[:-1] != wanted_BT.shape:
            return None
        narrowed.append(True)
        return (inputs[0][wanted_BT][None],)

    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    hook = head.register_forward_pre_hook(narrow) if isinstance(head, nn.Module) else None
    try:
        yield narrowed
    finally:
        if hook is not None:
            hook.remove()
