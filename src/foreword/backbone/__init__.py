"""Backbones: loading, probing, attaching."""

from foreword.backbone.attach import attach, detach
from foreword.backbone.backbone import Backbone
from foreword.backbone.cascade import cascade
from foreword.backbone.fit import OtherWeights
from foreword.backbone.load import UnverifiedFamily, describe_dtype, load, verified_families

__all__ = [
    "Backbone",
    "OtherWeights",
    "UnverifiedFamily",
    "attach",
    "cascade",
    "describe_dtype",
    "detach",
    "load",
    "verified_families",
]
