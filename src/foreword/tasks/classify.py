"""Classification: one label for each row, a text or a pair of texts, from one vector for it.

Shapes: B rows, T tokens, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from reprlib import repr as short

import torch
from torch import Tensor

from foreword.data.each import of_each
from foreword.data.template import Task, columns, fill
from foreword.data.values import class_of, in_column
from foreword.errors import DataError
from foreword.tasks.base import Classified, Row, check_label, in_order, index_of
from foreword.tasks.reading import Reading
from foreword.tasks.texts import OfTexts


class Classify(OfTexts):
    """A text, or a pair of texts, and its label."""

    name = "classify"
    figures = (
        ("accuracy %", "accuracy", "{:.1f}"),
        ("macro F1 %", "macro_f1", "{:.1f}"),
    )

    def columns(self, templates: Task, rows: Sequence[Row]) -> None:
        """Those of the text or texts, and one that names a class."""
        of_each(rows, partial(_refuse_lists, templates), "row")
        super().columns(templates, rows)

        def check(row: Row) -> None:
            for name in columns(templates.target or ""):
                in_column(row, name, class_of)
            check_label(self.gold(templates, row))

        of_each(rows, check, "row")

    def labels(self, templates: Task, rows: Sequence[Row]) -> tuple[str, ...]:
        """Whatever the target template gives."""
        found = in_order({self.gold(templates, row) for row in rows})
        if len(found) < 2:
            raise DataError(
                f"all rows have the label {found[0]!r}; classification needs at least two labels"
            )
        return found

    def targets(
        self, templates: Task, labels: Sequence[str], row: Row, readings: Sequence[Reading]
    ) -> list[list[int]]:
        """The label's number."""
        return [[index_of(self.gold(templates, row), labels)]]

    def flat(
        self, logits: Tensor, labels: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One target for each row."""
        return logits, labels[:, 0], torch.arange(len(labels), device=labels.device)

    def predicted(
        self,
        templates: Task,
        labels: Sequence[str],
        row: Row,
        readings: Sequence[Reading],
        logits: Sequence[Tensor],
    ) -> Classified:
        """The likeliest label, and how likely each is."""
        shares = logits[0].softmax(dim=-1).tolist()
        return Classified(labels[int(logits[0].argmax())], dict(zip(labels, shares, strict=True)))

    def gold(self, templates: Task, row: Row) -> str:
        """The row's label as text."""
        assert templates.target is not None
        return fill(templates.target, row)

    def measured(
        self,
        predictions: Sequence[Classified],
        gold: Sequence[str],
        labels: Sequence[str] = (),
    ) -> dict[str, float]:
        """Accuracy, and the mean of F1 over the labels that are right or were said."""
        said = [one.label for one in predictions]
        pairs = list(zip(said, gold, strict=True))
        scores = []
        for label in {*said, *gold}:
            hits = sum(a == b == label for a, b in pairs)
            scores.append(2 * hits / (said.count(label) + gold.count(label)))
        return {
            "accuracy": 100 * sum(a == b for a, b in pairs) / len(pairs),
            "macro_f1": 100 * sum(scores) / len(scores),
        }


def _refuse_lists(templates: Task, row: Row) -> None:
    for name in columns(templates.target or ""):
        if isinstance(row.get(name), list | tuple):
            raise DataError(
                f"column {name!r}: found a {type(row[name]).__name__}, {short(row[name])}, expected one "
                "label; where a row may have several, ask for task 'multilabel' (--task multilabel)"
            )
