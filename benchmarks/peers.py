"""What prefixes are compared with: PEFT's methods and full fine-tuning, by the same Trainer.

Each side is given a backbone, rows and settings, and yields a backbone that has learned the task: a
pair of the (changed) backbone and the prefix to use with it, or None.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    TaskType,
    get_peft_model,
    initialize_kv_prefix_from_text,
)
from torch import Tensor, nn
from transformers import TrainerCallback, set_seed

import foreword
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.methods.base import Learner
from foreword.objectives.base import Batch
from foreword.objectives.supervised import Supervised
from foreword.prefix import Prefix
from foreword.train import TrainSettings, checkpoint
from foreword.train.trainer import LearnerTrainer

Learned = tuple[Backbone, Prefix | None, int]
"""The backbone after training, the prefix to use with it, and how many numbers were trained."""


class Peer(Learner[None]):
    """The trained parameters of a model; the model itself stays beside, as in our own learner."""

    def __init__(self, backbone: Backbone, model: nn.Module) -> None:
        super().__init__(backbone, Supervised())
        self.trained = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
        self._model = (model,)

    def applied(self, batch: Batch) -> AbstractContextManager[None]:
        """The model is changed already."""
        return nullcontext()

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """As a learner, of a model that may stand around the backbone's."""
        model: Any = self._model[0]
        loss, targets = self.objective.loss(model, batch, None, training=self.training)
        return {"loss": loss, "targets": torch.tensor(targets)}

    def value(self) -> None:
        """None: the model holds it."""

    def save(self, value: None, path: Path) -> None:
        """Nothing to write."""

    def load(self, path: Path) -> None:
        """Nothing to read."""


@contextmanager
def lora(
    backbone: Backbone,
    rows: Sequence[Encoded],
    settings: TrainSettings,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    rank: int = 3,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    task: TaskType = TaskType.CAUSAL_LM,
) -> Iterator[Learned]:
    """LoRA on the query and value projections; scale 2 (alpha is twice the rank), no dropout."""
    set_seed(settings.seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(modules),
        task_type=task,
    )
    model = get_peft_model(backbone.model, config)
    try:
        # Attached without a prefix, for the faster attention kernel.
        kernel = backbone.attached(None)
        trained = _train(model, backbone, rows, settings, folder, callbacks, kernel)
        yield backbone, None, trained
    finally:
        model.unload()
        backbone.model.__dict__.pop("peft_config", None)


@contextmanager
def full(
    backbone: Backbone,
    rows: Sequence[Encoded],
    settings: TrainSettings,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> Iterator[Learned]:
    """All of the backbone's weights, in float32, on a copy."""
    set_seed(settings.seed)
    model = copy.deepcopy(backbone.model).float().requires_grad_(True)
    other = Backbone(model, backbone.tokenizer, name=backbone.name)
    trained = _train(model, other, rows, settings, folder, callbacks, nullcontext())
    model.requires_grad_(False)
    yield other, None, trained


@contextmanager
def peft_prefix(
    backbone: Backbone,
    rows: Sequence[Encoded],
    settings: TrainSettings,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    text: str | None = None,
    projection: bool = False,
) -> Iterator[Learned]:
    """PEFT's prefix tuning: from its default noise, or from a text, or through its MLP."""
    set_seed(settings.seed)
    config = PrefixTuningConfig(
        num_virtual_tokens=settings.length or 16,
        prefix_projection=projection,
        encoder_hidden_size=512 if projection else None,  # type: ignore[arg-type]  # PEFT's default
        task_type=TaskType.CAUSAL_LM,
    )
    model = get_peft_model(backbone.model, config)
    if text is not None:
        initialize_kv_prefix_from_text(model, backbone.tokenizer, text=text)
    trained = _train(model, backbone, rows, settings, folder, callbacks, nullcontext())
    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        prefix = foreword.import_peft(place, backbone)
    yield backbone, prefix, trained


def _train(
    model: nn.Module,
    backbone: Backbone,
    rows: Sequence[Encoded],
    settings: TrainSettings,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
    kernel: AbstractContextManager[Any],
) -> int:
    """Train the model's trainable parameters in float32, resuming from the folder; their number."""
    model.eval()  # no dropout, as for the prefix
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    learner = Peer(backbone, model)
    collator = Collator(padding_of(backbone.tokenizer))
    with kernel:
        trainer = LearnerTrainer(
            learner,
            replace(settings, optimizer="adamw"),
            settings.seed,
            folder,
            rows,
            [],
            collator,
            callbacks,
            backbone.device,
        )
        begun: Any = checkpoint.newest(folder)
        trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    return sum(parameter.numel() for parameter in learner.parameters())
