"""Settings as PEFT, TRL and transformers call them, and what they are here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from foreword.errors import TrainingError

T = TypeVar("T")

OURS = {
    "learning_rate": "lr",
    "num_virtual_tokens": "length",
    "prefix_length": "length",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "optim": "optimizer",
    "max_seq_length": "max_length",
    "save_steps": "checkpoint_every",
    "eval_steps": "checkpoint_every",
    "early_stopping_patience": "early_stop",
    "task_type": "task",
    "prefix_projection": "parameterization",
    "encoder_hidden_size": "mlp_width",
    "activation_checkpointing": "gradient_checkpointing",
}
"""By another library's name, the setting that says the same or the nearest to it."""


def ours(option: str) -> str | None:
    """The setting that another library's option is here, however it is spelled; None if it is none."""
    return OURS.get(option.partition("=")[0].strip("-[]").replace("-", "_"))


def knowing_others(settings: type[T]) -> type[T]:
    """Let a dataclass say what an argument of another library's name is called here."""
    made: Callable[..., None] = settings.__init__

    @functools.wraps(made)
    def init(self: T, *args: Any, **named: Any) -> None:
        for name in named:
            if own := OURS.get(name):
                raise TrainingError(
                    f"{settings.__name__} has no {name}; it is called {own} here, see its docstring "
                    "for the unit"
                )
        made(self, *args, **named)

    # Fields that are inherited name types of the module that they were written in.
    init.__annotations__ = {**get_type_hints(settings), "return": None}
    settings.__init__ = init  # type: ignore[assignment]
    return settings
