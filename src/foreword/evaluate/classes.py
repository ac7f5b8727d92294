"""What a classifier gets right and wrong, class by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


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
