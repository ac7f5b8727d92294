"""xglm: only the mask has to be widened, and its self-attention may have half of a cache."""

from __future__ import annotations

from typing import Any

from transformers import EncoderDecoderCache

from foreword.attention.adapters.base import Adapter, Call


class Xglm(Adapter):
    """Self-attention; positions are sinusoids, added to the embeddings.

    With cross-attention the cache has two parts. The module tells them apart by the cache's class,
    which what it is handed here has not, so the right part is taken for it.
    """

    cache = "past_key_values"

    def real_cache(self, call: Call) -> Any:
        """The cache, or its part for self-attention."""
        cache = super().real_cache(call)
        return cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
