"""Sides of the encoders' benchmark: a head alone, a prefix, LoRA and full fine-tuning, each with a head.

All train by the same Trainer on the same rows, without dropout. A head starts at zero. Beside a LoRA
or a whole model it moves by the steps of Foreword's default rate, whatever the rate of the rest is.
"""

from __future__ import annotations

import copy
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from common import Row
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import set_seed

import foreword
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.evaluate.labels import labelled, measured_labels
from foreword.head import Head
from foreword.methods.base import Learner
from foreword.methods.heads import scale_of
from foreword.methods.prefix.headed import with_head
from foreword.methods.prefix.start import start
from foreword.objectives.base import Batch
from foreword.objectives.encode import encode
from foreword.objectives.supervised import Supervised
from foreword.objectives.task import for_task
from foreword.prefix import Prefix
from foreword.train import TrainSettings
from foreword.train.trainer import LearnerTrainer

if TYPE_CHECKING:
    from kinds import Set

RATE = TrainSettings().lr
"""What a head beside LoRA or a whole model moves by."""


class Headed(Learner[Head]):
    """A head and what else of a model is trained; the model itself stays beside.

    Args:
        backbone: The backbone with the model.
        head: Where the head starts.
        scale: Size of a natural step of a weight, at the default rate.
        moved: What the head's steps are multiplied by, so that the rest's rate does not change them.
    """

    def __init__(self, backbone: Backbone, head: Head, scale: float, moved: float) -> None:
        super().__init__(backbone, Supervised(headed=True))
        trained = (p for p in backbone.model.parameters() if p.requires_grad)
        self.trained = nn.ParameterList(trained)
        self.weight, self.bias = (nn.Parameter(torch.zeros_like(t)) for t in head.tensors)
        self.scales = (scale * moved, moved)
        self._head = (head,)

    @property
    def head(self) -> Head:
        """The head as it is now."""
        weight, bias = self.scales
        return self._head[0].made_of(self.weight * weight, self.bias * bias)

    def applied(self, batch: Batch) -> AbstractContextManager[Head]:
        """The model is changed already."""
        return nullcontext(self.head)

    def value(self) -> Head:
        """The head."""
        return self.head

    def save(self, value: Head, path: Path) -> None:
        """Nothing to write."""

    def load(self, path: Path) -> Head:
        """Nothing to read."""
        return self.head


def figures(backbone: Backbone, side: str, task: Set, settings: TrainSettings) -> Row:
    """Train a side, and measure it on held-out rows and on others."""
    began = time.perf_counter()
    found = _figures(backbone, side, task, settings)
    return {**found, "seconds": round(time.perf_counter() - began)}


def _figures(backbone: Backbone, side: str, task: Set, settings: TrainSettings) -> Row:
    rows, tests = task.train, {"held": task.held, "test": task.test}
    if side == "prefix":
        prefix = foreword.train(backbone, rows, settings).prefix
        return _measured(backbone, prefix, prefix, tests, prefix.parameters)
    settings = for_task(backbone, settings, rows)
    like = with_head(backbone, start(backbone, settings), settings, rows)
    like = like.with_meta(recipe=settings.as_json())  # which has the templates
    encoded = encode(backbone, rows, settings, like)[0]
    set_seed(settings.seed)
    model: Any = backbone.model
    of = backbone
    if side == "lora":
        config = LoraConfig(
            r=task.rank, lora_alpha=2 * task.rank, target_modules=list(task.modules)
        )
        model = get_peft_model(backbone.model, config).get_base_model()
    elif side == "full":
        model = copy.deepcopy(backbone.model).float().requires_grad_(True)
        of = Backbone(model, backbone.tokenizer, name=backbone.name)
    try:
        module = _trained(model, of, encoded, settings, like)
        learned = like.with_head(module.head)
        count = sum(parameter.numel() for parameter in module.parameters())
        return _measured(of, None, learned, tests, count)
    finally:
        if side == "lora":
            _unload(backbone)


def _trained(
    model: nn.Module,
    backbone: Backbone,
    rows: list[Encoded],
    settings: TrainSettings,
    like: Prefix,
) -> Headed:
    model.eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    assert like.head is not None
    alone = not any(parameter.requires_grad for parameter in model.parameters())
    moved = 1.0 if alone else RATE / settings.lr
    module = Headed(backbone, like.head, scale_of(backbone, like, rows), moved)
    with tempfile.TemporaryDirectory() as folder, backbone.attached(None):
        LearnerTrainer(
            module,
            replace(settings, optimizer="adamw", checkpoint_every=10**6),
            settings.seed,
            Path(folder),
            rows,
            [],
            Collator(padding_of(backbone.tokenizer)),
            (),
            backbone.device,
        ).train()
    return module


@torch.no_grad()
def _measured(
    backbone: Backbone,
    prefix: Prefix | None,
    like: Prefix,
    tests: dict[str, list[Row]],
    count: int,
) -> Row:
    assert like.head is not None
    found: Row = {"trained": count}
    for name, rows in tests.items():
        seen = labelled(backbone, like, rows)
        told = measured_labels(backbone, prefix, like.head, seen)[1]
        found |= {f"{name}_{figure}": value for figure, value in told.items()}
    return found


def _unload(backbone: Backbone) -> None:
    """Take LoRA's layers out again."""
    for name, module in list(backbone.model.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "lora_A"):
            parent, _, child = name.rpartition(".")
            setattr(backbone.model.get_submodule(parent), child, module.base_layer)
    backbone.model.__dict__.pop("peft_config", None)
    backbone.model.requires_grad_(False)
