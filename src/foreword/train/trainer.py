"""transformers' Trainer over what a method trains, which is all that checkpoints hold."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from safetensors.torch import save as tensors_as_bytes
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from foreword.data import Collator, Encoded
from foreword.data.grouping import GroupedByLength
from foreword.errors import StoreError, TrainingError, first_line
from foreword.files import refused
from foreword.methods.base import Learner
from foreword.train.checkpoint import IDENTITY, keep_newest, newest, publish
from foreword.train.ranks import Ranks
from foreword.train.settings import LoopSettings
from foreword.train.shares import BLANK, FilledUp, batches
from foreword.train.soap import SOAP

KEPT_CHECKPOINTS = 2
BEST_FILE = "best.safetensors"
"""What had the lowest evaluation NLL, in the run's folder."""
ASIDE = ".aside"
"""Folder that a checkpoint is written in before it appears."""


COPIED = 2**26
"""Numbers of which a copy is taken before every step: whole models take too long."""
NEXT_TO_NOTHING = 2**16
"""Bytes left on a disk that is full: too few for what torch writes at once."""
REMEDY = "train again with a lower learning rate (--lr) or in float32 (--dtype float32)"


class NotFinite(TrainingError):
    """The loss became NaN or infinite."""


class LearnerTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with our loss, token-weighted evaluation, and checkpoints written aside.

    Args:
        learner: What is trained, and its backbone.
        settings: What the loop does.
        seed: Seed of the order of rows.
        folder: Where checkpoints go.
        train_rows: Encoded rows.
        eval_rows: Encoded rows to evaluate on, or none.
        collator: Makes a batch of rows.
        callbacks: More callbacks, such as a progress bar.
        device: Where to train.
        ranks: The processes that train together; by default those that a launcher started.
        identity: What every checkpoint carries to say whose it is, or None.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        learner: Learner[Any],
        settings: LoopSettings,
        seed: int,
        folder: Path,
        train_rows: Sequence[Encoded],
        eval_rows: Sequence[Encoded],
        collator: Collator,
        callbacks: Sequence[TrainerCallback],
        device: torch.device,
        ranks: Ranks | None = None,
        identity: str | None = None,
    ) -> None:
        self.learner = learner
        self.ranks = ranks or Ranks(device)
        self.folder = folder
        self.identity = identity
        self.eval_rows = eval_rows
        self.patience = settings.early_stop
        self.optimizer_name = settings.optimizer
        self.grouped = settings.group_by_length
        self.best_path = folder / BEST_FILE
        self.best: Any = None
        self.rows = train_rows
        self.last_good = _copies(learner)
        super().__init__(
            model=learner,
            args=_arguments(
                settings,
                seed,
                folder,
                device,
                evaluated=bool(eval_rows),
                partly_used=learner.partly_used,
            ),
            data_collator=collator,
            train_dataset=train_rows if self.ranks.count == 1 else [*train_rows, BLANK],
            eval_dataset=eval_rows or None,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # our loss is divided by the whole batch's targets

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of like length together, unless the settings say otherwise; equal shares for all."""
        args, count = self.args, self.ranks.count
        at_once = args.train_batch_size * count
        order: Any
        if self.grouped:
            lengths = [self.learner.objective.length(row) for row in self.rows]
            order = GroupedByLength(lengths, at_once * args.gradient_accumulation_steps, args.seed)
        elif count == 1:
            return super()._get_train_sampler(train_dataset)
        else:
            order = SeedableRandomSampler(self.rows, data_seed=args.data_seed)
        return order if count == 1 else FilledUp(order, at_once, blank=len(self.rows))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """SOAP, or the Trainer's own AdamW."""
        if self.optimizer is None and self.optimizer_name == "soap":
            parameters, matrices = self.learner.parameters(), self.learner.turns_matrices
            self.optimizer = SOAP(parameters, lr=self.args.learning_rate, matrices=matrices)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean NLL per target token of the step, over all its accumulated batches."""
        output = model(**inputs)
        targets = output["targets"] if num_items_in_batch is None else num_items_in_batch
        loss = output["loss"] / targets * self.ranks.count  # which the mean of all gradients undoes
        if self.ranks.any(not bool(torch.isfinite(loss))):
            raise NotFinite(
                f"the loss became {_figure(loss)} at step {self.state.global_step + 1}; {REMEDY}"
            )
        if model.training and self.last_good:
            self.last_good = _copies(self.learner)
        return (loss, output) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """NLL per target token over the evaluation rows."""
        nll = mean_nll(self.learner, self.eval_rows, self.data_collator, self.args, self.ranks)
        if not math.isfinite(nll):
            raise NotFinite(
                f"the NLL of the evaluation rows became {nll} after step {self.state.global_step}; "
                f"{REMEDY}"
            )
        metrics = {"eval_loss": nll}
        if nll < min(self.evaluated(), default=math.inf):
            self.best = self.learner.value()
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        if self._since_best() == 0 and self.best is not None:
            best = self.best
            self.ranks.first_does(lambda: self.learner.save(best, self.best_path))
        if self._is_patience_over():
            self.control.should_training_stop = True
        return metrics

    def _since_best(self) -> int:
        """Evaluations since the best one."""
        losses = self.evaluated()
        return len(losses) - 1 - losses.index(min(losses))

    def _is_patience_over(self) -> bool:
        if self.patience is None or not self.evaluated():
            return False
        return self._since_best() >= self.patience

    def is_complete(self, checkpoint: Path) -> bool:
        """Whether training had ended when a checkpoint was written; if so, it is loaded.

        The Trainer would go on from it: it looks whether it is done after each step only.
        """
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if self.state.global_step < self.state.max_steps and not self._is_patience_over():
            return False
        self._load_from_checkpoint(str(checkpoint))
        return True

    def evaluated(self) -> list[float]:
        """NLL of every evaluation so far, those before a resumption included."""
        log = self.state.log_history
        return [entry["eval_loss"] for entry in log if "eval_loss" in entry]

    def restore_last_good(self) -> None:
        """Give the parameters the values that they had when the loss was last finite.

        Of whole models no copy is taken; they are as the newest checkpoint has them, if there is one.
        """
        if not self.last_good:
            checkpoint = newest(self.folder)
            if checkpoint is not None:
                self._load_from_checkpoint(str(checkpoint))
            return
        with torch.no_grad():
            for parameter, good in zip(self.learner.parameters(), self.last_good, strict=True):
                parameter.copy_(good)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / ASIDE)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, then make it appear whole; all processes write their part.

        Raises:
            StoreError: The disk refused. What was written of it is gone again.
        """
        name = f"checkpoint-{self.state.global_step}"
        aside = self.folder / ASIDE
        begin, write = self._clear_aside, super()._save_checkpoint
        try:
            self.ranks.first_does(begin)
            self.ranks.all_do(lambda: _refusing(lambda: write(model, trial), self.folder / name))
            self.ranks.first_does(
                lambda: _refusing(lambda: self._publish(aside / name), self.folder / name)
            )
        except StoreError:
            self.ranks.first_does(self._make_room)
            raise

    def _make_room(self) -> None:
        """Leave no more than resuming needs, so that the prefix itself can be kept."""
        self._clear_aside()
        keep_newest(self.folder, 1)

    def _clear_aside(self) -> None:
        shutil.rmtree(self.folder / ASIDE, ignore_errors=True)

    def _publish(self, written: Path) -> None:
        states = len(list(written.glob("rng_state*.pth")))
        if states != self.ranks.count:
            raise TrainingError(
                f"{written} has the random states of {states} of {self.ranks.count} processes; "
                "checkpoints must be in a folder that all nodes share"
            )
        if self.identity is not None:
            (written / IDENTITY).write_text(self.identity, encoding="utf-8")
        publish(written, self.folder / written.name)
        self._clear_aside()
        keep_newest(self.folder, KEPT_CHECKPOINTS)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write what is trained; Python's own writing says so when a disk is full."""
        if not self.args.should_save:
            return
        assert output_dir is not None
        os.makedirs(output_dir, exist_ok=True)
        tensors = state_dict or self.learner.state_dict()
        content = tensors_as_bytes(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"}
        )
        Path(output_dir, SAFE_WEIGHTS_NAME).write_bytes(content)


def _refusing(action: Callable[[], None], place: Path) -> None:
    """Do what writes to a disk; torch says RuntimeError where others say OSError."""
    try:
        action()
    except (OSError, RuntimeError) as error:
        raise refused(place, _cause(error, place.parent)) from error


def _cause(error: OSError | RuntimeError, folder: Path) -> OSError:
    """What the system said; torch's own writer does not say that a disk is full."""
    if isinstance(error, OSError):
        return error
    full = shutil.disk_usage(folder).free < NEXT_TO_NOTHING
    return OSError(errno.ENOSPC, "full") if full else OSError(first_line(error))


def _figure(loss: Tensor) -> str:
    """A loss that is not finite, in words; on a process where it is, another's is not."""
    return f"{float(loss.detach())}" if not torch.isfinite(loss) else "nan or inf"


def _copies(module: nn.Module) -> list[Tensor]:
    """The parameters as they are now; nothing of more than `COPIED` numbers."""
    if sum(parameter.numel() for parameter in module.parameters()) > COPIED:
        return []
    return [parameter.detach().clone() for parameter in module.parameters()]


@torch.no_grad()
def mean_nll(
    learner: Learner[Any],
    rows: Sequence[Encoded],
    collator: Any,
    args: TrainingArguments,
    ranks: Ranks,
) -> float:
    """NLL per target token over rows, in nats; no virtual token is dropped.

    Each process takes its share, and all get the same result.
    """
    total, targets = 0.0, 0
    training = learner.training
    learner.eval()
    for mine in batches(rows, args.per_device_eval_batch_size, ranks.index, ranks.count):
        batch = collator(mine)
        output = learner(**{name: tensor.to(args.device) for name, tensor in batch.items()})
        total += float(output["loss"])
        targets += int(output["targets"])
    learner.train(training)
    shares = ranks.gathered((total, targets))
    return sum(nll for nll, _ in shares) / sum(number for _, number in shares)


def _arguments(
    settings: LoopSettings,
    seed: int,
    folder: Path,
    device: torch.device,
    *,
    evaluated: bool,
    partly_used: bool,
) -> TrainingArguments:
    every = settings.checkpoint_every
    made = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        weight_decay=0.0,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        seed=seed,
        data_seed=seed,
        **_checkpointing(settings.gradient_checkpointing),
        save_strategy="steps",
        save_steps=every,
        eval_strategy="steps" if evaluated else "no",
        eval_steps=every,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
        average_tokens_across_devices=True,
        ddp_find_unused_parameters=partly_used,
    )
    made._n_gpu = min(1, made.n_gpu)  # not DataParallel: one process uses one device
    if made.device.type == "cpu":
        # Not cpu:0, as each process calls it: transformers 5.16 asks torch to load states onto that.
        made.__dict__["_setup_devices"] = torch.device("cpu")
    return made


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """The Trainer's options for gradient checkpointing, which transformers 5.23 renamed.

    Reentrant checkpointing would find no input that needs a gradient, and give none to the prefix.
    """
    known = TrainingArguments.__dataclass_fields__
    name = "activation" if "activation_checkpointing" in known else "gradient"
    options = {"use_reentrant": False}
    return {f"{name}_checkpointing": wanted, f"{name}_checkpointing_kwargs": options}
