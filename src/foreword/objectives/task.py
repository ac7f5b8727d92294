"""Which task is learned: what the settings say, else what backbone and data are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from foreword.backbone import Backbone
from foreword.backbone.kinds import KINDS, with_article
from foreword.data.template import MESSAGES, Task, columns
from foreword.errors import DataError, PrefixError, TrainingError
from foreword.head import HEAD_TASKS, POOLED, HeadTask, check_head
from foreword.objectives.settings import DataSettings, TaskName
from foreword.tasks import LABELLINGS
from foreword.tasks.multilabel import LISTED, has_lists
from foreword.tasks.regress import has_fractions
from foreword.tasks.texts import PAIR

Rows = Sequence[Mapping[str, Any]]
S = TypeVar("S", bound=DataSettings)

_KINDS: dict[TaskName, tuple[str, ...]] = {
    "causal": ("decoder",),
    "seq2seq": ("encoder-decoder",),
    "classify": ("encoder", "decoder"),
    "tag": ("encoder", "decoder"),
    "answer": ("encoder", "decoder"),
    "regress": ("encoder", "decoder"),
    "multilabel": ("encoder", "decoder"),
}
"""Kinds of backbones that can learn each task."""
_POOLED = " or ".join(f"task={task!r}" for task in POOLED)


def for_task(backbone: Backbone, settings: S, rows: Rows) -> S:
    """The settings with task, templates and pooling decided, so that the recipe says them.

    Raises:
        TrainingError: The backbone's kind cannot learn the task, or a setting is not for it.
        DataError: The templates are not for it.
    """
    task = settings.task or _suited(backbone, settings, rows)
    if settings.task is None and task == "classify":
        task = _by_target(settings, rows)
    if backbone.kind not in _KINDS[task]:
        able = [name for name, kinds in _KINDS.items() if backbone.kind in kinds]
        raise TrainingError(
            f"task {task!r} needs {with_article(' or '.join(_KINDS[task]))}; "
            f"{backbone.name or backbone.family!r} is {with_article(backbone.kind)}, which learns "
            f"{', '.join(able)}"
        )
    pooling = settings.pooling
    if task in POOLED:
        pooling = pooling or KINDS[backbone.kind].pooling
    elif pooling is not None:
        raise TrainingError(f"pooling is only used with {_POOLED}; found task={task!r}")
    if settings.class_weights is not None and task != "classify":
        raise TrainingError(f"class_weights is only used with task='classify'; found task={task!r}")
    if settings.pair is not None and task not in POOLED:
        raise TrainingError(f"pair is only used with {_POOLED}; found task={task!r}")
    settings = replace(settings, task=task, pooling=pooling)
    if task not in HEAD_TASKS:
        return settings
    if settings.attributes is not None:
        raise TrainingError(
            f"attributes need a task that writes text, and this one is {task!r}; leave attributes out"
        )
    default = _default_templates(task, rows)
    if settings.prompt is not None or default is None:
        return settings
    pair = PAIR if task in POOLED and columns(PAIR)[0] in rows[0] else None
    return replace(settings, prompt=default.prompt, target=default.target, pair=pair)


def _suited(backbone: Backbone, settings: DataSettings, rows: Rows) -> TaskName:
    """A decoder labels only what has the columns of a labelling, and no templates or conversation."""
    if backbone.kind == "encoder-decoder":
        return "seq2seq"
    names = set(rows[0])
    if settings.prompt is None:
        if backbone.kind == "decoder" and rows[0].get(MESSAGES) is not None:
            return "causal"
        if {"question", "context"} <= names:
            return "answer"
        if {"tokens", "tags"} <= names:
            return "tag"
        if backbone.kind == "encoder" or {"text", "label"} <= names or _is_listed(rows):
            return "classify"
        return "causal"
    if settings.pair is not None:
        return "classify"
    if backbone.kind == "decoder":
        return "causal"
    lists = (_holds_list(one, rows[0]) for one in (settings.prompt, settings.target or ""))
    return "tag" if all(lists) else "classify"


def _holds_list(template: str, row: Mapping[str, Any]) -> bool:
    """Whether the first column that a template names holds a list."""
    names = columns(template)
    return bool(names) and isinstance(row.get(names[0]), list | tuple)


def _is_listed(rows: Rows) -> bool:
    """Whether rows have a text and, in the column for that, a list of labels."""
    return {"text", "labels"} <= set(rows[0]) and has_lists(LISTED, rows[:1])


def _by_target(settings: DataSettings, rows: Rows) -> TaskName:
    """What texts are labelled with: several labels each, a number, or a class."""
    own = settings.templates
    if settings.prompt is None:
        own = _default_templates("multilabel", rows) or own
    if has_lists(own, rows):
        return "multilabel"
    return "regress" if has_fractions(own, rows) else "classify"


def _default_templates(task: HeadTask, rows: Rows) -> Task | None:
    """A task's templates where none are given; lists of labels may be in a column of their own."""
    if task == "multilabel" and "labels" in rows[0] and "label" not in rows[0]:
        return LISTED
    return LABELLINGS[task].templates


def labelling_rows(rows: Rows, settings: DataSettings) -> tuple[str, ...]:
    """The labels that rows have for a task with a head.

    Raises:
        DataError: A row has not what the task needs, or there are too few labels.
    """
    assert settings.task in HEAD_TASKS
    labelling = LABELLINGS[settings.task]
    labelling.columns(settings.templates, rows)
    found = labelling.labels(settings.templates, rows)
    try:
        check_head(settings.task, found, settings.pooling, pair=settings.pair is not None)
    except PrefixError as error:
        raise DataError(f"the rows' labels are none that a prefix's file holds: {error}") from error
    return found
