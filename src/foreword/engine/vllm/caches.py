"""What vLLM says of the key-value caches that it has made for a model."""

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

from foreword.engine.vllm.geometry import Geometry
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
    if kind == "recurrent" and spec.mamba_cache_mode != "none":
        return "shared"
    if isinstance(spec, AttentionSpec) and spec.kv_quant_mode != KVQuantMode.NONE:
        return "quantised"
    if kind in ("full", "window") and spec.tokens_per_state != 1:
        return "pooled"
    if kind == "full" and spec.attention_chunk_size is not None:
        return "chunked"
    return "unmanaged" if kind == "full" and spec.sliding_window is not None else kind


def shape_of(spec: Any) -> tuple[int, int, int]:
    """A worker's key/value heads, and the dimensions of a key and a value."""
    return spec.num_kv_heads, spec.head_size, spec.head_size_v


def groups_of(kv_cache_config: Any) -> tuple[Group, ...]:
    """The groups of layers that share a table of blocks."""
    return tuple(
        _group(tuple(group.layer_names), group.kv_cache_spec)
        for group in kv_cache_config.kv_cache_groups
    )


def _group(names: tuple[str, ...], spec: Any) -> Group:
    window = getattr(spec, "sliding_window", None)
    return Group(names, spec.block_size, window, isinstance(spec, MambaSpec))


def in_order(groups: Sequence[Group], *, recurrent: bool = False) -> list[tuple[str, int]]:
    """The names of attention layers in the model's order, each with the number of its group.

    Args:
        groups: The model's groups.
        recurrent: Of the recurrent layers instead.
    """
    pairs = [
        (name, number)
        for number, group in enumerate(groups)
        if group.is_recurrent == recurrent
        for name in group.names
    ]
    return sorted(pairs, key=lambda pair: extract_layer_index(pair[0]))


def geometry_of(kv_cache_config: Any, kv_heads: int, model: str) -> Geometry:
    """The attention layers of an engine's model.

    Args:
        kv_cache_config: What vLLM says of its caches.
        kv_heads: Key/value heads of each layer, over all workers.
        model: The model's name.
    """
    groups = groups_of(kv_cache_config)
    windows = tuple(groups[number].window for _, number in in_order(groups))
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    _, key_dim, value_dim = next(shape_of(one) for one in specs if isinstance(one, AttentionSpec))
    return Geometry(len(windows), kv_heads, key_dim, value_dim, model, windows)
