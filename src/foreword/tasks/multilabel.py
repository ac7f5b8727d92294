"""Multi-label classification: any number of labels for each row, a text or a pair of texts.

One vector stands for a row, as in classification; each output of the head is the logit of one label.

Shapes: B rows, L labels, N targets, which are B * L: each label of each row is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from foreword.backbone.kinds.base import IGNORED
from foreword.data.each import of_each
from foreword.data.template import Task, columns
from foreword.data.values import class_of, in_column, text_of
from foreword.errors import DataError
from foreword.head import Head
from foreword.tasks.base import Multilabelled, Row, check_label, in_order, index_of
from foreword.tasks.reading import Reading
from foreword.tasks.texts import OfTexts, target_column

LIKELY = 0.5
"""A label is said where its probability is above this."""
LISTED = Task("{text}", "{labels}")
"""Where input and labels are, of rows that have ``labels`` and no ``label``."""


class Counts(NamedTuple):
    """Rows of one label.

    Attributes:
        hits: Rows that have it and were given it.
        said: Rows that were given it.
        right: Rows that have it.
    """

    hits: int
    said: int
    right: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0 to 100; 0 where no row has it or was given it."""
        return 200 * self.hits / max(1, self.said + self.right)


class Multilabel(OfTexts):
    """A text, or a pair of texts, and a list of labels, which may be empty."""

    name = "multilabel"
    figures = (
        ("micro F1 %", "micro_f1", "{:.1f}"),
        ("macro F1 %", "macro_f1", "{:.1f}"),
        ("exact match %", "exact_match", "{:.1f}"),
    )

    def columns(self, templates: Task, rows: Sequence[Row]) -> None:
        """Those of the text or texts, and one that holds lists of labels."""
        column_of(templates)
        templates.check_columns(rows)

        def check(row: Row) -> None:
            for name in templates.asked:
                in_column(row, name, text_of)
            self.gold(templates, row)

        of_each(rows, check, "row")

    def labels(self, templates: Task, rows: Sequence[Row]) -> tuple[str, ...]:
        """All that stand in the rows' lists."""
        found = in_order({label for row in rows for label in self.gold(templates, row)})
        if not found:
            raise DataError(
                f"the lists of all rows in column {column_of(templates)!r} are empty; multi-label "
                "classification needs at least two labels"
            )
        if len(found) < 2:
            raise DataError(
                f"the rows have the one label {found[0]!r}; multi-label classification needs at least "
                "two. Whether one label holds or not is learned by task 'classify', from a column with "
                "a word for each of both, such as yes and no"
            )
        return found

    def targets(
        self, templates: Task, labels: Sequence[str], row: Row, readings: Sequence[Reading]
    ) -> list[list[int]]:
        """For each label 1 if the row has it, else 0."""
        target = [0] * len(labels)
        for label in self.gold(templates, row):
            target[index_of(label, labels)] = 1
        return [target]

    def known(self, target: Sequence[int], count: int) -> list[int]:
        """The targets of the labels that the head knows."""
        return list(target[:count])

    def flat(
        self, logits: Tensor, labels: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One target for each label of each row that has targets."""
        wanted = labels != IGNORED
        shown = logits[:, : labels.shape[1]]  # a batch of blank rows has one column alone
        return shown[wanted], labels[wanted], wanted.nonzero()[:, 0]

    def losses(self, head: Head, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of each label, and whether its logit is on the right side of 0.

        Their mean is taken over rows and labels, as by transformers' heads of this kind
        (``BCEWithLogitsLoss``). Steps of the optimisers do not depend on the size of the loss, but
        gradients are clipped to a norm of 1, and a sum over many labels would be clipped in each step.
        """
        wanted_N = targets.to(outputs.dtype)
        nll_N = binary_cross_entropy_with_logits(outputs, wanted_N, reduction="none")
        return nll_N, (outputs > 0) == (targets > 0)

    def predicted(
        self,
        templates: Task,
        labels: Sequence[str],
        row: Row,
        readings: Sequence[Reading],
        logits: Sequence[Tensor],
    ) -> Multilabelled:
        """The labels that are likelier than not, and how likely each is."""
        shares = dict(zip(labels, logits[0].sigmoid().tolist(), strict=True))
        return Multilabelled(tuple(k for k, share in shares.items() if share > LIKELY), shares)

    def gold(self, templates: Task, row: Row) -> list[str]:
        """The row's labels, each once, in the order of its list."""
        name = column_of(templates)
        given = row.get(name)
        if not isinstance(given, list | tuple):
            raise DataError(
                f"column {name!r}: found {repr(given)[:40]}, expected a list of labels, empty where "
                "none holds; text is not split, and .jsonl or .parquet files hold lists"
            )
        return list(dict.fromkeys(_label(name, place, one) for place, one in enumerate(given, 1)))

    def measured(
        self,
        predictions: Sequence[Multilabelled],
        gold: Sequence[Sequence[str]],
        labels: Sequence[str] = (),
    ) -> dict[str, float]:
        """F1 over all labels of all rows; its mean over labels; rows whose labels are all right.

        The mean is over the labels that are right or were said. F1 is 0 where nothing is either.
        """
        said = [one.labels for one in predictions]
        found = counted(said, gold)
        whole = Counts(*map(sum, zip(*found.values(), strict=True))) if found else Counts(0, 0, 0)
        exact = sum(set(a) == set(b) for a, b in zip(said, gold, strict=True))
        return {
            "micro_f1": whole.f1,
            "macro_f1": sum(one.f1 for one in found.values()) / max(1, len(found)),
            "exact_match": 100 * exact / len(predictions),
        }


def counted(said: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, Counts]:
    """Rows of each label that is right or was said; the lists of rows hold a label once."""
    pairs = zip(said, gold, strict=True)
    hits = Counter(chain.from_iterable(set(a) & set(b) for a, b in pairs))
    given, right = (Counter(chain.from_iterable(lists)) for lists in (said, gold))
    return {label: Counts(hits[label], given[label], right[label]) for label in {**given, **right}}


def has_lists(templates: Task, rows: Sequence[Row]) -> bool:
    """Whether a row's target is a list, which no class and no number is."""
    names = columns(templates.target or "")
    return len(names) == 1 and any(isinstance(row.get(names[0]), list | tuple) for row in rows)


def column_of(templates: Task) -> str:
    """The column of the lists.

    Raises:
        DataError: The target template names more, or writes something beside it.
    """
    return target_column(
        templates,
        "for multi-label classification the target template names one column of lists, such as "
        "{labels}",
    )


def _label(name: str, place: int, value: Any) -> str:
    try:
        label = class_of(value)
        check_label(label)
    except DataError as error:
        raise DataError(f"column {name!r}, label {place}: {error}") from error
    return label
