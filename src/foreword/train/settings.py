"""`TrainSettings`: everything that decides what training does."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from foreword.data import Task
from foreword.errors import TrainingError
from foreword.prefix import Positions, WindowPolicy

Init = Literal["text", "noise", "zeros", "vocab"]

NEUTRAL_TEXT = "Read the input below with care and write the output that belongs to it."
"""Start of a prefix whose task is not described."""


@dataclass(frozen=True)
class TrainSettings:
    """What training does. The defaults are the recipe that was measured best so far.

    Raises:
        TrainingError: A number is out of range.
        DataError: A template is ill-formed.
    """

    prompt: str | None = None
    """Template of what the model is given; names columns: "{mr} ->". Without templates, rows hold a
    messages column."""

    target: str | None = None
    """Template of what the model shall say: " {ref}". The end of sequence is added."""

    length: int = 16
    """Prefix length P, in virtual tokens."""

    init: Init = "text"
    """Where the prefix starts: keys and values of a text; small noise; zeros; keys and values of
    random vocabulary tokens."""

    init_text: str | None = None
    """The text to start from: best a description of the task. It is repeated until it fills the
    prefix and cut after P tokens. Default: a neutral sentence."""

    lr: float = 0.03
    """Peak learning rate of AdamW, in units of each layer's own key and value size (RMS)."""

    epochs: float = 3.0
    """Passes over the data, unless steps is given."""

    steps: int | None = None
    """Optimiser steps, instead of epochs."""

    batch_size: int = 8
    """Rows in one forward pass."""

    accumulate: int = 1
    """Forward passes per optimiser step."""

    warmup: float = 0.1
    """Share of the steps over which the learning rate rises to its peak; then it falls to zero."""

    early_stop: int | None = None
    """Stop after so many evaluations without a better one. Needs evaluation data."""

    checkpoint_every: int = 50
    """Steps between checkpoints, and between evaluations where there is evaluation data."""

    max_length: int | None = None
    """Most tokens of prompt and target together; default: the backbone's context less P."""

    gradient_checkpointing: bool = False
    """Trade time for memory: compute each layer again in the backward pass."""

    positions: Positions | None = None
    """Position policy, free or offset; default: the one under which text is exact on the backbone."""

    windows: WindowPolicy = "visible"
    """Whether sliding windows leave the prefix visible or treat it as text."""

    seed: int = 0
    """Seed of the order of rows, of noise and of vocabulary samples."""

    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    """Where the loss is logged, beside the terminal: tensorboard writes to runs/ in the working
    directory, or to TENSORBOARD_LOGGING_DIR; wandb to the project foreword, or to WANDB_PROJECT."""

    def __post_init__(self) -> None:
        _ = self.task
        for name in ("length", "batch_size", "accumulate", "checkpoint_every"):
            self._at_least(name, 1)
        for name in ("steps", "early_stop", "max_length"):
            if getattr(self, name) is not None:
                self._at_least(name, 1)
        for name in ("lr", "epochs"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be above 0; found {getattr(self, name)}")
        if not 0 <= self.warmup < 1:
            raise TrainingError(f"warmup must be at least 0 and below 1; found {self.warmup}")
        if self.init_text is not None and self.init != "text":
            raise TrainingError(
                f"init_text is only used with init='text'; found init={self.init!r}. Drop one of both"
            )

    def _at_least(self, name: str, least: int) -> None:
        if getattr(self, name) < least:
            raise TrainingError(f"{name} must be at least {least}; found {getattr(self, name)}")

    @property
    def task(self) -> Task:
        """The templates as a `Task`."""
        return Task(self.prompt, self.target)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)
