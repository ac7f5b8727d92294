"""xglm: only the mask has to be widened."""

from __future__ import annotations

from foreword.backbone.adapters.base import Adapter


class Xglm(Adapter):
    """Self-attention; positions are sinusoids, added to the embeddings."""

    cache = "past_key_values"
