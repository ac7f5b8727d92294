"""Which engine computes, and what of its options the other one has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal

from foreword.errors import ServeError

EngineName = Literal["embedded", "vllm"]
"""Foreword's own engine, or vLLM."""

VLLMS: Mapping[str, str] = {
    "rows": "give --max-num-seqs after --",
    "prompt_tokens": "give --max-num-batched-tokens after --",
    "cache_tokens": "give --kv-cache-memory-bytes after --",
    "quantize": "give --quantization after --",
    "device": "it is the one that vLLM was built for",
    "attention": "give --attention-backend after --",
    "router": "leave it out and name the prefix: vLLM computes no features, by which a router chooses",
    "strict": "leave it out: vLLM has the weights, so they are not compared",
}
"""Options of the embedded engine, and what to give vLLM instead."""


def refuse_embedded(*groups: Any) -> None:
    """Refuse options of Foreword's own engine, which vLLM has flags of its own for.

    Args:
        groups: Options of a verb, as its dataclasses have them.

    Raises:
        ServeError: One is not as it is by default.
    """
    for group in groups:
        defaults = {field.name: field.default for field in fields(group)}
        for name, other in VLLMS.items():
            if name in defaults and getattr(group, name) != defaults[name]:
                option = name.replace("_", "-")
                raise ServeError(
                    f"--{option} is for Foreword's own engine; with --engine vllm {other}"
                )


def refuse_flags(flags: Sequence[str]) -> None:
    """Refuse flags of vLLM's where Foreword's own engine computes.

    Raises:
        ServeError: There are some.
    """
    if flags:
        raise ServeError(
            f"{flags[0]!r} is one of vLLM's flags, which are for --engine vllm; found --engine embedded"
        )
