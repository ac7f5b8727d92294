"""Negative log-likelihood of the target tokens, logits computed where there are targets only.

Shapes: B rows, T tokens, N target tokens of the batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from foreword.backbone.head import head_sees
from foreword.backbone.kinds import kind_of
from foreword.backbone.kinds.base import IGNORED
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


def score(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
) -> Scores:
    """Score the labelled tokens of a right-padded batch; each tensor is (B, T) int64.

    Those of a decoder are among its inputs; an encoder-decoder's have a T of their own.
    """
    kind = kind_of(model.config)
    inputs, following_BT = kind.supervised(model, input_ids, attention_mask, labels)
    wanted_BT = following_BT != IGNORED
    with head_sees(model, wanted_BT) as narrowed:
        logits = model(**inputs, use_cache=False).logits
    logits_NV = logits[0] if narrowed else logits[wanted_BT]
    nll_N, hit_N = token_nll(logits_NV, following_BT[wanted_BT])
    return Scores(nll_N, hit_N, wanted_BT.nonzero()[:, 0])
