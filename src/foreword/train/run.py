"""`train`: from rows to a prefix, with everything checked before the long work starts."""

from __future__ import annotations

import hashlib
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
from foreword.backbone.kinds.base import IGNORED
from foreword.data import Collator, Encoded, Report, rows_of
from foreword.data.collate import padding_of
from foreword.data.given import Data
from foreword.data.references import one_each
from foreword.data.room import LONGEST, Room
from foreword.data.seq2seq import encoder_of
from foreword.data.written import SPECIAL, specials_of
from foreword.errors import DataError, ForewordError, StoreError, TrainingError, first_line
from foreword.head import HEAD_TASKS
from foreword.interrupt import Terminated
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from foreword.tasks import LABELLINGS, Labelled, reader_for
from foreword.train.class_weights import class_weights
from foreword.train.dropout import PrefixDropout
from foreword.train.first_look import check_labels, first_look, warn_of_doubts
from foreword.train.folder import prepare, temporary
from foreword.train.headed import with_head
from foreword.train.initialisation import start
from foreword.train.lock import together_in
from foreword.train.parameterise import parameterise
from foreword.train.ranks import Ranks
from foreword.train.report import LOGS, reporters
from foreword.train.settings import LENGTH, TrainSettings
from foreword.train.summary import last_and_best
from foreword.train.task import for_task
from foreword.train.trainer import REMEDY, NotFinite, PrefixModule, PrefixTrainer, detached
from foreword.train.unseen import tell_of_unseen, unseen_in

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
        _room(backbone, settings, settings.length or 1)
        first = with_head(backbone, start(backbone, settings, rows, store), settings, rows)
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
            **_targets(backbone, settings, train_rows),
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


def spread(rows: list[Mapping[str, Any]], settings: TrainSettings) -> list[Mapping[str, Any]]:
    """Rows of text with one reference each, other rows as they are."""
    return rows if settings.task in HEAD_TASKS else one_each(rows, settings.templates)


def encode(
    backbone: Backbone, data: Data, settings: TrainSettings, prefix: Prefix
) -> tuple[list[Encoded], Report]:
    """Rows as token ids for a prefix of this backbone, with the labels of its head if it has one.

    Raises:
        DataError: There are no rows, or one cannot be used.
    """
    rows = rows_of(data)
    room = _room(backbone, settings, prefix.length)
    if prefix.head is not None:
        seen = _labelled(backbone, rows, settings, prefix, prefix.head.labels)
        return seen.encoded, seen.report
    return encoder_of(backbone, settings.templates, prefix.meta.bos, room).rows(rows)


def encode_evaluation(
    backbone: Backbone, data: Data, settings: TrainSettings, prefix: Prefix
) -> list[Encoded]:
    """As `encode`, without the rows that have a label which the prefix's head does not know.

    Raises:
        DataError: There are no others, or one cannot be used.

    Warns:
        DoubtfulData: There are such rows.
    """
    head, rows = prefix.head, rows_of(data)
    if head is None:
        return encode(backbone, spread(rows, settings), settings, prefix)[0]
    unseen = unseen_in(head, settings.templates, rows)
    tell_of_unseen(unseen, head, len(rows))
    labels = (*head.labels, *unseen.counts)
    return unseen.left(_labelled(backbone, rows, settings, prefix, labels), head).encoded


def _labelled(
    backbone: Backbone,
    rows: Sequence[Mapping[str, Any]],
    settings: TrainSettings,
    prefix: Prefix,
    labels: tuple[str, ...],
) -> Labelled:
    """Rows as the head of a prefix sees them, if it had these labels."""
    assert settings.task in HEAD_TASKS
    room = _room(backbone, settings, prefix.length)
    reader = reader_for(backbone, prefix.meta.bos, room.limit)
    return LABELLINGS[settings.task].labelled(reader, settings.templates, labels, rows)


def _room(backbone: Backbone, settings: TrainSettings, length: int) -> Room:
    """Room for text beside a prefix of a length.

    Raises:
        DataError: There is none.
    """
    room = Room(backbone.context - length, settings.max_length)
    if room.limit < 2:
        raise DataError(
            f"a prefix of {length} leaves {room.limit} of the backbone's {backbone.context} tokens for "
            "text; use a shorter one"
        )
    return room


def _targets(
    backbone: Backbone, settings: TrainSettings, rows: Sequence[Encoded]
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
    """SHA-256 of the rows' token ids and labels, and their token types if they have any, in order."""
    total = hashlib.sha256()
    for row in rows:
        own = () if row.types is None else (row.types,)
        total.update(repr((row.input_ids, row.labels, *own)).encode())
    return total.hexdigest()


def _resolved(settings: TrainSettings, first: Prefix) -> TrainSettings:
    """The settings with the length that the start decided, so that the recipe says it."""
    length = first.length if settings.starts_from_prefix else LENGTH
    return replace(settings, length=settings.length or length)


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
