"""What vLLM says of the key-value caches that it has made for a model.

Beside the connector, all that touches vLLM's caches is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVQuantMode,
    MambaSpec,
    MLAAttentionSpec,
    SlidingWindowMLASpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from foreword.engine.vllm.paging import Group

KINDS = {
    FullAttentionSpec: "full",
    SlidingWindowSpec: "window",
    MambaSpec: "recurrent",
    MLAAttentionSpec: "latent",
    SlidingWindowMLASpec: "latent",
    ChunkedLocalAttentionSpec: "chunked",
    UniformTypeKVCacheSpecs: "uneven",
}
"""By its class the kind of a cache, as `Setting` calls it."""


def kinds_of(kv_cache_config: Any) -> tuple[str, ...]:
    """The kinds of a model's caches."""
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    shapes = {shape_of(spec) for spec in specs if isinstance(spec, AttentionSpec)}
    uneven = ["uneven"] if len(shapes) > 1 else []
    return (*map(kind_of, specs), *uneven)


def kind_of(spec: Any) -> str:
    """The kind of one cache; vLLM's own word for it where we have none."""
    kind = KINDS.get(type(spec), type(spec).__name__)
    if isinstance(spec, AttentionSpec) and spec.kv_quant_mode != KVQuantMode.NONE:
        return "quantised"
    if kind == "full" and spec.attention_chunk_size is not None:
        return "chunked"
    return "unmanaged" if kind == "full" and spec.sliding_window is not None else kind


def shape_of(spec: Any) -> tuple[int, int, int]:
    """A worker's key/value heads, and the dimensions of a key and a value."""
    return spec.num_kv_heads, spec.head_size, spec.head_size_v


def groups_of(kv_cache_config: Any) -> tuple[Group, ...]:
    """The groups of layers that share a table of blocks."""
    found = [(one.layer_names, one.kv_cache_spec) for one in kv_cache_config.kv_cache_groups]
    return tuple(Group(tuple(names), spec.block_size, spec.sliding_window) for names, spec in found)


def in_order(groups: Sequence[Group]) -> list[tuple[str, int]]:
    """The attention layers' names in the model's order, each with the number of its group."""
    pairs = [(name, number) for number, group in enumerate(groups) for name in group.names]
    return sorted(pairs, key=lambda pair: extract_layer_index(pair[0]))
