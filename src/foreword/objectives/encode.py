"""Rows as token ids and labels, in the room that is left behind what a method puts in front of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.backbone import Backbone
from foreword.backbone.kinds.base import IGNORED
from foreword.data import Encoded, Report, rows_of
from foreword.data.given import Data
from foreword.data.references import one_each
from foreword.data.room import LONGEST, Room
from foreword.data.selecting import selecting
from foreword.data.seq2seq import encoder_of
from foreword.data.written import SPECIAL, specials_of
from foreword.errors import DataError
from foreword.head import HEAD_TASKS, Head
from foreword.objectives.settings import DataSettings
from foreword.objectives.unseen import tell_of_unseen, unseen_in
from foreword.prefix import Bos, Prefix, PrefixMeta
from foreword.tasks import LABELLINGS, Labelled, reader_for


@dataclass(frozen=True)
class InFront:
    """What rows are read behind, and told by.

    Attributes:
        bos: Whether rows carry a BOS, or what is in front of them does.
        length: Virtual tokens in front of a row, at most.
        head: The head that labels rows, if there is one.
        meta: Of a prefix of whose pieces rows select some.
    """

    bos: Bos
    length: int = 0
    head: Head | None = None
    meta: PrefixMeta | None = None

    @classmethod
    def of(cls, prefix: InFront | Prefix) -> InFront:
        """That of a prefix."""
        if isinstance(prefix, InFront):
            return prefix
        meta = prefix.meta
        return cls(meta.bos, meta.in_front(prefix.length), prefix.head, meta)


def spread(rows: list[Mapping[str, Any]], settings: DataSettings) -> list[Mapping[str, Any]]:
    """Rows of text with one reference each, other rows as they are."""
    return rows if settings.task in HEAD_TASKS else one_each(rows, settings.templates)


def encode(
    backbone: Backbone, data: Data, settings: DataSettings, in_front: InFront | Prefix
) -> tuple[list[Encoded], Report]:
    """Rows as token ids behind what a method puts in front, with the labels of its head if it has one.

    Raises:
        DataError: There are no rows, or one cannot be used.
    """
    front, rows = InFront.of(in_front), rows_of(data)
    free = room(backbone, settings, front.length)
    if front.head is not None:
        seen = _labelled(backbone, rows, settings, front, front.head.labels)
        return seen.encoded, seen.report
    encoder = encoder_of(backbone, settings.templates, front.bos, free)
    encoded, report = encoder.rows(rows)
    return (encoded, report) if front.meta is None else selecting(front.meta, rows, encoded, report)


def encode_evaluation(
    backbone: Backbone, data: Data, settings: DataSettings, in_front: InFront | Prefix
) -> list[Encoded]:
    """As `encode`, without the rows that have a label which the head does not know.

    Raises:
        DataError: There are no others, or one cannot be used.

    Warns:
        DoubtfulData: There are such rows.
    """
    front, rows = InFront.of(in_front), rows_of(data)
    head = front.head
    if head is None:
        return encode(backbone, spread(rows, settings), settings, front)[0]
    unseen = unseen_in(head, settings.templates, rows)
    tell_of_unseen(unseen, head, len(rows))
    labels = (*head.labels, *unseen.counts)
    return unseen.left(_labelled(backbone, rows, settings, front, labels), head).encoded


def _labelled(
    backbone: Backbone,
    rows: Sequence[Mapping[str, Any]],
    settings: DataSettings,
    front: InFront,
    labels: tuple[str, ...],
) -> Labelled:
    """Rows as a head sees them, if it had these labels."""
    assert settings.task in HEAD_TASKS
    free = room(backbone, settings, front.length)
    reader = reader_for(backbone, front.bos, free.limit)
    return LABELLINGS[settings.task].labelled(reader, settings.templates, labels, rows)


def room(backbone: Backbone, settings: DataSettings, length: int) -> Room:
    """Room for text behind virtual tokens, of which there may be none.

    Raises:
        DataError: There is none.
    """
    free = Room(backbone.context - length, settings.max_length)
    if free.limit < 2:
        context = f"the backbone's {backbone.context} tokens"
        if settings.max_length is not None and settings.max_length < 2:
            raise DataError(
                f"max_length={settings.max_length} has no room for an input and a target"
            )
        if length == 0:
            raise DataError(
                f"{context} have no room for an input and a target; use another backbone"
            )
        raise DataError(
            f"a prefix of {length} leaves {max(0, free.limit)} of {context} for text; use a shorter one"
        )
    return free


def targets_of(
    backbone: Backbone, settings: DataSettings, rows: Sequence[Encoded]
) -> dict[str, Any]:
    """What reading and writing under the prefix must know of the targets that were trained on."""
    if settings.task in HEAD_TASKS:
        return {}
    found: dict[str, Any] = {}
    if settings.max_length is not None:
        found[LONGEST] = max(row.answer for row in rows)
    labels = ([label for label in row.labels if label != IGNORED] for row in rows)
    if special := specials_of(backbone, settings.templates, labels):
        found[SPECIAL] = special
    return found


def rows_digest(rows: Sequence[Encoded]) -> str:
    """SHA-256 of the rows' token ids and labels, in order, and of token types and pieces if any."""
    total = hashlib.sha256()
    for row in rows:
        own: tuple[Any, ...] = () if row.types is None else (row.types,)
        own += (row.pieces,) if row.pieces else ()
        total.update(repr((row.input_ids, row.labels, *own)).encode())
    return total.hexdigest()
