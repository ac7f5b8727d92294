"""`foreword evaluate`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from foreword.cli.console import note, out, say, table, working
from foreword.cli.inputs import rows_from, templates_in
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.options import GenerateOptions

if TYPE_CHECKING:
    from foreword.evaluate import Evaluation, LabelEvaluation, Metrics


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """What to evaluate on, and how to show it."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON, outputs and references included."""

    base: Annotated[bool, Parameter(negative="--no-base")] = True
    """Evaluate the frozen model beside the prefix."""

    limit: int | None = None
    """Only the first so many distinct inputs."""

    strict: bool = False
    """Refuse a backbone with other weights than the prefix was made on, instead of warning."""


def evaluate(
    name: str,
    data: str,
    /,
    *,
    arguments: EvaluateArguments = EvaluateArguments(),
    options: Annotated[GenerateOptions, Parameter(name="*")] = GenerateOptions(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Score a prefix on a task's rows, with the frozen model beside it.

    Rows with the same prompt are references of one input: each is scored, text is generated once. A
    prefix with a head is scored by its labels, with the same head on the frozen model beside it.

    Parameters
    ----------
    name
        Name of the prefix in the store.
    data
        Rows, as in training.
    """
    place = store.open()
    meta = place.outline(name).meta
    rows = rows_from(data)
    templates = templates_in(meta)
    if templates is not None:
        templates.check_columns(rows)
    from foreword.evaluate import LabelEvaluation
    from foreword.evaluate import evaluate as run_evaluation

    prefix = place.load(name)
    with working("loading the backbone"):
        loaded = backbone.load(prefix)
    with working("evaluating"):
        found = run_evaluation(
            loaded,
            prefix,
            rows,
            options=options,
            base=arguments.base,
            limit=arguments.limit,
            strict=arguments.strict,
        )
    if arguments.as_json:
        say(json.dumps(found.as_json(), ensure_ascii=False, indent=1))
        return
    if isinstance(found, LabelEvaluation):
        out.print(label_figures(name, found))
        for said in (f"{found.rows} rows; {found.truncation}", *found.remarks):
            note(said)
        return
    out.print(figures(name, found))
    note(f"{found.inputs} inputs, {found.rows} references, {found.targets} target tokens; "
         f"{found.truncation}")  # fmt: skip


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
