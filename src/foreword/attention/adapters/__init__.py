"""Adapters: how a prefix joins attention that does not call transformers' AttentionInterface."""

from foreword.attention.adapters.base import Adapter
from foreword.attention.adapters.find import adapt

__all__ = ["Adapter", "adapt"]
