"""Negative log-likelihood of the target tokens, logits computed where there are targets only.

Shapes: B rows, T tokens, N target tokens of the batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from foreword.backbone.head import head_sees
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
    with head_sees(model, wanted_BT) as narrowed:
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    logits_NV = logits[0] if narrowed else logits[wanted_BT]
    nll_N, hit_N = token_nll(logits_NV, labels[:, 1:][wanted_BT[:, :-1]])
    return Scores(nll_N, hit_N, wanted_BT.nonzero()[:, 0])
