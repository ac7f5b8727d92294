"""Sides of the encoder-decoders' benchmark: the frozen model, a prefix, LoRA and full fine-tuning."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Row, shuffled
from peers import full, lora
from peft import TaskType
from quality import encoded, prefix

from foreword.backbone import Backbone
from foreword.evaluate.run import measured
from foreword.generate import GenerateOptions
from foreword.train import TrainSettings
from foreword.train.initialisation import start

if TYPE_CHECKING:
    from kinds import Set

OPTIONS = GenerateOptions(max_new_tokens=96)
FIGURES = ("nll", "bleu", "chrf", "rouge_l")


def figures(backbone: Backbone, side: str, task: Set, settings: TrainSettings) -> Row:
    """Train a side, and measure it on held-out rows and on others."""
    like = start(backbone, settings)
    began = time.perf_counter()

    def told(of: Backbone, made: Any, trained: int) -> Row:
        found: Row = {"trained": trained, "seconds": round(time.perf_counter() - began)}
        for name, rows in (("held", task.held), ("test", task.test)):
            figures = measured(of, made, like, settings.templates, rows, OPTIONS)
            found |= {f"{name}_{figure}": getattr(figures, figure) for figure in FIGURES}
        return found

    if side == "frozen":
        return told(backbone, None, 0)
    adapted = partial(lora, rank=task.rank, modules=task.modules, task=TaskType.SEQ_2_SEQ_LM)
    sides: dict[str, Any] = {"prefix": prefix, "lora": encoded(adapted), "full": encoded(full)}
    rows = shuffled(task.train)[: (settings.steps or 0) * settings.batch_size]
    with (
        tempfile.TemporaryDirectory() as folder,
        sides[side](backbone, rows, settings, Path(folder), ()) as learned,
    ):
        return told(*learned)
