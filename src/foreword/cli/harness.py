"""`foreword evaluate --lm-eval`: tasks of EleutherAI's lm-eval in the place of rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.table import Table

from foreword.cli.composing import Composing, loaded, outlines_of
from foreword.cli.console import note, quiet_libraries, say, show, table, visible, working
from foreword.cli.options import BackboneOptions
from foreword.cli.progress import parts
from foreword.errors import WRITES_NONE, MismatchError
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.evaluate.harness import TaskEvaluation


def evaluate_on_tasks(
    name: str,
    words: str,
    composing: Composing,
    backbone: BackboneOptions,
    store: PrefixStore,
    *,
    base: bool,
    limit: int | None,
    batch_size: int,
    strict: bool,
    chat: bool,
    as_json: bool,
) -> None:
    """Score a prefix on tasks of lm-eval, and show what it measured.

    Args:
        name: Name of the prefix, or an expression.
        words: The tasks.
        composing: How strong it is, and how several are put together.
        backbone: Which backbone.
        store: Where prefixes live.
        base: Whether the frozen model is evaluated too.
        limit: Documents of each task, at most.
        batch_size: Requests in one pass.
        strict: Refuse other weights than the prefix was made on.
        chat: Whether requests are turns of a chat.
        as_json: Print everything as JSON.

    Raises:
        DataError: lm-eval or a task cannot be had, or a task fails.
        MismatchError: The prefix carries a head.
    """
    for outline in outlines_of(store, name, composing.way):
        if outline.head is not None:
            raise MismatchError(WRITES_NONE.format(outline.head["task"]))
    from foreword.evaluate.harness import evaluate_tasks, tasks_named

    quiet_libraries()
    with working("loading the tasks"):
        tasks = tasks_named(words)
    prefix, model = loaded(store, name, composing, backbone)
    with parts() as progress:
        measured = evaluate_tasks(
            model,
            prefix,
            tasks,
            base=base,
            limit=limit,
            batch_size=batch_size,
            strict=strict,
            chat=chat,
            progress=progress,
        )
    if as_json:
        say(json.dumps(measured.as_json(), ensure_ascii=False, indent=1))
        return
    show(task_figures(name, measured))
    for line in remarks(measured):
        note(line)


def task_figures(name: str, measured: TaskEvaluation) -> Table:
    """The tasks' figures as a table, with standard errors where lm-eval has them."""
    models = [each for each in (measured.base, measured.prefix) if each is not None]
    frozen = ["frozen model"] if measured.base is not None else []
    made = table("", "task", "metric", *frozen, name)
    for rows in zip(*(model.figures() for model in models), strict=True):
        task, metric, _ = rows[0]
        made.add_row(visible(task), visible(metric), *(str(figure) for *_, figure in rows))
    return made


def remarks(measured: TaskEvaluation) -> list[str]:
    """A line for each task, and one for what was cut, if anything was."""
    lines = [
        f"{visible(task)}: {rows} documents, {measured.shots.get(task, 0)} examples in front of each"
        for task, rows in measured.rows.items()
    ]
    if measured.prefix.cut:
        lines.append(
            f"{measured.prefix.cut} requests did not fit the context, and lost tokens from their left"
        )
    return lines
