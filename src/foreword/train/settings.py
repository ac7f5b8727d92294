"""`TrainSettings`: everything that decides what training a prefix does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from foreword.errors import TrainingError
from foreword.methods.prefix.settings import PrefixSettings
from foreword.objectives.settings import Settings, check_counts, check_share, check_words
from foreword.train.foreign import knowing_others

Optimizer = Literal["soap", "adamw"]
Reporting = Literal["none", "tensorboard", "wandb"]


_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(Optimizer),
    "report_to": get_args(Reporting),
}


@dataclass(frozen=True, kw_only=True)
class LoopSettings(Settings):
    """What the loop does, whatever it trains.

    Raises:
        TrainingError: A number is out of range, or a word is none of its choices.
    """

    optimizer: Optimizer = "soap"
    """What takes the steps: soap, which is Adam in the axes of the gradients' covariance, or adamw,
    without weight decay."""

    lr: float = 0.06
    """Peak learning rate, in units of each layer's own key and value size (RMS), and of a head's."""

    epochs: float = 3.0
    """Passes over the data, unless steps is given."""

    steps: int | None = None
    """Optimiser steps, instead of epochs."""

    batch_size: int = 8
    """Rows in one forward pass."""

    accumulate: int = 1
    """Forward passes per optimiser step."""

    group_by_length: bool = True
    """Put rows of like length into the same step, so that less time goes into padding."""

    warmup: float = 0.1
    """Share of the steps over which the learning rate rises to its peak; then it falls to zero."""

    early_stop: int | None = None
    """Stop after so many evaluations without a better one. Needs evaluation data."""

    checkpoint_every: int = 50
    """Steps between checkpoints, and between evaluations where there is evaluation data."""

    gradient_checkpointing: bool = False
    """Trade time for memory: compute each layer again in the backward pass."""

    report_to: Reporting = "none"
    """Where the loss is logged, beside the terminal: tensorboard writes to runs/ in the working
    directory, or to TENSORBOARD_LOGGING_DIR; wandb to the project foreword, or to WANDB_PROJECT."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self, _CHOICES)
        check_counts(self, "steps", "early_stop", "batch_size", "accumulate", "checkpoint_every")
        for name in ("lr", "epochs"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be above 0; found {getattr(self, name)}")
        check_share(self, "warmup")

    def check_evaluation(self, *, is_given: bool) -> None:
        """Check that there is evaluation data if the settings need it.

        Raises:
            TrainingError: They do, and there is none.
        """
        if self.early_stop is not None and not is_given:
            raise TrainingError("early_stop needs evaluation data (--eval)")


@knowing_others
@dataclass(frozen=True, kw_only=True)
class TrainSettings(LoopSettings, PrefixSettings):
    """What training does. The defaults are the recipe that was measured best so far.

    Raises:
        TrainingError: A number is out of range, or an argument is named as in another library.
        DataError: A template is ill-formed.
    """
