"""Prefixes served by vLLM: as hits of its key-value cache, through a connector of ours."""

from typing import TYPE_CHECKING

from foreword.engine.vllm.requests import (
    Named,
    PrefixedPrompt,
    engine_arguments,
    placeholder_of,
    prefixed,
)
from foreword.lazy import offer

if TYPE_CHECKING:
    from foreword.engine.vllm.offline import OfflinePrefixes

__all__ = [
    "Named",
    "OfflinePrefixes",
    "PrefixedPrompt",
    "engine_arguments",
    "placeholder_of",
    "prefixed",
]

offer(__name__, {"OfflinePrefixes": "foreword.engine.vllm.offline"})
