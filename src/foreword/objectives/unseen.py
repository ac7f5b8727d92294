"""Labels that rows to evaluate on have, and that a head does not know."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from foreword.data import Task
from foreword.errors import DataError
from foreword.head import Head
from foreword.objectives.first_look import LABELS, NUMBERS, DoubtfulData
from foreword.tasks import LABELLINGS, Labelled

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Unseen:
    """What a head does not know of some rows' labels.

    Attributes:
        counts: By label that it does not know, how many rows have it, or words of a head that tags.
        places: The rows that have such a label, counted from 0.
        knows_none: Whether it knows none of the rows' labels.
    """

    counts: dict[str, int]
    places: tuple[int, ...]
    knows_none: bool

    @property
    def named(self) -> str:
        """The labels, and how often each stands."""
        return ", ".join(f"{label!r} ({count})" for label, count in self.counts.items())

    def left(self, seen: Labelled, head: Head) -> Labelled:
        """The rows whose labels the head knows, read with those that it does not know after them."""
        if not self.places:
            return seen
        out = set(self.places)
        stays = [place for place in range(len(seen.rows)) if place not in out]
        known = known_alone(seen, head)
        return replace(
            known,
            rows=[known.rows[place] for place in stays],
            readings=[known.readings[place] for place in stays],
            targets=[known.targets[place] for place in stays],
            gold=[known.gold[place] for place in stays],
        )


def known_alone(seen: Labelled, head: Head) -> Labelled:
    """Rows that were read with more labels after the head's own, without the targets of these."""
    known = partial(LABELLINGS[head.task].known, count=len(head.labels))
    return replace(seen, targets=[[known(one) for one in own] for own in seen.targets])


def unseen_in(head: Head, templates: Task, rows: Rows) -> Unseen:
    """The labels of rows that a head does not know; none of a head without classes.

    Raises:
        DataError: A row has not what the task needs.
    """
    if head.task not in ("classify", "tag", "multilabel"):
        return Unseen({}, (), knows_none=False)
    labelling, known = LABELLINGS[head.task], set(head.labels)
    labelling.columns(templates, rows)
    gold = [labelling.gold(templates, row) for row in rows]
    own: list[list[str]] = [[one] for one in gold] if head.task == "classify" else gold
    found = Counter(chain.from_iterable(own))
    counts = {label: found[label] for label in sorted(set(found) - known)}
    places = [place for place, labels in enumerate(own) if not known.issuperset(labels)]
    return Unseen(counts, tuple(places), knows_none=len(counts) == len(found))


def tell_of_unseen(unseen: Unseen, head: Head, count: int) -> None:
    """Say which rows training cannot be evaluated on.

    Args:
        unseen: What the head does not know of them.
        head: The head.
        count: Number of evaluation rows.

    Raises:
        DataError: There are no others.

    Warns:
        DoubtfulData: There are some.
    """
    if not unseen.places:
        return
    knows = ", ".join(head.labels[:LABELS]) + (", ..." if head.labels[LABELS:] else "")
    if len(unseen.places) == count:
        raise DataError(
            f"each of the {count} evaluation rows has a label that the head does not know: "
            f"{unseen.named}. It knows {knows}; give rows with these labels to evaluate on"
        )
    numbers = [str(place + 1) for place in unseen.places[:NUMBERS]]
    listed = ", ".join(numbers) + (", ..." if unseen.places[NUMBERS:] else "")
    some = f"{len(unseen.places)} of {count} evaluation rows have labels"
    warnings.warn(
        f"{some} that the head does not know: {unseen.named} (row {listed}). They are left out of the "
        f"evaluation; the head knows {knows}",
        DoubtfulData,
        stacklevel=3,
    )
