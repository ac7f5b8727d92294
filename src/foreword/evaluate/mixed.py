"""Scores of rows under a mixture: each branch by itself, their log-probabilities mixed.

Shapes: N target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from foreword.attention.attachment import Attachment
from foreword.attention.bound import bound_to
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded
from foreword.mixing import rows_under
from foreword.mixture import Mixture, combined
from foreword.objectives.nll import token_nll
from foreword.objectives.supervised import Scores, target_logits


def on(backbone: Backbone, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch where the backbone's inputs go."""
    return {name: tensor.to(backbone.device) for name, tensor in batch.items()}


def mixed_scores(
    backbone: Backbone,
    attachment: Attachment,
    mixture: Mixture,
    rows: Sequence[Encoded],
    collate: Collator,
) -> Scores:
    """Scores of a batch's target tokens under a mixture.

    Args:
        backbone: The backbone.
        attachment: Its attachment.
        mixture: The mixture.
        rows: Rows as they were encoded for the leading prefix.
        collate: Makes a batch of them.
    """
    told: list[tuple[Tensor, Tensor]] = []

    def said() -> Iterator[Tensor]:
        """What each branch says (N, V), one after the other."""
        each = zip(mixture.branches, rows_under(backbone, rows, mixture), strict=True)
        for branch, own in each:
            bound = None if branch.under is None else bound_to(branch.under, backbone.sites)
            with attachment.using(bound):
                logits_NV, targets_N, row_N = target_logits(
                    backbone.model, on(backbone, collate(own))
                )
            told.append((targets_N, row_N))
            yield torch.log_softmax(logits_NV.float(), dim=-1)

    mixed_NV = combined(said(), mixture.coefficients)
    targets_N, row_N = told[0]
    return Scores(*token_nll(mixed_NV, targets_N), row_N)
