"""Training: the loop, its settings, its folder, the processes that share it."""

from typing import TYPE_CHECKING

from foreword.lazy import offer

if TYPE_CHECKING:
    from foreword.methods.prefix.trainable import Trainable, attach_trainable
    from foreword.train.begun import with_start
    from foreword.train.run import TrainingStopped, TrainResult, train
    from foreword.train.settings import TrainSettings

__all__ = [
    "TrainResult",
    "TrainSettings",
    "Trainable",
    "TrainingStopped",
    "attach_trainable",
    "train",
    "with_start",
]

offer(
    __name__,
    {
        "TrainResult": "foreword.train.run",
        "TrainSettings": "foreword.train.settings",
        "Trainable": "foreword.methods.prefix.trainable",
        "TrainingStopped": "foreword.train.run",
        "attach_trainable": "foreword.methods.prefix.trainable",
        "train": "foreword.train.run",
        "with_start": "foreword.train.begun",
    },
)
