"""`evaluate_labels`: a prefix with a head on a task's rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.arguments import check_count
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data import Report, rows_of
from foreword.data.given import Data, name_of
from foreword.errors import DataError
from foreword.head import Head, HeadTask
from foreword.predict import (
    BATCH,
    head_logits,
    head_of,
    predictions_of,
    prefix_reader,
    templates_of,
)
from foreword.prefix import Prefix
from foreword.tasks import LABELLINGS, Labelled, Prediction
from foreword.train.objective import head_scores

Figure = tuple[str, str, str]
"""A figure as tables show it: label, name, format."""


def figures_of(task: HeadTask) -> tuple[Figure, ...]:
    """The figures of a head's task, in order."""
    return (
        *LABELLINGS[task].figures,
        LABELLINGS[task].loss,
        ("seconds", "seconds", "{:.1f}"),
    )


def figures_in(found: Mapping[str, Any], task: HeadTask) -> tuple[Figure, ...]:
    """Those of `figures_of` that are there, or ought to be."""
    may_lack = LABELLINGS[task].conditional - set(found)
    return tuple(figure for figure in figures_of(task) if figure[1] not in may_lack)


@dataclass(frozen=True)
class LabelEvaluation:
    """A prefix with a head on one set.

    Attributes:
        task: ``classify``, ``tag``, ``answer`` or ``regress``.
        prefix: Figures by name, see `figures_of`: shares are 0 to 100, correlations -1 to 1, ``nll`` is
            the mean negative log-likelihood of a label in nats, ``loss`` the mean squared error in units
            of the training rows' deviation.
        base: Figures of the same head on the frozen model without the prefix, or None. The head was
            trained with the prefix, so this says what the prefix does, not what another head could do.
        rows: Rows scored.
        truncation: What did not fit.
        predictions: Per row what the head says.
        gold: Per row what is right.
        backbone: Name of the backbone.
        same_weights: Whether its weights are those that the prefix was made on.
        data: Where the rows were read, or empty for rows given as they are.
        digest: Content digest of the prefix.
        remarks: What must be said beside the figures, such as why one is not given.
    """

    task: HeadTask
    prefix: dict[str, float]
    base: dict[str, float] | None
    rows: int
    truncation: Report
    predictions: list[Prediction] = field(repr=False)
    gold: list[Any] = field(repr=False)
    backbone: str = ""
    same_weights: bool = True
    data: str = ""
    digest: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures that there are, as tables show them."""
        return figures_in(self.prefix, self.task)

    @property
    def inputs(self) -> int:
        """Distinct inputs are not counted: as many as rows."""
        return self.rows

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**asdict(self), "inputs": self.inputs}


def evaluate_labels(
    backbone: Backbone,
    prefix: Prefix,
    data: Data,
    *,
    base: bool = True,
    limit: int | None = None,
    batch_size: int = BATCH,
    strict: bool = False,
) -> LabelEvaluation:
    """Label a task's rows and compare with what they say.

    Args:
        backbone: The backbone, left as it was found.
        prefix: The prefix, with a head; its recipe has the templates.
        data: Rows, or where to read them.
        base: Whether the head is evaluated without the prefix too.
        limit: Only the first so many rows.
        batch_size: Rows in one batch.
        strict: Refuse a backbone with other weights than the prefix was made on.

    Raises:
        DataError: Rows or columns are wrong, or a label is unknown to the head.
        MismatchError: The prefix does not fit the backbone.
    """
    check_backbone(backbone)
    if limit is not None:
        check_count("limit", limit, DataError)
    head = head_of(prefix)
    rows = rows_of(data)[:limit]
    backbone.check(prefix, strict=strict)
    seen = labelled(backbone, prefix, rows)
    predictions, ours = measured_labels(backbone, prefix, head, seen, batch_size)
    theirs = measured_labels(backbone, None, head, seen, batch_size)[1] if base else None
    return LabelEvaluation(
        task=head.task,
        prefix=ours,
        base=theirs,
        rows=len(rows),
        truncation=seen.report,
        predictions=predictions,
        gold=seen.gold,
        backbone=backbone.name,
        same_weights=prefix.meta.fingerprint in ("", backbone.fingerprint),
        data=name_of(data),
        digest=prefix.digest,
        remarks=LABELLINGS[head.task].remarks(head.labels),
    )


def labelled(backbone: Backbone, prefix: Prefix, rows: Sequence[Mapping[str, Any]]) -> Labelled:
    """Rows as the head of a prefix sees them.

    Raises:
        DataError: One cannot be used, or has a label that the head does not know.
    """
    head = head_of(prefix)
    reader = prefix_reader(backbone, prefix)
    return LABELLINGS[head.task].labelled(reader, templates_of(prefix), head.labels, rows)


def measured_labels(
    backbone: Backbone, prefix: Prefix | None, head: Head, data: Labelled, batch_size: int = BATCH
) -> tuple[list[Prediction], dict[str, float]]:
    """What a head says of rows, and its figures; without a prefix, of the backbone as it is."""
    began = time.perf_counter()
    flat = [one for own in data.readings for one in own]
    logits = head_logits(backbone, prefix, head, flat, batch_size)
    nll = _nll(head, logits, [one for own in data.targets for one in own])
    predictions = predictions_of(head, data.templates, data.rows, data.readings, logits)
    labelling = LABELLINGS[head.task]
    figures = labelling.measured(predictions, data.gold, head.labels)
    seconds = time.perf_counter() - began
    return predictions, {**figures, labelling.loss[1]: nll, "seconds": seconds}


def _nll(head: Head, logits: Sequence[Tensor], targets: Sequence[list[int]]) -> float:
    """Mean over all labels, in nats."""
    total, count = 0.0, 0
    for own, target in zip(logits, targets, strict=True):
        mask = torch.ones(1, len(own), dtype=torch.long)
        scores = head_scores(head, own[None], torch.tensor([target]), mask)
        total += float(scores.nll_N.double().sum())
        count += len(scores.nll_N)
    return total / count
