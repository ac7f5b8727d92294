"""How much a row counts in the loss, by its class: n / (k * count), as scikit-learn's ``balanced``.

Shapes: B rows, L labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.data import Encoded
from foreword.objectives.settings import DataSettings


def class_weights(settings: DataSettings, rows: Sequence[Encoded], labels: int) -> Tensor | None:
    """A weight for each label (L,), float32, 0 where no row has it; None where rows count alike.

    The weights of all rows sum to their number, so that the loss keeps its size.

    Args:
        settings: What training does.
        rows: Encoded training rows of a task that classifies.
        labels: Number of labels of the head.
    """
    if settings.class_weights is None:
        return None
    counts = Counter(row.labels[0] for row in rows)
    weights = [
        len(rows) / (len(counts) * counts[label]) if counts[label] else 0.0
        for label in range(labels)
    ]
    return torch.tensor(weights, dtype=torch.float32)


def weighted(nll_B: Tensor, labels_B: Tensor, weights_L: Tensor) -> Tensor:
    """The NLL of each row times the weight of its class; a blank row's, which is 0, stays so."""
    return nll_B * weights_L.to(nll_B.device)[labels_B.clamp(min=0)]
