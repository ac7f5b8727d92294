"""Rows to train on, rows to choose rates by, and rows that are only measured on."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.data.template import columns, fill
from foreword.errors import DataError
from foreword.evaluate.run import input_text
from foreword.head import HEAD_TASKS, POOLED
from foreword.objectives.columns import ANSWERS
from foreword.objectives.settings import DataSettings

Rows = list[Mapping[str, Any]]

SHARE = 10
"""One in so many inputs is held out, and as many again are tested on."""

LEAST, MOST = 8, 200
"""Inputs of a set that is not trained on, at least and at most."""


@dataclass(frozen=True)
class Split:
    """Three sets that share no input.

    Attributes:
        train: Rows to train on.
        held: Rows to choose rates by.
        test: Rows that are measured on, once for each run that counts.
    """

    train: Rows
    held: Rows
    test: Rows

    @property
    def digest(self) -> str:
        """SHA-256 of all rows, in order."""
        whole = [[dict(row) for row in rows] for rows in (self.train, self.held, self.test)]
        return hashlib.sha256(_written({"rows": whole}).encode(errors="surrogatepass")).hexdigest()


def split(
    rows: Sequence[Mapping[str, Any]],
    settings: DataSettings,
    test: Sequence[Mapping[str, Any]] | None = None,
    most: int | None = None,
) -> Split:
    """Rows shuffled and split by their input, so that references of one input stay together.

    Args:
        rows: The rows.
        settings: With the task decided; its templates say what an input is.
        test: Rows to test on, if they are given; then none are taken from the others.
        most: Rows to train on at most; what is held out stays the same.

    Raises:
        DataError: There are too few inputs.
    """
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(_input(row, settings), []).append(row)
    inputs = list(groups)
    random.Random(0).shuffle(inputs)
    aside = min(MOST, max(LEAST, len(inputs) // SHARE))
    taken = aside if test is not None else 2 * aside
    if len(inputs) < taken + LEAST:
        raise DataError(
            f"there are {len(inputs)} different inputs; a comparison sets {taken} of them aside, and "
            f"trains on {LEAST} at the least. Give more rows"
        )
    held = [row for name in inputs[:aside] for row in groups[name]]
    own = [row for name in inputs[aside:taken] for row in groups[name]]
    train = [row for name in inputs[taken:] for row in groups[name]]
    return Split(train[:most], held, list(own if test is None else test))


def known_before(parts: Split, settings: DataSettings) -> list[str]:
    """What is to be said of inputs to test on that are among the other rows, if any are."""
    others = {_input(row, settings) for row in [*parts.train, *parts.held]}
    tested = {_input(row, settings) for row in parts.test}
    if not tested & others:
        return []
    return [
        f"{len(tested & others)} of the {len(tested)} inputs to test on are among the rows to train on "
        "or to choose rates by, so that all figures may be better than on new ones"
    ]


def _input(row: Mapping[str, Any], settings: DataSettings) -> str:
    """What tells an input from others."""
    task = settings.templates
    if settings.task not in HEAD_TASKS:
        return input_text(row, task)
    if settings.task in POOLED:
        return fill(settings.prompt or "{text}", row)
    read = columns(settings.prompt) if settings.prompt is not None else ANSWERS[:2]
    return _written([row.get(name) for name in read])


def _written(value: Any) -> str:
    """A value as text, equal values alike: as JSON, and as Python has it what JSON has no word for.

    Columns that no task reads may hold anything, such as dates.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=repr
    )
