"""`train`: from rows to a prefix, with everything checked before the long work starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import TrainerCallback

from foreword.arguments import expect, path_of
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data import Report
from foreword.data.given import Data
from foreword.errors import TrainingError
from foreword.methods.prefix.method import PrefixMethod, PrefixStart, started_from
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from foreword.train.fit import fit
from foreword.train.report import LOGS
from foreword.train.settings import TrainSettings


@dataclass(frozen=True)
class TrainResult:
    """What training gave.

    Attributes:
        prefix: The trained prefix, the best one where there was evaluation data; float32, on the CPU;
            with its start.
        history: One entry per step: ``step``, ``loss`` (NLL per target token, nats), or ``eval_loss``.
        seconds: Wall time of the training loop.
        report: What encoding the rows cut.
        stopped: Why training ended early, or None.
        first_look: The line that was logged before the first step: task, rows, labels, one example.
    """

    prefix: Prefix
    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    report: Report
    stopped: str | None = None
    first_look: str = ""


class TrainingStopped(TrainingError):
    """Training ended before its time; ``result`` holds the best prefix so far."""

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result


def train(
    backbone: Backbone,
    data: Data,
    settings: TrainSettings,
    *,
    evaluation: Data | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    logs: str | os.PathLike[str] = LOGS,
    callbacks: Sequence[TrainerCallback] = (),
    store: PrefixStore | None = None,
) -> TrainResult:
    """Train a prefix on a task's rows; the backbone stays frozen.

    Under torchrun or accelerate launch all processes train one prefix, each on its share of every
    step's rows. The first writes all files; every one gets the result.

    Before the first step the logger ``foreword.train`` says, as INFO, the task, the number of rows, the
    labels, and the first row as the model reads it; so does the result's ``first_look``.

    Args:
        backbone: The backbone, left as it was found.
        data: Rows, or where to read them. A list in a target column is several references: the row is
            trained on once with each.
        settings: The recipe; ``TrainSettings(prompt=..., target=...)`` at the least.
        evaluation: Rows to choose the best prefix by, never trained on. Those with a label that the
            head does not know are left out.
        folder: Where checkpoints go, so that a killed run can be resumed; a temporary one by default.
        resume: Go on from the folder's newest whole checkpoint, or start if there is none.
        logs: Where TensorBoard's files go, if the settings ask for them; the last part names the run
            on Weights & Biases.
        callbacks: Callbacks of transformers' Trainer.
        store: Where a prefix that ``settings.init`` names is looked up; by default the user's store.

    Returns:
        The prefix and how training went.

    Raises:
        DataError: Rows, columns, templates or lengths are wrong, or free text would be taken for
            classes; before training starts.
        TrainingError: Nothing fits the settings, the run to resume was another one, or another run is
            in the folder.
        TrainingStopped: The loss became NaN, the disk is full, Ctrl-C, or another process was lost;
            carries the best so far.

    Warns:
        DoubtfulData: Texts or targets are blank, labels differ by spaces or case alone, or evaluation
            rows have labels that the head does not know.

    Examples:
        >>> settings = TrainSettings(prompt="{mr} ->", target=" {ref}")
        >>> result = train(backbone, "foreword/e2e:train", settings)  # doctest: +SKIP
    """
    check_backbone(backbone)
    expect("settings", settings, TrainSettings, "TrainSettings", TrainingError)
    if store is not None:
        expect("store", store, PrefixStore, "a PrefixStore", TrainingError)
    folder = None if folder is None else path_of("folder", folder, TrainingError)
    logs = path_of("logs", logs, TrainingError)
    for callback in callbacks:
        expect("a callback", callback, TrainerCallback, "a TrainerCallback", TrainingError)
    settings.check_evaluation(is_given=evaluation is not None)
    found = fit(
        backbone,
        data,
        PrefixMethod(store),
        settings,
        settings,
        evaluation=evaluation,
        folder=None if folder is None else Path(folder),
        resume=resume,
        logs=Path(logs),
        callbacks=callbacks,
    )
    start = found.start
    assert isinstance(start, PrefixStart)
    prefix = replace(found.value, start=started_from(start.first, start.settings))
    result = TrainResult(
        prefix.with_meta(
            recipe={"method": PrefixMethod.name, **start.settings.as_json()},
            training=found.training,
        ),
        found.history,
        found.seconds,
        found.report,
        found.stopped,
        found.first_look,
    )
    if found.cause is not None:
        taken, planned = found.steps
        done = f"after {taken} of {planned} steps"
        raise TrainingStopped(f"training stopped {done}: {found.stopped}", result) from found.cause
    return result
