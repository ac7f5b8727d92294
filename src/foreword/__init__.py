"""Foreword: prefix tuning for transformers.

A prefix is a short run of learned keys and values that a frozen transformer attends to in front of its
input, in every layer.
"""

from typing import TYPE_CHECKING

import foreword.notices  # noqa: F401  (before what it quiets is imported)
from foreword.lazy import offer
from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.arithmetic import concat
    from foreword.backbone import Backbone, OtherWeights, attach, cascade, detach, load
    from foreword.compose import compose
    from foreword.data import Task, read_rows
    from foreword.description import Piece, PrefixMeta, Site
    from foreword.errors import ForewordError
    from foreword.evaluate import Evaluation, LabelEvaluation, evaluate
    from foreword.format import load as load_prefix
    from foreword.format import save as save_prefix
    from foreword.generate import generate
    from foreword.head import Head
    from foreword.hub import pull, push
    from foreword.mixture import Mixture
    from foreword.options import GenerateOptions
    from foreword.peft import NotInPeft, export_peft, import_peft
    from foreword.predict import features, predict
    from foreword.prefix import Prefix
    from foreword.store import PrefixStore
    from foreword.train import (
        Trainable,
        TrainingStopped,
        TrainResult,
        TrainSettings,
        attach_trainable,
        train,
        with_start,
    )

__all__ = [
    "Backbone",
    "Evaluation",
    "ForewordError",
    "GenerateOptions",
    "Head",
    "LabelEvaluation",
    "Mixture",
    "NotInPeft",
    "OtherWeights",
    "Piece",
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
    "cascade",
    "compose",
    "concat",
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
    "with_start",
]

offer(
    __name__,
    {
        "Backbone": "foreword.backbone",
        "Evaluation": "foreword.evaluate",
        "ForewordError": "foreword.errors",
        "GenerateOptions": "foreword.options",
        "Head": "foreword.head",
        "LabelEvaluation": "foreword.evaluate",
        "Mixture": "foreword.mixture",
        "NotInPeft": "foreword.peft",
        "OtherWeights": "foreword.backbone",
        "Piece": "foreword.description",
        "Prefix": "foreword.prefix",
        "PrefixMeta": "foreword.description",
        "PrefixStore": "foreword.store",
        "Site": "foreword.description",
        "Task": "foreword.data",
        "TrainResult": "foreword.train",
        "TrainSettings": "foreword.train",
        "Trainable": "foreword.train",
        "TrainingStopped": "foreword.train",
        "attach": "foreword.backbone",
        "attach_trainable": "foreword.train",
        "cascade": "foreword.backbone",
        "compose": "foreword.compose",
        "concat": "foreword.arithmetic",
        "detach": "foreword.backbone",
        "evaluate": "foreword.evaluate",
        "export_peft": "foreword.peft",
        "features": "foreword.predict",
        "generate": "foreword.generate",
        "import_peft": "foreword.peft",
        "load": "foreword.backbone",
        "load_prefix": "foreword.format:load",
        "predict": "foreword.predict",
        "pull": "foreword.hub",
        "push": "foreword.hub",
        "read_rows": "foreword.data",
        "save_prefix": "foreword.format:save",
        "train": "foreword.train",
        "with_start": "foreword.train",
    },
)
