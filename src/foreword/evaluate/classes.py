"""What a classifier gets right and wrong, class by class, or label by label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from foreword.tasks.multilabel import Counts, counted


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class, 0 to 100.

    Attributes:
        label: The class.
        precision: Share of the rows that were given this label that have it; 0 where none was.
        recall: Share of the rows of this class that were given its label; 0 where there are none.
        f1: Harmonic mean of both.
        support: Rows of this class.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class LabelFigures(ClassFigures):
    """Figures of a label of which rows may have several; what a class has, and how often it was said.

    Attributes:
        said: Rows that were given the label.
    """

    said: int


@dataclass(frozen=True)
class Confusion:
    """How often which label was said of which class.

    Attributes:
        labels: The labels, those that the head does not know last.
        counts: ``counts[i][j]``: rows of class i that were given the label j.
    """

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def classes(self) -> tuple[ClassFigures, ...]:
        """Figures of each class, in the order of the labels."""
        return tuple(self._figures(place) for place in range(len(self.labels)))

    def _figures(self, place: int) -> ClassFigures:
        hits, support = self.counts[place][place], sum(self.counts[place])
        given = sum(row[place] for row in self.counts)
        return ClassFigures(
            self.labels[place],
            precision=100 * hits / max(1, given),
            recall=100 * hits / max(1, support),
            f1=200 * hits / max(1, given + support),
            support=support,
        )


def confusion(said: Sequence[str], gold: Sequence[str], labels: Sequence[str]) -> Confusion:
    """Count labels that were said beside those that are right; `labels` holds all of both."""
    found = Counter(zip(gold, said, strict=True))
    counts = tuple(tuple(found[right, given] for given in labels) for right in labels)
    return Confusion(tuple(labels), counts)


def label_figures(
    said: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], labels: Sequence[str]
) -> tuple[LabelFigures, ...]:
    """Figures of each of `labels`, by the labels that rows were given beside those that are right."""
    found = counted(said, gold)
    return tuple(_of_label(label, found.get(label, Counts(0, 0, 0))) for label in labels)


def _of_label(label: str, counts: Counts) -> LabelFigures:
    return LabelFigures(
        label,
        precision=100 * counts.hits / max(1, counts.said),
        recall=100 * counts.hits / max(1, counts.right),
        f1=counts.f1,
        support=counts.right,
        said=counts.said,
    )
