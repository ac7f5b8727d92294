"""`train`: from rows to a prefix, with everything checked before the long work starts."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded, Encoder, Report, rows_of
from foreword.data.collate import padding_of
from foreword.errors import DataError, ForewordError, StoreError, TrainingError
from foreword.files import write_whole
from foreword.prefix import Prefix, canonical_json
from foreword.store import PrefixStore
from foreword.train import checkpoint
from foreword.train.dropout import PrefixDropout
from foreword.train.initialisation import start
from foreword.train.parameterise import parameterise
from foreword.train.report import LOGS, reporters
from foreword.train.settings import LENGTH, TrainSettings
from foreword.train.trainer import (
    ASIDE,
    BEST_FILE,
    NotFinite,
    PrefixModule,
    PrefixTrainer,
    detached,
)

Rows = str | Sequence[Mapping[str, Any]]
"""A source as `read_rows` takes it, or the rows themselves."""

RUN_FILE = "run.json"


@dataclass(frozen=True)
class TrainResult:
    """What training gave.

    Attributes:
        prefix: The trained prefix, the best one where there was evaluation data; float32, on the CPU.
        history: One entry per step: ``step``, ``loss`` (NLL per target token, nats), or ``eval_loss``.
        seconds: Wall time of the training loop.
        report: What encoding the rows cut.
        stopped: Why training ended early, or None.
    """

    prefix: Prefix
    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    report: Report
    stopped: str | None = None


class TrainingStopped(TrainingError):
    """Training ended before its time; ``result`` holds the best prefix so far."""

    def __init__(self, message: str, result: TrainResult) -> None:
        super().__init__(message)
        self.result = result


def train(
    backbone: Backbone,
    data: Rows,
    settings: TrainSettings,
    *,
    evaluation: Rows | None = None,
    folder: Path | None = None,
    resume: bool = False,
    logs: Path = LOGS,
    callbacks: Sequence[TrainerCallback] = (),
    store: PrefixStore | None = None,
) -> TrainResult:
    """Train a prefix on a task's rows; the backbone stays frozen.

    Args:
        backbone: The backbone, left as it was found.
        data: Rows, or where to read them.
        settings: The recipe; ``TrainSettings(prompt=..., target=...)`` at the least.
        evaluation: Rows to choose the best prefix by, never trained on.
        folder: Where checkpoints go, so that a killed run can be resumed; a temporary one by default.
        resume: Go on from the folder's newest whole checkpoint, or start if there is none.
        logs: Where TensorBoard's files go, if the settings ask for them; the last part names the run
            on Weights & Biases.
        callbacks: Callbacks of transformers' Trainer.
        store: Where a prefix that ``settings.init`` names is looked up; by default the user's store.

    Returns:
        The prefix and how training went.

    Raises:
        DataError: Rows, columns, templates or lengths are wrong; before training starts.
        TrainingError: Nothing fits the settings, or the run to resume was another one.
        TrainingStopped: The loss became NaN, the disk is full, or Ctrl-C; carries the best so far.

    Examples:
        >>> settings = TrainSettings(prompt="{mr} ->", target=" {ref}")
        >>> result = train(backbone, "foreword/e2e:train", settings)  # doctest: +SKIP
    """
    if settings.early_stop is not None and evaluation is None:
        raise TrainingError("early_stop needs evaluation data (--eval)")
    with ExitStack() as stack:
        callbacks = [*callbacks, *reporters(settings, logs, stack)]
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foreword-")))
        set_seed(settings.seed)
        data = rows_of(data)
        first = start(backbone, settings, data, store)
        settings = _resolved(settings, first)
        train_rows, report = encode(backbone, data, settings, first)
        eval_rows = encode(backbone, evaluation, settings, first)[0] if evaluation else []
        digest = rows_digest(train_rows)
        parameterization = parameterise(backbone, first, settings)
        trained = sum(parameter.numel() for parameter in parameterization.parameters())
        begun = _prepare(folder, first, settings, digest, trained, resume=resume)
        attachment = stack.enter_context(backbone.attached(None))
        dropout = PrefixDropout(settings.dropout, settings.frozen, settings.seed)
        module = PrefixModule(parameterization, backbone, attachment, dropout)
        module.to(backbone.device)
        if settings.gradient_checkpointing:
            stack.callback(module.activation_checkpointing_disable)
        trainer = PrefixTrainer(
            module,
            settings,
            folder,
            train_rows,
            eval_rows,
            Collator(padding_of(backbone.tokenizer)),
            callbacks,
            backbone.device,
        )
        training = {
            "data": digest,
            "rows": report.rows,
            "truncated_rows": report.truncated_rows,
            "backbone_parameters": backbone.parameters,
            "quantization": backbone.quantization,
            "trained_parameters": trained,
        }
        return _run(trainer, settings, report, training, begun)


def encode(
    backbone: Backbone, data: Rows, settings: TrainSettings, prefix: Prefix
) -> tuple[list[Encoded], Report]:
    """Rows as token ids for a prefix of this backbone.

    Raises:
        DataError: There are no rows, or one cannot be used.
    """
    rows = rows_of(data)
    if backbone.tokenizer is None:
        raise DataError("this backbone has no tokenizer, so texts cannot be encoded")
    context = backbone.context - prefix.length
    limit = min(context, settings.max_length or context)
    if limit < 2:
        raise DataError(
            f"a prefix of {prefix.length} leaves {limit} of the backbone's {backbone.context} tokens "
            "for text; use a shorter one"
        )
    encoder = Encoder(backbone.tokenizer, settings.task, bos=prefix.meta.bos, limit=limit)
    return encoder.rows(rows)


def rows_digest(rows: Sequence[Encoded]) -> str:
    """SHA-256 of the rows' token ids and labels, in order."""
    total = hashlib.sha256()
    for row in rows:
        total.update(repr((row.input_ids, row.labels)).encode())
    return total.hexdigest()


