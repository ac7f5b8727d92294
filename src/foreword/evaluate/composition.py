"""`compose_report`: a composition on held-out rows, beside its parts and joint training."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from transformers import TrainerCallback

from foreword.arguments import expect
from foreword.arithmetic.record import COMPOSITION
from foreword.backbone import Backbone
from foreword.data import rows_of
from foreword.data.given import Data, Rows, name_of
from foreword.data.template import Task, fill
from foreword.errors import DataError, ForewordError, Notice, PrefixError, TrainingError
from foreword.evaluate.labels import LabelEvaluation
from foreword.evaluate.reported import (
    REPORT,
    CompositionReport,
    ModelFigures,
    Role,
    is_report_on,
    without_report,
)
from foreword.evaluate.run import Evaluation, evaluate
from foreword.evaluate.scores import dataset_of
from foreword.options import GenerateOptions
from foreword.predict import templates_of
from foreword.prefix import Prefix, check_prefix
from foreword.progress import Progress, unseen
from foreword.prompts import task_of
from foreword.store import PrefixStore
from foreword.train import TrainSettings, train

_SETTINGS = {each.name for each in dataclasses.fields(TrainSettings)}


class SeenInTraining(Notice):
    """Rows that a report is on are among those that the joint prefix was trained on."""


def compose_report(
    backbone: Backbone,
    composed: Prefix,
    parts: Mapping[str, Prefix],
    data: Data,
    *,
    name: str = "composition",
    train_rows: Data | None = None,
    settings: TrainSettings | None = None,
    options: GenerateOptions | None = None,
    limit: int | None = None,
    strict: bool = False,
    store: PrefixStore | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: Progress = unseen,
    so_far: Callable[[CompositionReport], None] = lambda _: None,
) -> CompositionReport:
    """Evaluate a composition on held-out rows, beside its parts, the frozen model and joint training.

    All of them are asked in the templates of the composition.

    Args:
        backbone: The backbone, left as it was found.
        composed: The composition, as `compose` gives it.
        parts: By name what it was composed of, as `operands` gives them.
        data: Held-out rows, or where to read them.
        name: What the report calls the composition.
        train_rows: Rows of the whole task; one prefix is trained on them, as an upper bound. Without
            them the report has none.
        settings: How that one is trained; by default as `joint_settings` says.
        options: How text is generated; greedy with up to 128 new tokens by default.
        limit: Only the first so many distinct inputs, or rows of a head.
        strict: Refuse a backbone with other weights than the prefixes were made on.
        store: Where a prefix that ``settings.init`` names is looked up.
        callbacks: Callbacks of the training.
        progress: Told how far it is.
        so_far: Called with the report before the joint training begins, which takes longest.

    Raises:
        DataError: Rows or columns are wrong, or there are no parts.
        MismatchError: A prefix does not fit the backbone.
        TrainingError: There are settings and no rows, or nothing says how to train.
        TrainingStopped: The joint training ended before its time.

    Warns:
        SeenInTraining: Inputs of `data` are among those of `train_rows`.

    Examples:
        >>> made = compose("formal + e2e", store.load, backbone=b)  # doctest: +SKIP
        >>> parts = operands("formal + e2e", store.load)  # doctest: +SKIP
        >>> report = compose_report(b, made, parts, "dev.jsonl")  # doctest: +SKIP
        >>> made = with_report(made, report)  # doctest: +SKIP
    """
    check_prefix(composed)
    expect("parts", parts, Mapping, "prefixes by name, as `operands` gives them", DataError)
    if not parts:
        raise DataError("a report needs the parts of the composition; found none")
    if settings is not None and train_rows is None:
        raise TrainingError("settings are of a joint training; give its rows too: train_rows=...")
    rows = Rows(rows_of(data), name_of(data))
    if train_rows is not None:
        train_rows = Rows(rows_of(train_rows), name_of(train_rows))
        settings = settings or joint_settings(composed)
        _warn_of_seen(composed, rows, train_rows)
    measure = partial(
        _measured,
        backbone,
        rows,
        task=task_of(composed) if composed.head is None else None,
        options=options,
        limit=limit,
        strict=strict,
        progress=progress,
    )
    report = _report(measure, composed, parts, name)
    if train_rows is None:
        return report
    so_far(report)
    assert settings is not None
    result = train(backbone, train_rows, settings, callbacks=callbacks, store=store)
    found = measure("trained jointly", result.prefix, base=False)
    training = result.prefix.meta.training
    models = (*report.models, _figures("joint", "trained jointly", "", found))
    joint = {name: training[name] for name in ("data", "rows", "steps")}
    return dataclasses.replace(report, models=models, joint=joint)


def joint_settings(composed: Prefix, **changes: Any) -> TrainSettings:
    """How a prefix is trained that a composition is compared with: as its first part was, at its length.

    Args:
        composed: The composition. What its recipe says of training holds, but for a prefix that training
            started from, whose place the default start takes, and for attributes: the joint prefix is
            one, as the composition is.
        **changes: Settings that are others; those that are None are left as they are.

    Raises:
        TrainingError: A setting is out of range, or there is no such one.
    """
    unknown = sorted(set(changes) - _SETTINGS)
    if unknown:
        raise TrainingError(f"there is no setting {unknown[0]!r} of training")
    recipe = {name: value for name, value in composed.meta.recipe.items() if name in _SETTINGS}
    given = {name: value for name, value in changes.items() if value is not None}
    others = {"early_stop": None, "report_to": "none", "attributes": None, "attribute_length": None}
    try:
        settings = TrainSettings(**{**recipe, **others})
        if settings.starts_from_prefix:
            settings = dataclasses.replace(settings, init="text")
        if "epochs" in given:
            settings = dataclasses.replace(settings, steps=None)
        if "init_text" in given:
            settings = dataclasses.replace(settings, init="text")
        return dataclasses.replace(settings, **{"length": composed.length, **given})
    except TrainingError:
        raise
    except (ForewordError, TypeError) as error:  # a file's recipe may say anything
        raise TrainingError(
            f"the composition's recipe does not say how to train: {error}. Give settings"
        ) from error


def with_report(composed: Prefix, report: CompositionReport) -> Prefix:
    """The composition with a report in the record of how it was made.

    Its digest is another one: the report is part of what it covers.

    Raises:
        PrefixError: The prefix is no composition, or the report is on another one.
    """
    check_prefix(composed)
    record = composed.meta.recipe.get(COMPOSITION)
    if not isinstance(record, dict):
        raise PrefixError(
            "a report belongs to a composition, and this prefix was not composed of others; evaluate "
            "it with foreword.evaluate"
        )
    if not is_report_on(report, composed):
        raise PrefixError(
            "the report is on another prefix than this composition, whose digest without a report is "
            f"{without_report(composed).digest[:12]}; make one with foreword.compose_report"
        )
    record = {**record, REPORT: report.as_json()}
    return composed.with_meta(recipe={**composed.meta.recipe, COMPOSITION: record})


Measure = Callable[..., Evaluation | LabelEvaluation]


def _report(
    measure: Measure, composed: Prefix, parts: Mapping[str, Prefix], name: str
) -> CompositionReport:
    """The report without a joint prefix."""
    whole = measure(name, composed, base=True)
    assert whole.base is not None
    models = [ModelFigures("base", "frozen model", "", _without_seconds(whole.base))]
    for part, prefix in parts.items():
        models.append(_figures("part", part, prefix.digest, measure(part, prefix, base=False)))
    models.append(_figures("composition", name, without_report(composed).digest, whole))
    report = CompositionReport(tuple(models), whole.rows, whole.inputs, dataset_of(whole.data))
    if isinstance(whole, Evaluation):
        return dataclasses.replace(report, tokenisation=whole.tokenisation)
    return dataclasses.replace(report, task=whole.task)


def _measured(
    backbone: Backbone,
    rows: Rows,
    name: str,
    prefix: Prefix,
    *,
    progress: Progress,
    **how: Any,
) -> Evaluation | LabelEvaluation:
    def told(what: str, done: int, total: int) -> None:
        progress(f"{name}: {what}", done, total)

    return evaluate(backbone, prefix, rows, progress=told, **how)


def _figures(
    role: Role, name: str, digest: str, found: Evaluation | LabelEvaluation
) -> ModelFigures:
    return ModelFigures(role, name, digest, _without_seconds(found.prefix))


def _without_seconds(found: Any) -> dict[str, float]:
    """Figures without their time, so that the same composition gets the same digest, and all finite."""
    plain = dict(found) if isinstance(found, Mapping) else asdict(found)
    return {
        name: value for name, value in plain.items() if name != "seconds" and math.isfinite(value)
    }


def _warn_of_seen(composed: Prefix, rows: Rows, train_rows: Rows) -> None:
    """Say whether inputs that are evaluated on are trained on."""
    head = composed.head
    if head is not None and head.pooling is None:
        return
    task = task_of(composed) if head is None else templates_of(composed)
    if task.prompt is None:
        return
    every = {_input(task, row) for row in rows}
    both = every & {_input(task, row) for row in train_rows}
    if both:
        warnings.warn(
            f"{len(both)} of {len(every)} inputs of the report are among the rows of the joint "
            "training, whose figures are then too good; give rows that were held out",
            SeenInTraining,
            stacklevel=3,
        )


def _input(task: Task, row: Mapping[str, Any]) -> str:
    assert task.prompt is not None
    return fill(task.prompt, row) + ("" if task.second is None else f"\n{fill(task.second, row)}")
