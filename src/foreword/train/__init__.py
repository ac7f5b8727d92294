"""Training: settings, starts, parameterisations, objective, trainer."""

from foreword.train.run import TrainingStopped, TrainResult, train
from foreword.train.settings import TrainSettings

__all__ = ["TrainResult", "TrainSettings", "TrainingStopped", "train"]
