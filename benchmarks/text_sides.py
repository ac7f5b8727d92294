"""Sides of the encoder-decoders' benchmark: the frozen model, a prefix, LoRA and full fine-tuning."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import Row, shuffled
from peers import full, lora
from peft import TaskType
from quality import encoded, prefix

from foreword.backbone import Backbone
from foreword.evaluate.run import measured
from foreword.methods.prefix.start import start
from foreword.options import GenerateOptions
from foreword.train import TrainSettings

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


class LongestPieces:
    """Splits text into the longest pieces that a vocabulary has, from its left.

    Args:
        pieces: The vocabulary, in which a word begins with a low line (U+2581).
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces = set(pieces)
        self.longest = max(map(len, self.pieces))

    def encode(self, text: str, out_type: type = str) -> list[str]:
        """The pieces; a character that is none is one all the same."""
        left, found = "\u2581" + "\u2581".join(text.split()), []
        while left:
            sizes = range(min(self.longest, len(left)), 1, -1)
            size = next((size for size in sizes if left[:size] in self.pieces), 1)
            found.append(left[:size])
            left = left[size:]
        return found


def mend_targets(backbone: Backbone) -> None:
    """Let a Marian tokenizer split targets by its vocabulary.

    The package that the copy of opus-mt-zh-en comes from has the source's SentencePiece model alone,
    which splits English into syllables that the model never writes.
    """
    tokenizer: Any = backbone.tokenizer
    tokenizer.spm_target = LongestPieces(tokenizer.get_vocab())
