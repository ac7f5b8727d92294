"""What callers give for a backbone, checked before anything is done with it."""

from __future__ import annotations

from torch import nn

from foreword.arguments import shown
from foreword.backbone.backbone import Backbone
from foreword.errors import BackboneError


def check_backbone(given: object) -> None:
    """Check that what stands for a backbone is one.

    Raises:
        BackboneError: It is not; the message says how to get one.
    """
    if isinstance(given, Backbone):
        return
    remedy, named = "load one with foreword.load", shown(given)
    if isinstance(given, nn.Module):
        named = type(given).__name__
        remedy = "wrap the model: foreword.Backbone(model, tokenizer)"
    raise BackboneError(f"backbone must be a Backbone; found {named}; {remedy}")
