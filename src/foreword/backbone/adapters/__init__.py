"""Adapters: how a prefix joins attention that does not call transformers' AttentionInterface."""

from foreword.backbone.adapters.base import Adapter
from foreword.backbone.adapters.find import adapt

__all__ = ["Adapter", "adapt"]