def _resolved(settings: TrainSettings, first: Prefix) -> TrainSettings:
    """The settings with the length that the start decided, so that the recipe says it."""
    length = first.length if settings.starts_from_prefix else LENGTH
    return replace(settings, length=settings.length or length)


def _prepare(
    folder: Path, first: Prefix, settings: TrainSettings, digest: str, trained: int, *, resume: bool
) -> Path | None:
    """Make the run's folder, and find the checkpoint to resume from.

    What cannot be known later is refused now: no room on the disk, or another run's checkpoints.
    """
    run = {"settings": settings.as_json(), "data": digest, "start": first.digest}
    file = folder / RUN_FILE
    if resume and file.is_file():
        try:
            earlier = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"cannot read {file}: {error}; start anew without --resume"
            ) from error
        _refuse_other_run(earlier, run)
    else:
        _clear(folder)
    write_whole(file, canonical_json(run))
    needed = 12 * max(first.parameters, trained) * 4
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{folder} has {free} bytes free; checkpoints of this prefix need {needed}. Free some "
            "space or choose another folder"
        )
    return checkpoint.newest(folder) if resume else None


def _clear(folder: Path) -> None:
    """Remove what an earlier run left in its folder, and nothing else.

    Raises:
        TrainingError: The folder holds something, but no run of ours.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    file = folder / RUN_FILE
    if not file.is_file():
        raise TrainingError(
            f"{folder} is not empty and holds no earlier run; choose another folder for checkpoints"
        )
    checkpoint.keep_newest(folder, 0)
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    (folder / BEST_FILE).unlink(missing_ok=True)


def _refuse_other_run(earlier: Any, run: Mapping[str, Any]) -> None:
    before = earlier.get("settings", {}) if isinstance(earlier, dict) else {}
    for name, value in run["settings"].items():
        if before.get(name) != value:
            raise TrainingError(
                f"the run to resume had {name}={before.get(name)!r}, now it is {value!r}; give the "
                "same settings, or start anew without --resume"
            )
    for name, what in (("data", "rows"), ("start", "start of the prefix (or another backbone)")):
        if earlier.get(name) != run[name]:
            raise TrainingError(f"the run to resume had other {what}; start anew without --resume")


def _run(
    trainer: PrefixTrainer,
    settings: TrainSettings,
    report: Report,
    about: Mapping[str, Any],
    begun: Path | None,
) -> TrainResult:
    began = time.perf_counter()
    stopped: str | None = None
    cause: BaseException | None = None
    try:
        trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    except KeyboardInterrupt as error:
        stopped, cause = "interrupted (Ctrl-C)", error
    except NotFinite as error:
        stopped, cause = str(error), error
        trainer.restore_last_good()
    except StoreError as error:
        stopped, cause = str(error), error
    seconds = time.perf_counter() - began
    history = [
        {name: float(entry[name]) for name in ("step", "loss", "eval_loss") if name in entry}
        for entry in trainer.state.log_history
        if "loss" in entry or "eval_loss" in entry
    ]
    prefix = _best(trainer)
    training = {
        **about,
        "steps": trainer.state.global_step,
        "seconds": round(seconds, 3),
        "best_eval_nll": _finite(min(trainer.evaluated(), default=math.nan)),
        "final_loss": _finite(
            next((e["loss"] for e in reversed(history) if "loss" in e), math.nan)
        ),
        "stopped": stopped,
    }
    result = TrainResult(
        prefix.with_meta(recipe={"method": "prefix", **settings.as_json()}, training=training),
        history,
        seconds,
        report,
        stopped,
    )
    if cause is not None:
        done = f"after {trainer.state.global_step} of {trainer.state.max_steps} steps"
        raise TrainingStopped(f"training stopped {done}: {stopped}", result) from cause
    return result


def _best(trainer: PrefixTrainer) -> Prefix:
    """The best prefix that evaluation saw, else the one that the parameters stand for now."""
    if trainer.evaluated() and trainer.best_path.is_file():
        try:
            return prefix_file.load(trainer.best_path)
        except ForewordError:
            pass  # damaged: the parameters are next best
    return detached(trainer.prefix_module.parameterization.materialise())


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
