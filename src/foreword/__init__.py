"""Foreword: prefix tuning for transformers.

A prefix is a short run of learned keys and values that a frozen transformer attends to in front of its
input, in every layer.
"""

import foreword.notices  # noqa: F401  (before what it quiets is imported)

# isort: split
from foreword.backbone import Backbone, OtherWeights, attach, detach, load
from foreword.data import Task, read_rows
from foreword.errors import ForewordError
from foreword.evaluate import Evaluation, LabelEvaluation, evaluate
from foreword.format import load as load_prefix
from foreword.format import save as save_prefix
from foreword.generate import GenerateOptions, generate
from foreword.head import Head
from foreword.hub import pull, push
from foreword.peft import NotInPeft, export_peft, import_peft
from foreword.predict import features, predict
from foreword.prefix import Prefix, PrefixMeta, Site
from foreword.store import PrefixStore
from foreword.train import (
    Trainable,
    TrainingStopped,
    TrainResult,
    TrainSettings,
    attach_trainable,
    train,
)
from foreword.version import __version__

__all__ = [
    "Backbone",
    "Evaluation",
    "ForewordError",
    "GenerateOptions",
    "Head",
    "LabelEvaluation",
    "NotInPeft",
    "OtherWeights",
    "Prefix",
    "PrefixMeta",
    "PrefixStore",
    "Site",
    "Task",
    "TrainResult",
    "TrainSettings",
    "Trainable",
    "TrainingStopped",
    "__version__",
    "attach",
    "attach_trainable",
    "detach",
    "evaluate",
    "export_peft",
    "features",
    "generate",
    "import_peft",
    "load",
    "load_prefix",
    "predict",
    "pull",
    "push",
    "read_rows",
    "save_prefix",
    "train",
]
