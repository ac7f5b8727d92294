"""What a mixture says of the next token, each branch through transformers without a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import foreword
from foreword.mixture import Mixture
from foreword.prefix import Prefix


def said(
    backbone: foreword.Backbone,
    prefix: Prefix | None,
    ids: Sequence[int],
    decoded: Sequence[int] | None = None,
) -> Tensor:
    """Log-probabilities (T, V) after each token, float64; behind an encoder of `decoded`."""
    given: dict[str, Any] = {"input_ids": torch.tensor([list(ids)])}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    if decoded is not None:
        given["decoder_input_ids"] = torch.tensor([list(decoded)])
    with backbone.attached(prefix), torch.no_grad():
        logits: Tensor = backbone.model(**given, use_cache=False).logits[0]
    return logits.double().log_softmax(dim=-1)


def formula(
    backbone: foreword.Backbone,
    mixture: Mixture,
    ids: Sequence[int],
    decoded: Sequence[int] | None = None,
) -> Tensor:
    """Log p = (1 - sum w) log p(base) + sum w_i log p(prefix i), renormalised: (T, V)."""
    total = (1 - sum(w for w, _ in mixture.parts)) * said(backbone, None, ids, decoded)
    for weight, prefix in mixture.parts:
        total = total + weight * said(backbone, prefix, ids, decoded)
    return total.log_softmax(dim=-1)
