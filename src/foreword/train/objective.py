"""Negative log-likelihood of the target tokens, logits computed where there are targets only.

Shapes: B rows, T tokens, N target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from foreword.backbone.signature import parameters_of
from foreword.data.encode import IGNORED


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
    wanted_BT = labels[:, 1:] != IGNORED
    columns = wanted_BT.any(dim=0).nonzero().squeeze(1)
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    if "logits_to_keep" in parameters_of(type(model)):
        logits = model(**inputs, logits_to_keep=columns).logits
    else:
        logits = model(**inputs).logits[:, columns]
    kept = wanted_BT[:, columns]
    targets_N = labels[:, 1:][:, columns][kept]
    logits_NV = logits[kept].float()
    nll_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    hit_N = logits_NV.detach().argmax(dim=-1) == targets_N
    return Scores(nll_N, hit_N, kept.nonzero()[:, 0])
