"""`Labelling`: what the tasks of a head differ in.

Shapes: B rows, T tokens, L labels, N targets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foreword.backbone.kinds.base import IGNORED
from foreword.data.each import of_each
from foreword.data.encode import Encoded, Report
from foreword.data.template import Task
from foreword.errors import DataError
from foreword.head import Head, HeadTask
from foreword.tasks.reading import Reader, Reading

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Classified:
    """A row's label.

    Attributes:
        label: The likeliest.
        probabilities: Of each label.
    """

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Tagged:
    """Labels of a row's words.

    Attributes:
        tokens: The words.
        tags: The likeliest label of each; ``O``, if there is such a label, of words that were cut off.
    """

    tokens: list[str]
    tags: list[str]


@dataclass(frozen=True)
class Answered:
    """An answer in a context.

    Attributes:
        text: The answer.
        start: Its first character in the context.
        score: Sum of its start's and its end's logits.
    """

    text: str
    start: int
    score: float


@dataclass(frozen=True)
class Measured:
    """A row's number.

    Attributes:
        value: It, on the scale of the rows that were trained on.
    """

    value: float


@dataclass(frozen=True)
class Multilabelled:
    """The labels of a row, as many as hold.

    Attributes:
        labels: Those with a probability above one half, in the head's order.
        probabilities: Of each label, that it holds; they are of one another independent.
    """

    labels: tuple[str, ...]
    probabilities: dict[str, float]


Prediction = Classified | Tagged | Answered | Measured | Multilabelled


@dataclass(frozen=True)
class Labelled:
    """Rows as a head sees them.

    Attributes:
        rows: The rows.
        readings: Per row its readings.
        targets: Per row and reading what `Labelling.flat` takes as labels.
        gold: Per row what is right.
        templates: Where input and labels are.
    """

    rows: Sequence[Row]
    readings: list[list[Reading]]
    targets: list[list[list[Any]]]
    gold: list[Any]
    templates: Task

    @property
    def encoded(self) -> list[Encoded]:
        """The readings of all rows, one after the other."""
        pairs = zip(self.readings, self.targets, strict=True)
        return [
            Encoded(one.ids, target, types=one.types)
            for readings, targets in pairs
            for one, target in zip(readings, targets, strict=True)
        ]

    @property
    def report(self) -> Report:
        """What did not fit."""
        cut = [sum(one.cut for one in own) for own in self.readings]
        return Report(len(cut), sum(lost > 0 for lost in cut), sum(cut))


class Labelling(ABC):
    """One task of a head."""

    name: HeadTask
    templates: Task | None
    """Where a row's input and labels are by default; None where the columns' names are fixed."""
    figures: tuple[tuple[str, str, str], ...]
    """What `measured` gives, as tables show it: label, name, format."""
    loss: tuple[str, str, str] = ("NLL per label", "nll", "{:.4f}")
    """What training makes small, as tables show it."""
    conditional: frozenset[str] = frozenset()
    """Names of figures that some labels do not have; `remarks` says why."""

    def columns(self, templates: Task, rows: Sequence[Row]) -> None:
        """Check that every row has what the task needs.

        Raises:
            DataError: One has not.
        """
        templates.check(rows)

    @abstractmethod
    def labels(self, templates: Task, rows: Sequence[Row]) -> tuple[str, ...]:
        """The labels that rows have, in an order that the rows' own does not change."""

    @abstractmethod
    def given(self, templates: Task, text: str) -> Row:
        """An input that was given as text, as a row.

        Raises:
            DataError: It cannot be one.
        """

    @abstractmethod
    def read(self, reader: Reader, templates: Task, row: Row) -> list[Reading]:
        """A row's input."""

    @abstractmethod
    def targets(
        self, templates: Task, labels: Sequence[str], row: Row, readings: Sequence[Reading]
    ) -> list[list[Any]]:
        """For each reading, what `flat` takes as labels.

        Raises:
            DataError: The row has a label that is not among them, or none.
        """

    def known(self, target: Sequence[Any], count: int) -> list[Any]:
        """What `targets` gives, where only the first `count` labels are those of the head."""
        return [one if one < count else IGNORED for one in target]

    @abstractmethod
    def flat(
        self, logits: Tensor, labels: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of each target (N, ...), the index that each should have (N,), and its row (N,).

        Every row that comes here has a target.
        """

    def losses(self, head: Head, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """The loss (N,) of each target that `flat` gives, and whether it is met; None: the NLL."""
        return None

    @abstractmethod
    def predicted(
        self,
        templates: Task,
        labels: Sequence[str],
        row: Row,
        readings: Sequence[Reading],
        logits: Sequence[Tensor],
    ) -> Prediction:
        """What a row says, by each reading's `Head.scaled` on the CPU: (L,) or (T, L)."""

    @abstractmethod
    def gold(self, templates: Task, row: Row) -> Any:
        """What a row says that is right."""

    @abstractmethod
    def measured(
        self, predictions: Sequence[Any], gold: Sequence[Any], labels: Sequence[str] = ()
    ) -> dict[str, float]:
        """Figures of predictions, 0 to 100; `labels` are all that the head has."""

    def remarks(self, labels: Sequence[str]) -> list[str]:
        """What must be said beside the figures of a head with these labels."""
        return []

    def labelled(
        self, reader: Reader, templates: Task, labels: Sequence[str], rows: Sequence[Row]
    ) -> Labelled:
        """Rows as a head with these labels sees them, to train on or to measure.

        Raises:
            DataError: One cannot be used; the message names it.
        """
        self.columns(templates, rows)
        readings: list[list[Reading]] = []
        targets: list[list[list[Any]]] = []

        def see(row: Row) -> None:
            readings.append(self.read(reader, templates, row))
            targets.append(self.targets(templates, labels, row, readings[-1]))

        of_each(rows, see, "row")
        gold = [self.gold(templates, row) for row in rows]
        return Labelled(rows, readings, targets, gold, templates)


def index_of(label: str, labels: Sequence[str]) -> int:
    """The place of a label.

    Raises:
        DataError: It is not among them.
    """
    if label not in labels:
        shown = ", ".join(map(repr, labels[:10])) + (", ..." if len(labels) > 10 else "")
        raise DataError(f"its label {label!r} is not among those of the head: {shown}")
    return labels.index(label)


def check_label(label: str) -> None:
    """Check that a label says something.

    Raises:
        DataError: It is empty, or blank.
    """
    if not label.strip():
        raise DataError(f"its label {label!r} is empty; drop the row, or give the class a name")


def in_order(labels: set[str]) -> tuple[str, ...]:
    """Whole numbers by size, those of one size and words by letter."""
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))
