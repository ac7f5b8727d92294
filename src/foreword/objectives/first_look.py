"""What training is about to learn, in one line before the first step, and what is doubtful about it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from foreword.backbone import Backbone
from foreword.backbone.kinds.base import IGNORED
from foreword.data import Encoded
from foreword.data.attributes import values_in
from foreword.data.chat import answers
from foreword.data.template import MESSAGES, columns
from foreword.errors import DataError, Notice
from foreword.head import HEAD_TASKS, Head
from foreword.objectives.settings import DataSettings, TaskName
from foreword.tasks import LABELLINGS

Rows = Sequence[Mapping[str, Any]]

SHOWN = 120
"""Most characters of an example's prompt, and of its target."""
LABELS = 12
"""Most labels that are named."""
NUMBERS = 5
"""Most rows that a warning names."""
NAMED = {
    "classify": "label",
    "tag": "label",
    "answer": "answers",
    "regress": "number",
    "multilabel": "labels",
}
"""What a row of each task with a head has."""
FEW = 20
"""Rows below which many labels are no sign of anything."""


class DoubtfulData(Notice):
    """Rows can be trained on, but are probably not what was meant."""


def first_look(
    backbone: Backbone,
    settings: DataSettings,
    head: Head | None,
    rows: Rows,
    encoded: Sequence[Encoded],
) -> str:
    """One line: the task, the number of rows, the labels, and the first row as the model reads it.

    Args:
        backbone: The backbone.
        settings: With the task decided.
        head: The head that is trained, if there is one.
        rows: The training rows.
        encoded: The same as token ids.
    """
    said = [f"{settings.task}, {len(rows):,} row{'s' if rows[1:] else ''}"]
    if head is not None and head.measures:
        said.append(f"numbers of mean {head.mean:.4g} and deviation {head.deviation:.4g}")
    elif head is not None and settings.task != "answer":
        named = ", ".join(head.labels[:LABELS])
        more = len(head.labels) - LABELS
        said.append(f"{len(head.labels)} labels: {named}{f', and {more} more' if more > 0 else ''}")
    if settings.attributes is not None:
        known = values_in(settings.attribute_names, rows)
        listed = (f"{name} ({', '.join(_few(values))})" for name, values in known.items())
        said.append(f"attributes {' and '.join(listed)}")
    prompt, target = _first(backbone, settings, rows[0], encoded[0])
    what = "target" if head is None else NAMED[head.task]
    return f"{', '.join(said)}; row 1 is read as {_short(prompt)} with the {what} {_short(target)}"


def _few(values: Sequence[str]) -> list[str]:
    """The first values of an attribute."""
    return [*values[:LABELS], *(["..."] if values[LABELS:] else [])]


def check_labels(asked: TaskName | None, settings: DataSettings, rows: Rows) -> None:
    """Check that what rows are classified by are classes, and no texts.

    Args:
        asked: The task that the user named.
        settings: With the task decided.
        rows: The training rows.

    Raises:
        DataError: Most rows have a label of their own, and the user did not ask for classes.

    Warns:
        DoubtfulData: They do, and the user did.
    """
    task = settings.task
    if task not in ("classify", "multilabel") or len(rows) < FEW:
        return
    labelling = LABELLINGS[task]
    labelling.columns(settings.templates, rows)
    gold = [labelling.gold(settings.templates, row) for row in rows]
    named = gold if task == "classify" else list(chain.from_iterable(gold))
    found = list(dict.fromkeys(named))
    if len(named) < FEW or 2 * len(found) <= len(named):
        return
    what = (
        f"{len(rows)} rows have {len(found)} different labels, such as {_short(found[0])} and "
        f"{_short(found[1])}"
    )
    if asked == task:
        warnings.warn(f"{what}; few rows say what each one means", DoubtfulData, stacklevel=3)
        return
    raise DataError(
        f"{what}, which looks like text to write and not like classes. Name the column of the classes "
        "in the target template (--target); for text use a decoder or an encoder-decoder as the "
        f"backbone, with a prompt and a target template; if these are classes, ask for task {task!r} "
        f"(--task {task})"
    )


