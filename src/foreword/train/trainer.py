"""transformers' Trainer over a prefix: the backbone is frozen, and checkpoints hold the prefix only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.backbone.attachment import Attachment
from foreword.backbone.bind import bind
from foreword.data import Collator, Encoded
from foreword.data.grouping import GroupedByLength
from foreword.errors import TrainingError
from foreword.files import refused
from foreword.prefix import Prefix
from foreword.train.checkpoint import keep_newest, publish
from foreword.train.dropout import PrefixDropout
from foreword.train.objective import score
from foreword.train.parameterization import Parameterization
from foreword.train.settings import TrainSettings

KEPT_CHECKPOINTS = 2
BEST_FILE = "best.safetensors"
"""The prefix with the lowest evaluation NLL, in the run's folder."""
ASIDE = ".aside"
"""Folder that a checkpoint is written in before it appears."""


class NotFinite(TrainingError):
    """The loss became NaN or infinite."""


class PrefixModule(nn.Module):
    """What the Trainer trains: a parameterisation, and by its side the backbone that it prefixes.

    The backbone is not a submodule, so the state dict, the optimiser and every checkpoint hold the
    parameterisation alone (and how often tokens were dropped), and the backbone stays in evaluation
    mode.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        backbone: Backbone,
        attachment: Attachment,
        dropout: PrefixDropout,
    ) -> None:
        super().__init__()
        self.parameterization = parameterization
        self.dropout = dropout
        self._beside = (backbone, attachment)
        self.seen_rows = 0
        self.seen_tokens = 0

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Summed NLL of the targets of a right-padded batch (B, T), and their number."""
        backbone, attachment = self._beside
        prefix = self.parameterization.materialise()
        bound = bind(prefix, backbone.sites, live=True, kept=self.dropout(prefix.length))
        with attachment.using(bound):
            scores = score(backbone.model, input_ids, attention_mask, labels)
        self.seen_rows += int(input_ids.shape[0])
        self.seen_tokens += int(attention_mask.sum())
        return {"loss": scores.nll_N.sum(), "targets": torch.tensor(len(scores.nll_N))}

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoint the backbone's layers; their dropout stays off, as in evaluation mode."""
        model = self._beside[0].model
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)(*args, **kwargs)
        for layer in model.modules():
            if getattr(layer, "gradient_checkpointing", False):
                layer.training = True

    gradient_checkpointing_enable = activation_checkpointing_enable

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        model = self._beside[0].model
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()
        model.eval()


class PrefixTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with our loss, token-weighted evaluation, and checkpoints written aside.

    Args:
        module: Parameterisation and backbone.
        settings: What training does.
        folder: Where checkpoints go.
        train_rows: Encoded rows.
        eval_rows: Encoded rows to evaluate on, or none.
        callbacks: More callbacks, such as a progress bar.
    """

    def __init__(
        self,
        module: PrefixModule,
        settings: TrainSettings,
        folder: Path,
        train_rows: Sequence[Encoded],
        eval_rows: Sequence[Encoded],
        collator: Collator,
        callbacks: Sequence[TrainerCallback],
        device: torch.device,
    ) -> None:
        self.prefix_module = module
        self.folder = folder
        self.eval_rows = eval_rows
        self.patience = settings.early_stop
        self.grouped = settings.group_by_length
        self.best_path = folder / BEST_FILE
        self.last_good = _copies(module)
        super().__init__(
            model=module,
            args=_arguments(settings, folder, device, evaluated=bool(eval_rows)),
            data_collator=collator,
            train_dataset=train_rows,
            eval_dataset=eval_rows or None,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # our loss is divided by the whole batch's targets

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Rows of like length together, unless the settings say otherwise."""
        if not self.grouped:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        lengths = [len(row.input_ids) for row in self.train_dataset]
        return GroupedByLength(lengths, rows, args.seed)

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
        loss = output["loss"] / targets
        if not bool(torch.isfinite(loss)):
            raise NotFinite(
                f"the loss became {float(loss.detach())} at step {self.state.global_step + 1}; "
                "train again with a lower learning rate (--lr) or in float32 (--dtype float32)"
            )
        if model.training:
            self.last_good = _copies(self.prefix_module)
        return (loss, output) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """NLL per target token over the evaluation rows."""
        nll = mean_nll(self.prefix_module, self.eval_rows, self.data_collator, self.args)
        metrics = {"eval_loss": nll}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        losses = self.evaluated()
        since_best = len(losses) - 1 - losses.index(min(losses))
        if since_best == 0:
            prefix_file.save(
                detached(self.prefix_module.parameterization.materialise()), self.best_path
            )
        if self.patience is not None and since_best >= self.patience:
            self.control.should_training_stop = True
        return metrics

    def evaluated(self) -> list[float]:
        """NLL of every evaluation so far, those before a resumption included."""
        log = self.state.log_history
        return [entry["eval_loss"] for entry in log if "eval_loss" in entry]

    def restore_last_good(self) -> None:
        """Give the parameters the values that they had when the loss was last finite."""
        with torch.no_grad():
            for parameter, good in zip(
                self.prefix_module.parameters(), self.last_good, strict=True
            ):
                parameter.copy_(good)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / ASIDE)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint aside, then make it appear whole."""
        name = f"checkpoint-{self.state.global_step}"
        aside = self.folder / ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        try:
            super()._save_checkpoint(model, trial)
            publish(aside / name, self.folder / name)
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else OSError(str(error))
            raise refused(self.folder / name, cause) from error
        keep_newest(self.folder, KEPT_CHECKPOINTS)


def _copies(module: nn.Module) -> list[Tensor]:
    """The parameters as they are now."""
    return [parameter.detach().clone() for parameter in module.parameters()]


@torch.no_grad()
def mean_nll(
    module: PrefixModule, rows: Sequence[Encoded], collator: Any, args: TrainingArguments
) -> float:
    """NLL per target token over rows, in nats; no virtual token is dropped."""
    total, targets = 0.0, 0
    training = module.training
    module.eval()
    size = args.per_device_eval_batch_size
    for first in range(0, len(rows), size):
        batch = collator(rows[first : first + size])
        output = module(**{name: tensor.to(args.device) for name, tensor in batch.items()})
        total += float(output["loss"])
        targets += int(output["targets"])
    module.train(training)
    return total / targets


def detached(prefix: Prefix) -> Prefix:
    """The prefix as plain float32 tensors on the CPU, without gradients."""
    return Prefix(
        prefix.sites,
        tuple(key.detach().float().cpu().clone() for key in prefix.keys),
        tuple(value.detach().float().cpu().clone() for value in prefix.values),
        prefix.meta,
    )


def _arguments(
    settings: TrainSettings, folder: Path, device: torch.device, *, evaluated: bool
) -> TrainingArguments:
    every = settings.checkpoint_every
    return TrainingArguments(
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
        seed=settings.seed,
        data_seed=settings.seed,
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
    )


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """The Trainer's options for gradient checkpointing, which transformers 5.23 renamed.

    Reentrant checkpointing would find no input that needs a gradient, and give none to the prefix.
    """
    known = TrainingArguments.__dataclass_fields__
    name = "activation" if "activation_checkpointing" in known else "gradient"
    options = {"use_reentrant": False}
    return {f"{name}_checkpointing": wanted, f"{name}_checkpointing_kwargs": options}
