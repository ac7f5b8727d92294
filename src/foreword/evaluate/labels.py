"""`evaluate_labels`: a prefix with a head on a task's rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreword.arguments import check_count
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data import Report, rows_of
from foreword.data.given import Data, name_of
from foreword.errors import DataError
from foreword.evaluate.classes import (
    ClassFigures,
    Confusion,
    LabelFigures,
    confusion,
    label_figures,
)
from foreword.head import Head, HeadTask
from foreword.objectives.supervised import head_scores
from foreword.objectives.unseen import Unseen, known_alone, unseen_in
from foreword.options import BATCH
from foreword.predict import (
    head_logits,
    head_of,
    predictions_of,
    prefix_reader,
    templates_of,
)
from foreword.prefix import Prefix
from foreword.progress import Progress, Watch, unwatched
from foreword.progress import unseen as untold
from foreword.tasks import LABELLINGS, Classified, Labelled, Multilabelled, Prediction

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
        task: ``classify``, ``tag``, ``answer``, ``regress`` or ``multilabel``.
        prefix: Figures by name, see `figures_of`: shares are 0 to 100, correlations -1 to 1, ``nll`` is
            the mean negative log-likelihood of a label in nats (of several labels each counts, that it
            holds or that it does not), ``loss`` the mean squared error in units of the training rows'
            deviation.
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
        unseen: By label that rows have and the head does not know, how many rows have it, or words of a
            head that tags. They count as wrong, and are left out of ``nll``.
        confusion: Of a head that classifies, how often which label was said of which class.
        by_label: Of a head for several labels, what `classes` gives.
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
    unseen: dict[str, int] = field(default_factory=dict)
    confusion: Confusion | None = field(default=None, repr=False)
    by_label: tuple[LabelFigures, ...] = field(default=(), repr=False)

    @property
    def classes(self) -> tuple[ClassFigures, ...]:
        """Precision, recall, F1 and support of each class or label, of a head that classifies."""
        return self.by_label if self.confusion is None else self.confusion.classes

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
        found = asdict(self)
        del found["by_label"]
        classes = [asdict(one) for one in self.classes]
        return {**found, "inputs": self.inputs, "classes": classes}


def evaluate_labels(
    backbone: Backbone,
    prefix: Prefix,
    data: Data,
    *,
    base: bool = True,
    limit: int | None = None,
    batch_size: int = BATCH,
    strict: bool = False,
    progress: Progress = untold,
) -> LabelEvaluation:
    """Label a task's rows and compare with what they say.

    A label that the head does not know counts as wrong wherever rows have it, see
    `LabelEvaluation.unseen`.

    Args:
        backbone: The backbone, left as it was found.
        prefix: The prefix, with a head; its recipe has the templates.
        data: Rows, or where to read them.
        base: Whether the head is evaluated without the prefix too.
        limit: Only the first so many rows.
        batch_size: Rows in one batch.
        strict: Refuse a backbone with other weights than the prefix was made on.
        progress: Told how far it is.

    Raises:
        DataError: Rows or columns are wrong, or the head knows none of the rows' labels.
        MismatchError: The prefix does not fit the backbone.
    """
    check_backbone(backbone)
    if limit is not None:
        check_count("limit", limit, DataError)
    head = head_of(prefix)
    rows = rows_of(data)[:limit]
    backbone.check(prefix, strict=strict)
    unseen = unseen_in(head, templates_of(prefix), rows)
    # A head that knows none of the labels is of another task; the first row's error says so.
    others = () if unseen.knows_none else tuple(unseen.counts)
    seen = labelled(backbone, prefix, rows, others)
    given = head, seen, batch_size
    watch = partial(progress, "with the prefix")
    predictions, ours = measured_labels(backbone, prefix, *given, watch)
    theirs = None
    if base:
        watch = partial(progress, "without the prefix")
        theirs = measured_labels(backbone, None, *given, watch)[1]
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
        remarks=[*LABELLINGS[head.task].remarks(head.labels), *_told(unseen, head)],
        unseen=unseen.counts,
        confusion=_confusion(head, predictions, seen.gold, others),
        by_label=_by_label(head, predictions, seen.gold, others),
    )


def labelled(
    backbone: Backbone,
    prefix: Prefix,
    rows: Sequence[Mapping[str, Any]],
    unseen: tuple[str, ...] = (),
) -> Labelled:
    """Rows as the head of a prefix sees them.

    Args:
        backbone: The backbone.
        prefix: The prefix, with a head.
        rows: The rows.
        unseen: Labels that the head does not know and rows may have; they get no target.

    Raises:
        DataError: One cannot be used, or has a label that the head does not know.
    """
    head = head_of(prefix)
    reader = prefix_reader(backbone, prefix)
    labels = (*head.labels, *unseen)
    seen = LABELLINGS[head.task].labelled(reader, templates_of(prefix), labels, rows)
    return known_alone(seen, head) if unseen else seen


def _told(unseen: Unseen, head: Head) -> list[str]:
    """What is to be said of labels that the head does not know."""
    if not unseen.counts:
        return []
    what = "words" if head.task == "tag" else "rows"
    return [
        f"the head does not know these labels of {what}: {unseen.named}; they count as wrong and are "
        "left out of the NLL"
    ]


def _confusion(
    head: Head, predictions: Sequence[Prediction], gold: Sequence[Any], unseen: tuple[str, ...]
) -> Confusion | None:
    if head.task != "classify":
        return None
    said = [one.label for one in predictions if isinstance(one, Classified)]
    return confusion(said, gold, (*head.labels, *unseen))


def _by_label(
    head: Head, predictions: Sequence[Prediction], gold: Sequence[Any], unseen: tuple[str, ...]
) -> tuple[LabelFigures, ...]:
    said = [one.labels for one in predictions if isinstance(one, Multilabelled)]
    if head.task != "multilabel":
        return ()
    return label_figures(said, gold, (*head.labels, *unseen))


def measured_labels(
    backbone: Backbone,
    prefix: Prefix | None,
    head: Head,
    data: Labelled,
    batch_size: int = BATCH,
    watch: Watch = unwatched,
) -> tuple[list[Prediction], dict[str, float]]:
    """What a head says of rows, and its figures; without a prefix, of the backbone as it is."""
    began = time.perf_counter()
    flat = [one for own in data.readings for one in own]
    logits = head_logits(backbone, prefix, head, flat, batch_size, watch)
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