def warn_of_doubts(settings: DataSettings, head: Head | None, rows: Rows) -> None:
    """Say what is probably not meant: blank texts, blank targets, labels that look the same.

    Warns:
        DoubtfulData: There is such a thing; the message names rows or labels.
    """
    for what, blank in _blanks(settings, rows):
        if blank:
            listed = ", ".join(map(str, blank[:NUMBERS])) + (", ..." if blank[NUMBERS:] else "")
            some = f"{len(blank)} of {len(rows)} rows have" if blank[1:] else "a row has"
            warnings.warn(
                f"{some} a blank {what} (row {listed}); drop them, or fill them in",
                DoubtfulData,
                stacklevel=3,
            )
    for alike in _alike(() if head is None else head.labels):
        warnings.warn(
            f"the labels {', '.join(map(repr, alike))} differ by spaces or case alone and are learned "
            "as different ones; write them in one way if they are one",
            DoubtfulData,
            stacklevel=3,
        )


def _first(
    backbone: Backbone, settings: DataSettings, row: Mapping[str, Any], one: Encoded
) -> tuple[str, Any]:
    """The first row's input as its tokens say it, and what shall come of it."""
    assert backbone.tokenizer is not None
    if settings.task in HEAD_TASKS:
        gold = LABELLINGS[settings.task].gold(settings.templates, row)
        return str(backbone.tokenizer.decode(one.input_ids)), gold
    predicted = [place for place, label in enumerate(one.labels) if label != IGNORED]
    read = one.input_ids if backbone.kind == "encoder-decoder" else one.input_ids[: predicted[0]]
    written = [one.labels[place] for place in predicted]
    return str(backbone.tokenizer.decode(read)), str(backbone.tokenizer.decode(written))


def _short(value: Any) -> str:
    """A value in quotes, its middle left out where it is long: prompts end with what matters."""
    if not isinstance(value, str):
        shown = repr(value)
        return shown if len(shown) <= SHOWN else f"{shown[: SHOWN - 3]}..."
    half = SHOWN // 2
    return repr(value if len(value) <= SHOWN else f"{value[:half]} ... {value[-half:]}")


def _blanks(settings: DataSettings, rows: Rows) -> list[tuple[str, list[int]]]:
    """The numbers of rows, from 1, whose input is blank, and of those whose target is."""
    if settings.task == "answer":
        return [
            (name, _where(_is_blank(row[name]) for row in rows)) for name in ("question", "context")
        ]
    if settings.prompt is None:
        return [("last answer", _where(_is_blank(_last_answer(row)) for row in rows))]
    found = []
    parts = [("text", settings.prompt), ("target", settings.target or "")]
    for what, template in parts[:1] if settings.task == "multilabel" else parts:
        names = columns(template)
        blank = (bool(names) and all(_is_blank(row[name]) for name in names) for row in rows)
        found.append((what, _where(blank)))
    return found


def _last_answer(row: Mapping[str, Any]) -> Any:
    turns = row[MESSAGES]
    return turns[answers(turns)[-1]]["content"]


def _where(blank: Iterable[bool]) -> list[int]:
    return [number for number, is_blank in enumerate(blank, 1) if is_blank]


def _is_blank(value: Any) -> bool:
    """Whether a text has no character that shows, or a list none but such texts."""
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, list | tuple) and all(map(_is_blank, value))


def _alike(labels: Sequence[str]) -> list[list[str]]:
    """Labels that are the same but for spaces and case."""
    found: dict[str, list[str]] = {}
    for label in labels:
        found.setdefault("".join(label.split()).casefold(), []).append(label)
    return [same for same in found.values() if same[1:]]
