"""Which adapter serves which attention module of transformers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from foreword.attention.adapters.alibi import Bloom, Falcon, Mpt
from foreword.attention.adapters.base import Adapter
from foreword.attention.adapters.local import GptNeo
from foreword.attention.adapters.mpnet import MPNet
from foreword.attention.adapters.table import RotaryTable
from foreword.attention.adapters.xglm import Xglm

_ADAPTERS: dict[str, type[Adapter] | type[MPNet]] = {
    "BloomAttention": Bloom,
    "FalconAttention": Falcon,
    "MptAttention": Mpt,
    "GPTNeoSelfAttention": GptNeo,
    "GPTJAttention": RotaryTable,
    "CodeGenAttention": RotaryTable,
    "XGLMAttention": Xglm,
    "MPNetSelfAttention": MPNet,
}
"""By the name of the attention module's class."""


def adapt(modules: Iterable[nn.Module]) -> list[Adapter | MPNet]:
    """Adapters of the modules that need one. To be called before a config is changed."""
    found: list[Adapter | MPNet] = []
    for module in modules:
        kind = type(module)
        # A model's remote code may have the name but not the attention.
        if kind.__name__ in _ADAPTERS and kind.__module__.startswith("transformers.models."):
            found.append(_ADAPTERS[kind.__name__](module))
    return found
