"""`foreword evaluate`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from foreword.cli.composing import Composing, loaded, outlines_of
from foreword.cli.console import note, say, show, table, visible
from foreword.cli.harness import evaluate_on_tasks
from foreword.cli.inputs import rows_from, templates_in
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.cli.progress import parts
from foreword.data.template import Task
from foreword.errors import DataError
from foreword.options import GenerateOptions

if TYPE_CHECKING:
    from foreword.evaluate import Evaluation, LabelEvaluation, Metrics
    from foreword.evaluate.classes import ClassFigures, LabelFigures

MOST_COLUMNS = 12
"""Labels up to which the confusion matrix is shown; --json always has it."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """What to evaluate on, and how to show it."""

    lm_eval: str | None = None
    """Tasks of lm-eval in the place of DATA, with commas between: names that it knows, or YAML files and
    folders of them (the extra "lm-eval")."""

    chat: bool = False
    """Give the requests of --lm-eval as turns of a chat, by the backbone's chat template."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON, outputs and references included."""

    base: Annotated[bool, Parameter(negative="--no-base")] = True
    """Evaluate the frozen model beside the prefix."""

    limit: int | None = None
    """Only the first so many distinct inputs; of --lm-eval the first documents of each task."""

    scored_references: int | None = None
    """References of each input whose NLL is taken, the first ones; all by default."""

    prompt: str | None = None
    """Template of what the model is given, if not that of the training; with --target. A prefix with a
    head has its own."""

    target: str | None = None
    """Template of what the model shall say, if not that of the training; with --prompt."""

    strict: bool = False
    """Refuse a backbone with other weights than the prefix was made on, instead of warning."""

    @property
    def task(self) -> Task | None:
        """The templates, or None for the prefix's own.

        Raises:
            DataError: One is given without the other, or is ill-formed.
        """
        if self.prompt is None and self.target is None:
            return None
        return Task(self.prompt, self.target)

    def check_for_tasks(self, data: str | None, options: GenerateOptions) -> None:
        """Check that nothing was given beside --lm-eval that a task brings itself.

        Raises:
            DataError: Something was.
        """
        ours = ("prompt", "target", "scored_references")
        given = [name for name in ours if getattr(self, name) is not None]
        given += [
            field.name
            for field in fields(options)
            if field.name != "batch_size" and getattr(options, field.name) != field.default
        ]
        names = [f"--{name.replace('_', '-')}" for name in given]
        if data is not None:
            names.insert(0, f"DATA ({data})")
        if names:
            raise DataError(
                "a task of lm-eval (--lm-eval) brings its rows, its prompts and how texts are "
                f"generated; leave out {', '.join(names)}"
            )


def evaluate(
    name: str,
    data: str | None = None,
    /,
    *,
    arguments: EvaluateArguments = EvaluateArguments(),
    composing: Composing = Composing(),  # noqa: B008
    options: Annotated[GenerateOptions, Parameter(name="*")] = GenerateOptions(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Score a prefix on a task's rows, with the frozen model beside it.

    Rows with the same prompt are references of one input, as are the entries of a list in a target
    column: each is scored, text is generated once. A prefix with a head is scored by its labels, with
    the same head on the frozen model beside it; of one that classifies, figures of each class and the
    confusion matrix are shown as well, of one for several labels those of each label.

    Parameters
    ----------
    name
        Name of the prefix in the store, or an expression of several, such as `"0.7*formal - toxic"`.
    data
        Rows, as in training; or leave it out, with --lm-eval.
    """
    if arguments.lm_eval is not None:
        arguments.check_for_tasks(data, options)
        composing.check(name)
        evaluate_on_tasks(
            name,
            arguments.lm_eval,
            composing,
            backbone,
            store.open(),
            base=arguments.base,
            limit=arguments.limit,
            batch_size=options.batch_size,
            strict=arguments.strict,
            chat=arguments.chat,
            as_json=arguments.as_json,
        )
        return
    if arguments.chat:
        raise DataError(
            "--chat is of tasks (--lm-eval); rows with messages are chats by themselves"
        )
    if data is None:
        raise DataError(
            "there is nothing to evaluate on; give DATA, a file of rows, or --lm-eval TASK"
        )
    task = arguments.task
    composing.check(name)
    place = store.open()
    meta = outlines_of(place, name, composing.way)[0].meta
    rows = rows_from(data)
    templates = templates_in(meta) if task is None else task
    if templates is not None:
        templates.check_columns(rows)
    from foreword.evaluate import LabelEvaluation
    from foreword.evaluate import evaluate as run_evaluation

    prefix, model = loaded(place, name, composing, backbone)
    with parts() as progress:
        found = run_evaluation(
            model,
            prefix,
            rows,
            options=options,
            base=arguments.base,
            limit=arguments.limit,
            task=task,
            strict=arguments.strict,
            scored_references=arguments.scored_references,
            progress=progress,
        )
    if arguments.as_json:
        say(json.dumps(found.as_json(), ensure_ascii=False, indent=1))
        return
    if isinstance(found, LabelEvaluation):
        for shown in (label_figures(name, found), *class_figures(found)):
            show(shown)
        for said in (f"{found.rows} rows; {found.truncation}", *found.remarks):
            note(said)
        return
    show(figures(name, found))
    note(f"{counted(found)}, {found.targets} target tokens; {found.truncation}")


def counted(found: Evaluation) -> str:
    """How many inputs and references an evaluation has, and of how many the NLL was taken."""
    total = sum(map(len, found.references))
    of = "" if found.rows == total else f" (NLL of {found.rows})"
    return f"{found.inputs} inputs, {total} references{of}"


def figures(name: str, found: Evaluation) -> Table:
    """The evaluation as a table."""
    both = found.base is not None
    made = table("", "", *(["frozen model"] if both else []), name)
    for label, field, form in found.figures:
        models: list[Metrics] = [found.base, found.prefix] if found.base else [found.prefix]
        made.add_row(label, *(form.format(getattr(model, field)) for model in models))
    return made


def label_figures(name: str, found: LabelEvaluation) -> Table:
    """The evaluation of a head as a table."""
    models = [found.prefix] if found.base is None else [found.base, found.prefix]
    made = table("", "", *(["head without prefix"] if found.base is not None else []), name)
    for label, field, form in found.figures:
        made.add_row(label, *(form.format(model[field]) for model in models))
    return made


def class_figures(found: LabelEvaluation) -> Iterator[Table]:
    """Each class, and which label was said of which, of a head that classifies; or each label."""
    if found.by_label:
        yield _label_by_label(found.by_label)
    if found.confusion is None:
        return
    made = table("", "class", "precision %", "recall %", "F1 %", "rows")
    for one in found.classes:
        made.add_row(*_cells(one))
    yield made
    labels, counts = found.confusion.labels, found.confusion.counts
    if len(labels) <= MOST_COLUMNS:
        made = table("said, by what is right", "", *map(visible, labels))
        for label, row in zip(labels, counts, strict=True):
            made.add_row(visible(label), *map(str, row))
        yield made


def _label_by_label(labels: Sequence[LabelFigures]) -> Table:
    """Each label, the rows that have it, and those of which it was said."""
    made = table("", "label", "precision %", "recall %", "F1 %", "rows", "rows said")
    for one in labels:
        made.add_row(*_cells(one), str(one.said))
    return made


def _cells(one: ClassFigures) -> tuple[str, ...]:
    figures = (f"{figure:.1f}" for figure in (one.precision, one.recall, one.f1))
    return visible(one.label), *figures, str(one.support)
