"""`train`: from rows to a prefix, with everything checked before the long work starts."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, set_seed

from foreword import format as prefix_file
from foreword.arguments import expect, path_of
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data import Collator, Encoded, Report, rows_of
from foreword.data.attributes import values_in
from foreword.data.collate import padding_of
from foreword.data.given import Data
from foreword.errors import ForewordError, StoreError, TrainingError, first_line
from foreword.interrupt import Terminated
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.headed import with_head
from foreword.methods.prefix.module import PrefixModule, detached
from foreword.methods.prefix.settings import ATTRIBUTE_LENGTH, LENGTH
from foreword.methods.prefix.start import start
from foreword.objectives.class_weights import class_weights
from foreword.objectives.encode import (
    encode,
    encode_evaluation,
    room,
    rows_digest,
    spread,
    targets_of,
)
from foreword.objectives.first_look import check_labels, first_look, warn_of_doubts
from foreword.objectives.task import for_task
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from foreword.train.folder import prepare, temporary
from foreword.train.lock import together_in
from foreword.train.ranks import Ranks
from foreword.train.report import LOGS, reporters
from foreword.train.settings import TrainSettings
from foreword.train.summary import last_and_best
from foreword.train.trainer import REMEDY, NotFinite, PrefixTrainer

log = logging.getLogger("foreword.train")
"""Where `train` says, as INFO, what it is about to learn."""


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
    ranks = Ranks(backbone.device)
    with ExitStack() as stack:
        said = reporters(settings, Path(logs), stack) if ranks.first else []
        place = Path(folder) if folder is not None else stack.enter_context(temporary(ranks))
        set_seed(settings.seed)
        rows = rows_of(data)
        asked = settings.task
        settings = for_task(backbone, settings, rows)
        check_labels(asked, settings, rows)
        rows = spread(rows, settings)
        room(backbone, settings, settings.length or 1)
        values = values_in(settings.attribute_names, rows)
        plain = start(backbone, settings, rows, store, values)
        first = with_head(backbone, plain, settings, rows)
        settings = _resolved(settings, first)
        train_rows, report = encode(backbone, rows, settings, first)
        warn_of_doubts(settings, first.head, rows)
        look = first_look(backbone, settings, first.head, rows, train_rows)
        eval_rows = []
        if evaluation is not None:
            eval_rows = encode_evaluation(backbone, evaluation, settings, first)
        digest = _common_digest(train_rows, ranks)
        parameterization = parameterise(backbone, first, settings, train_rows)
        trained = sum(parameter.numel() for parameter in parameterization.parameters())
        run = {
            "settings": settings.as_json(),
            "data": digest,
            "start": first.digest,
            "evaluation": rows_digest(eval_rows),
            "processes": ranks.count,
        }
        needed = max(first.parameters, trained)
        stack.enter_context(together_in(place, ranks))
        begun, identity = ranks.first_does(lambda: prepare(place, run, needed, resume=resume))
        attachment = stack.enter_context(backbone.attached(None))
        dropout = PrefixDropout(settings.dropout, settings.frozen, settings.seed)
        labels = 0 if first.head is None else len(first.head.labels)
        weights_L = class_weights(settings, train_rows, labels)
        module = PrefixModule(parameterization, backbone, attachment, dropout, weights_L)
        module.to(backbone.device)
        if settings.gradient_checkpointing:
            stack.callback(module.activation_checkpointing_disable)
        trainer = PrefixTrainer(
            module,
            settings,
            place,
            train_rows,
            eval_rows,
            Collator(padding_of(backbone.tokenizer, backbone.vocabulary)),
            [*callbacks, *said],
            backbone.device,
            ranks,
            identity,
        )
        training = {
            "data": digest,
            "rows": report.rows,
            "truncated_rows": report.truncated_rows,
            "backbone_parameters": backbone.parameters,
            "quantization": backbone.quantization,
            "trained_parameters": trained,
            **targets_of(backbone, settings, train_rows),
        }
        stack.enter_context(ranks.stopping_together())
        if ranks.first:
            log.info(look)
        origin = started_from(first, settings)
        return _run(trainer, settings, origin, report, training, begun, look)


def started_from(first: Prefix, settings: TrainSettings) -> Prefix:
    """What the first step of training finds, as plain tensors: closed gates leave values of zero.

    Args:
        first: What training starts from.
        settings: What training does.
    """
    plain = replace(detached(first), start=None)
    if settings.parameterization != "gated":
        return plain
    return replace(plain, values=tuple(map(torch.zeros_like, plain.values)))


def _resolved(settings: TrainSettings, first: Prefix) -> TrainSettings:
    """The settings with the lengths that the start decided, so that the recipe says them."""
    shared = first.meta.pieces[0].length if settings.attributes else first.length
    length = shared if settings.starts_from_prefix else LENGTH
    own = settings.attribute_length or (ATTRIBUTE_LENGTH if settings.attributes else None)
    return replace(settings, length=settings.length or length, attribute_length=own)


def _common_digest(rows: Sequence[Encoded], ranks: Ranks) -> str:
    """The digest of the rows, which all processes must have read alike."""
    digests = ranks.gathered(rows_digest(rows))
    others = [index for index, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise TrainingError(
            f"process {others[0]} of {ranks.count} read other training rows than process 0; give all "
            "the same data"
        )
    return digests[0]


def _run(
    trainer: PrefixTrainer,
    settings: TrainSettings,
    origin: Prefix,
    report: Report,
    about: Mapping[str, Any],
    begun: Path | None,
    look: str,
) -> TrainResult:
    began = time.perf_counter()
    stopped: str | None = None
    cause: BaseException | None = None
    try:
        if begun is None or not trainer.is_complete(begun):
            trainer.train(resume_from_checkpoint=str(begun) if begun else None)
        _check_finite(trainer)
    except KeyboardInterrupt as error:
        stopped, cause = _asked_by(error), error
    except NotFinite as error:
        stopped, cause = str(error), error
        trainer.restore_last_good()
    except StoreError as error:
        stopped, cause = str(error), error
    except RuntimeError as error:
        if trainer.ranks.count == 1:
            raise
        stopped, cause = f"a process failed or was lost ({first_line(error)})", error
    seconds = time.perf_counter() - began
    history = [
        {name: float(entry[name]) for name in ("step", "loss", "eval_loss") if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    prefix = replace(_best(trainer), start=origin)
    training = {
        **about,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 3),
        "best_eval_nll": _finite(min(trainer.evaluated(), default=math.nan)),
        "final_loss": _finite(
            next((e["loss"] for e in reversed(history) if "loss" in e), math.nan)
        ),
        **last_and_best(history),
        "stopped": stopped,
    }
    result = TrainResult(
        prefix.with_meta(recipe={"method": "prefix", **settings.as_json()}, training=training),
        history,
        seconds,
        report,
        stopped,
        look,
    )
    if cause is not None:
        done = f"after {trainer.state.global_step} of {trainer.state.max_steps} steps"
        raise TrainingStopped(f"training stopped {done}: {stopped}", result) from cause
    return result


def _asked_by(error: KeyboardInterrupt) -> str:
    how = "SIGTERM" if isinstance(error, Terminated) else "Ctrl-C"
    return f"interrupted ({how})"


def _check_finite(trainer: PrefixTrainer) -> None:
    """No loss is computed after the last step, so what it left is looked at.

    Raises:
        NotFinite: A parameter is NaN or infinite.
    """
    if not all(bool(torch.isfinite(p).all()) for p in trainer.prefix_module.parameters()):
        raise NotFinite(f"the prefix became nan or inf in the last step; {REMEDY}")


def _best(trainer: PrefixTrainer) -> Prefix:
    """The best prefix that evaluation saw, else the one that the parameters stand for now."""
    if trainer.best is not None:
        return trainer.best
    if trainer.evaluated() and trainer.best_path.is_file():
        try:
            return prefix_file.load(trainer.best_path)
        except ForewordError:
            pass  # damaged: the parameters are next best
    return detached(trainer.prefix_module.parameterization.materialise())


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
