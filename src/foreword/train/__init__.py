"""Training: settings, starts, parameterisations, objective, trainer."""

from foreword.train.run import TrainingStopped, TrainResult, train
from foreword.train.settings import TrainSettings
from foreword.train.trainable import Trainable, attach_trainable

__all__ = [
    "TrainResult",
    "TrainSettings",
    "Trainable",
    "TrainingStopped",
    "attach_trainable",
    "train",
]
