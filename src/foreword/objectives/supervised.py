"""Negative log-likelihood of target tokens or labels, logits computed where there are targets only.

Shapes: B rows, T tokens, N target tokens of the batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from foreword.backbone.kinds.base import IGNORED
from foreword.backbone.measured import kind_measured
from foreword.backbone.output_layer import head_sees
from foreword.data import Encoded
from foreword.head import Head
from foreword.objectives.base import Batch, Objective, Regularizer
from foreword.objectives.class_weights import weighted
from foreword.objectives.nll import token_nll
from foreword.tasks import LABELLINGS


@dataclass(frozen=True)
class Scores:
    """Per target (token or label) of a batch, in row-major order.

    Attributes:
        nll_N: Negative log-likelihood in nats, or what else a head's task makes small, float32.
        hit_N: Whether the target is the likeliest.
        row_N: The row that it belongs to.
    """

    nll_N: Tensor
    hit_N: Tensor
    row_N: Tensor


@dataclass(frozen=True)
class Supervised(Objective):
    """The negative log-likelihood of targets that rows have.

    Attributes:
        headed: Whether targets are labels of a head, and not tokens.
        weights_L: How much a row counts in training by its class, if rows do not count alike; made of
            the rows, and no state.
        regularizer: What is made small beside it.
    """

    headed: bool = False
    weights_L: Tensor | None = None
    regularizer: Regularizer | None = None

    def loss(
        self, model: PreTrainedModel, batch: Batch, head: Head | None, *, training: bool
    ) -> tuple[Tensor, int]:
        """Summed NLL of the targets of a right-padded batch (B, T), and their number."""
        scores = score(model, batch, head)
        nll_N = scores.nll_N
        if self.weights_L is not None and training:
            nll_N = weighted(nll_N, batch["labels"][scores.row_N, 0], self.weights_L)
        return nll_N.sum(), len(scores.nll_N)

    def size(self, batch: Batch) -> tuple[int, int]:
        """Rows and real tokens."""
        return len(batch["labels"]), int(batch["attention_mask"].sum())

    def length(self, example: Encoded) -> int:
        """Tokens; labels of a head are none, however many there are."""
        return len(example.input_ids) if self.headed else example.size


def score(model: PreTrainedModel, batch: Batch, head: Head | None = None) -> Scores:
    """Score the labels of a right-padded batch.

    Without a head labels are tokens (B, T): those of a decoder are among its inputs, an
    encoder-decoder's have a T of their own. With one they are its labels, as its task arranges them.
    """
    if head is not None:
        kind, mask_BT = kind_measured(model), batch["attention_mask"]
        logits = head.logits(kind.hidden(model, kind.read(batch)), mask_BT)
        return head_scores(head, logits, batch["labels"], mask_BT)
    logits_NV, targets_N, row_N = target_logits(model, batch)
    return Scores(*token_nll(logits_NV, targets_N), row_N)


def target_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, V) that tell the target tokens of a right-padded batch, those, and each one's row.

    The arguments are those of `score`, for a model that writes text.
    """
    inputs, following_BT = kind_measured(model).supervised(model, batch)
    wanted_BT = following_BT != IGNORED
    with head_sees(model, wanted_BT) as narrowed:
        logits = model(**inputs, use_cache=False).logits
    logits_NV = logits[0] if narrowed else logits[wanted_BT]
    return logits_NV, following_BT[wanted_BT], wanted_BT.nonzero()[:, 0]


def head_scores(head: Head, logits: Tensor, labels: Tensor, mask_BT: Tensor) -> Scores:
    """Score what a head says: `Head.logits`, the labels that `Labelling.targets` gives.

    A row without a target, which fills a batch up, is left out before its task sees it, whichever the
    task is: it adds nothing to the loss, nor to the number of targets.
    """
    labelling = LABELLINGS[head.task]
    filled_B = (labels != IGNORED).any(dim=1)
    seen_BT = mask_BT.expand(len(labels), -1)[filled_B]
    outputs, targets_N, place_N = labelling.flat(logits[filled_B], labels[filled_B], seen_BT)
    own = labelling.losses(head, outputs, targets_N)
    row_N = filled_B.nonzero()[:, 0][place_N]
    return Scores(*(token_nll(outputs, targets_N) if own is None else own), row_N)
