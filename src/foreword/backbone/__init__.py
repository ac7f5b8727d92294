"""Backbones: loading, probing, attaching."""

from foreword.backbone.backbone import Backbone, OtherWeights, attach, detach
from foreword.backbone.load import describe_dtype, load

__all__ = ["Backbone", "OtherWeights", "attach", "describe_dtype", "detach", "load"]
