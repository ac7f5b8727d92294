"""Tagging: a label for each word, from its first token; entities are scored by seqeval.

Shapes: B rows, T tokens, L labels, N words.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from torch import Tensor

from foreword.backbone.kinds.base import IGNORED
from foreword.data.template import Task, columns
from foreword.data.values import class_of
from foreword.errors import DataError
from foreword.tasks.base import Labelling, Row, Tagged, check_label, in_order, index_of
from foreword.tasks.entities import OUTSIDE, entity_figures, spelling_of
from foreword.tasks.reading import Reader, Reading


class Tag(Labelling):
    """A list of words, and a list of as many tags."""

    name = "tag"
    templates = Task("{tokens}", "{tags}")
    figures = (
        ("entity F1 %", "f1", "{:.1f}"),
        ("precision %", "precision", "{:.1f}"),
        ("recall %", "recall", "{:.1f}"),
        ("word accuracy %", "accuracy", "{:.1f}"),
    )
    conditional = frozenset({"f1", "precision", "recall"})

    def columns(self, templates: Task, rows: Sequence[Row]) -> None:
        """Two columns of lists, equally long."""
        for template in (templates.prompt, templates.target):
            if template is None or [f"{{{name}}}" for name in columns(template)] != [template]:
                raise DataError(
                    f"for tags a template names one column of lists, such as {{tokens}}; found "
                    f"{template!r}"
                )
        templates.check_columns(rows)
        for number, row in enumerate(rows, 1):
            try:
                words, tags = self._lists(templates, row)
            except DataError as error:
                raise DataError(f"row {number}: {error}") from error
            if len(words) != len(tags):
                raise DataError(f"row {number} has {len(words)} words and {len(tags)} tags")

    def labels(self, templates: Task, rows: Sequence[Row]) -> tuple[str, ...]:
        """The tags, that of words outside of entities first."""
        found = {tag for row in rows for tag in self.gold(templates, row)}
        if len(found) < 2:
            raise DataError("the rows have fewer than two different tags; tagging needs two")
        return tuple(sorted(in_order(found), key=lambda tag: tag != OUTSIDE))

    def given(self, templates: Task, text: str) -> Row:
        """Words are what stands between spaces."""
        return {_column(templates.prompt): text.split()}

    def read(self, reader: Reader, templates: Task, row: Row) -> list[Reading]:
        """The words with spaces between."""
        return [reader.read(" ".join(self._words(templates, row)))]

    def targets(
        self, templates: Task, labels: Sequence[str], row: Row, readings: Sequence[Reading]
    ) -> list[list[int]]:
        """A tag's number at the first token of each word."""
        tags = self.gold(templates, row)
        found = [IGNORED] * len(readings[0].ids)
        for word, place in self._places(templates, row, readings[0]).items():
            found[place] = index_of(tags[word], labels)
        if all(label == IGNORED for label in found):
            raise DataError("none of its words has a token; drop the row")
        return [found]

    def flat(
        self, logits: Tensor, labels: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One target for each word."""
        wanted_BT = labels != IGNORED
        return logits[wanted_BT], labels[wanted_BT], wanted_BT.nonzero()[:, 0]

    def predicted(
        self,
        templates: Task,
        labels: Sequence[str],
        row: Row,
        readings: Sequence[Reading],
        logits: Sequence[Tensor],
    ) -> Tagged:
        """The likeliest tag of each word."""
        words = self._words(templates, row)
        best = logits[0].argmax(dim=-1).tolist()
        tags = [OUTSIDE if OUTSIDE in labels else labels[0]] * len(words)
        for word, place in self._places(templates, row, readings[0]).items():
            tags[word] = labels[best[place]]
        return Tagged(words, tags)

    def gold(self, templates: Task, row: Row) -> list[str]:
        """The row's tags."""
        return self._lists(templates, row)[1]

    def measured(
        self,
        predictions: Sequence[Tagged],
        gold: Sequence[Sequence[str]],
        labels: Sequence[str] = (),
    ) -> dict[str, float]:
        """Entities that are right in kind and extent (seqeval's default, as CoNLL), and words.

        Tags that spell no entities give the figure of words alone.
        """
        said = [one.tags for one in predictions]
        pairs = list(zip(chain(*gold), chain(*said), strict=True))
        words = {"accuracy": 100 * sum(a == b for a, b in pairs) / max(1, len(pairs))}
        try:
            spelled = spelling_of({*labels, *chain(*gold), *chain(*said)})
        except DataError:
            return words
        return {**entity_figures(said, gold, spelled), **words}

    def remarks(self, labels: Sequence[str]) -> list[str]:
        """Why there are no figures of entities, if there are none."""
        try:
            spelling_of(labels)
        except DataError as error:
            return [f"no figures of entities: {error}"]
        return []

    def _lists(self, templates: Task, row: Row) -> tuple[list[str], list[str]]:
        tags = row[_column(templates.target)]
        if not isinstance(tags, list | tuple):
            raise DataError(f"its tags are {tags!r}, expected a list with one for each word")
        return self._words(templates, row), [_tag(place, tag) for place, tag in enumerate(tags, 1)]

    def _words(self, templates: Task, row: Row) -> list[str]:
        words = row.get(_column(templates.prompt))
        if not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
            raise DataError(f"its words are {words!r}, expected a list of texts")
        return list(words)

    def _places(self, templates: Task, row: Row, reading: Reading) -> dict[int, int]:
        """By word the first token that shares a character with it; words without one are left out."""
        words = self._words(templates, row)
        found: dict[int, int] = {}
        start, token = 0, 0
        for number, word in enumerate(words):
            end = start + len(word)
            while token < len(reading.spans) and not _ends_after(reading.spans[token], start):
                token += 1
            if token == len(reading.spans):
                break
            span = reading.spans[token]
            if span is not None and span[0] < end:
                found[number] = token
            start = end + 1
        return found


def _ends_after(span: tuple[int, int] | None, place: int) -> bool:
    return span is not None and span[1] > place


def _tag(place: int, tag: Any) -> str:
    try:
        label = class_of(tag)
        check_label(label)
        return label
    except DataError as error:
        raise DataError(f"tag {place}: {error}") from error


def _column(template: str | None) -> str:
    assert template is not None
    return columns(template)[0]
