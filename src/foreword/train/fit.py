"""`fit`: what every method's training does, checked before the long work starts."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from transformers import TrainerCallback, set_seed

from foreword.backbone import Backbone
from foreword.data import Collator, Encoded, Report, rows_of
from foreword.data.collate import padding_of
from foreword.data.given import Data
from foreword.errors import ForewordError, StoreError, TrainingError, first_line
from foreword.head import HEAD_TASKS
from foreword.interrupt import Terminated
from foreword.methods.base import Method, Start
from foreword.objectives.class_weights import class_weights
from foreword.objectives.encode import (
    encode,
    encode_evaluation,
    rows_digest,
    spread,
    targets_of,
)
from foreword.objectives.first_look import check_labels, first_look, warn_of_doubts
from foreword.objectives.own_texts import own_texts
from foreword.objectives.settings import DataSettings
from foreword.objectives.supervised import Supervised
from foreword.objectives.task import for_task
from foreword.train.folder import prepare, temporary
from foreword.train.lock import together_in
from foreword.train.ranks import Ranks
from foreword.train.report import LOGS, reporters
from foreword.train.settings import LoopSettings
from foreword.train.summary import last_and_best
from foreword.train.trainer import REMEDY, LearnerTrainer, NotFinite

log = logging.getLogger("foreword.train")
"""Where training says, as INFO, what it is about to learn."""

S = TypeVar("S", bound=DataSettings)
V = TypeVar("V")


@dataclass(frozen=True)
class Fitted(Generic[S, V]):
    """What `fit` gives, even when it had to stop.

    Attributes:
        value: What the method leaves: the best where there was evaluation data.
        start: Where it started, with the settings that were decided.
        history: One entry per step: ``step``, ``loss`` (NLL per target token, nats), or ``eval_loss``.
        training: What is on record of it: rows, steps, seconds, losses.
        report: What encoding the rows cut.
        seconds: Wall time of the training loop.
        first_look: The line that was logged before the first step.
        stopped: Why training ended early, or None.
        steps: Steps that were taken, and how many it should have been.
        tokens: Real tokens that were read in these seconds, those of evaluations included.
        cause: What stopped it, or None.
    """

    value: V
    start: Start[S, V]
    history: list[dict[str, float]]
    training: dict[str, Any]
    report: Report
    seconds: float
    first_look: str
    stopped: str | None
    steps: tuple[int, int]
    tokens: int
    cause: BaseException | None


def fit(
    backbone: Backbone,
    data: Data,
    method: Method[S, V],
    settings: S,
    loop: LoopSettings,
    *,
    evaluation: Data | None = None,
    folder: Path | None = None,
    resume: bool = False,
    logs: Path = LOGS,
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted[S, V]:
    """Train by a method, as `foreword.train` says it of prefixes.

    Args:
        backbone: The backbone, left as it was found.
        data: Rows, or where to read them.
        method: How the backbone is adapted.
        settings: What rows are read as, and the method's own settings.
        loop: What the loop does.
        evaluation: Rows to choose the best value by.
        folder: Where checkpoints go; a temporary one by default.
        resume: Go on from the folder's newest whole checkpoint, or start if there is none.
        logs: Where TensorBoard's files go.
        callbacks: Callbacks of transformers' Trainer.

    Raises:
        DataError: Rows, columns, templates or lengths are wrong; before training starts.
        TrainingError: Nothing fits the settings, they are another method's, or the folder is another
            run's.
    """
    if not isinstance(settings, method.settings):
        raise TrainingError(
            f"the method {method.name} has settings of its own, {method.settings.__name__}; found "
            f"{type(settings).__name__}"
        )
    loop.check_evaluation(is_given=evaluation is not None)
    ranks = Ranks(backbone.device)
    with ExitStack() as stack:
        config = recipe(settings, loop)
        said = reporters(loop.report_to, config, logs, stack) if ranks.first else []
        place = folder if folder is not None else stack.enter_context(temporary(ranks))
        set_seed(settings.seed)
        rows = rows_of(data)
        asked = settings.task
        settings = for_task(backbone, settings, rows)
        method.check(settings)
        if settings.attributes is not None and not method.selects:
            raise TrainingError(
                f"attributes are of control prefixes alone, and this is {method.name}; leave them out"
            )
        check_labels(asked, settings, rows)
        rows = spread(rows, settings)
        start = method.start(backbone, settings, rows)
        settings, head = start.settings, start.in_front.head
        train_rows, report = encode(backbone, rows, settings, start.in_front)
        warn_of_doubts(settings, head, rows)
        look = first_look(backbone, settings, head, rows, train_rows)
        eval_rows = []
        if evaluation is not None:
            eval_rows = encode_evaluation(backbone, evaluation, settings, start.in_front)
        digest = _common_digest(train_rows, ranks)
        labels = 0 if head is None else len(head.labels)
        objective = Supervised(
            settings.task in HEAD_TASKS,
            class_weights(settings, train_rows, labels),
            own_texts(backbone, settings, start.in_front),
        )
        learner = stack.enter_context(start.learning(objective, train_rows, loop.lr))
        trained = sum(parameter.numel() for parameter in learner.parameters())
        run = {
            "method": method.name,
            "settings": recipe(settings, loop),
            "data": digest,
            "start": start.digest,
            "evaluation": rows_digest(eval_rows),
            "processes": ranks.count,
        }
        needed = max(start.numbers, trained)
        stack.enter_context(together_in(place, ranks))
        begun, identity = ranks.first_does(lambda: prepare(place, run, needed, resume=resume))
        if loop.gradient_checkpointing:
            stack.callback(learner.activation_checkpointing_disable)
        trainer = LearnerTrainer(
            learner,
            loop,
            settings.seed,
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
        return _run(trainer, start, report, training, begun, look)


def recipe(settings: DataSettings, loop: LoopSettings) -> dict[str, Any]:
    """The settings as JSON values, those of the loop beside the others."""
    of_loop = {field.name: getattr(loop, field.name) for field in dataclasses.fields(LoopSettings)}
    return {**settings.as_json(), **of_loop}


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
    trainer: LearnerTrainer,
    start: Start[S, V],
    report: Report,
    about: Mapping[str, Any],
    begun: Path | None,
    look: str,
) -> Fitted[S, V]:
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
    steps = trainer.state.global_step, trainer.state.max_steps
    value = _best(trainer)
    tokens = trainer.learner.seen_tokens
    return Fitted(
        value, start, history, training, report, seconds, look, stopped, steps, tokens, cause
    )


def _asked_by(error: KeyboardInterrupt) -> str:
    how = "SIGTERM" if isinstance(error, Terminated) else "Ctrl-C"
    return f"interrupted ({how})"


def _check_finite(trainer: LearnerTrainer) -> None:
    """No loss is computed after the last step, so what it left is looked at.

    Raises:
        NotFinite: A parameter is NaN or infinite.
    """
    if not all(bool(torch.isfinite(p).all()) for p in trainer.learner.parameters()):
        raise NotFinite(f"{trainer.learner.noun} became nan or inf in the last step; {REMEDY}")


def _best(trainer: LearnerTrainer) -> Any:
    """The best that evaluation saw, else the one that the parameters stand for now."""
    if trainer.best is not None:
        return trainer.best
    if trainer.evaluated() and trainer.best_path.is_file():
        try:
            return trainer.learner.load(trainer.best_path)
        except ForewordError:
            pass  # damaged: the parameters are next best
    return trainer.learner.value()


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
