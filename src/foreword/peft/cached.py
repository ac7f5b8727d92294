"""PEFT hands a prefix over as a filled key-value cache: whether that reaches attention unchanged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from foreword.attention.cache_owner import own_caches
from foreword.attention.frame import AttentionCall
from foreword.backbone import Backbone
from foreword.backbone.kinds import KINDS
from foreword.backbone.probe import EXACT, evaluating
from foreword.errors import UnsupportedModel
from foreword.prefix import Prefix, Site

TOKENS = 2
"""Length of the text that is run: within every window."""


def sites_of(backbone: Backbone) -> tuple[Site, ...]:
    """Where PEFT puts a prefix: an encoder's attention, or a decoder's to its own tokens."""
    stack = "encoder" if backbone.kind == "encoder" else "decoder"
    return tuple(site for site in backbone.sites if site.stack == stack)


def check_reached(backbone: Backbone, prefix: Prefix) -> None:
    """Check that a prefix in a cache, where PEFT puts it, means what it means here.

    Raises:
        UnsupportedModel: It does not.
    """
    if backbone.kind == "encoder":
        _check_handed(backbone, prefix)
    else:
        _check_cached(backbone)


def _check_handed(backbone: Backbone, prefix: Prefix) -> None:
    """An encoder makes no cache, and some look into none: hand the prefix over as PEFT does."""
    model = backbone.model
    cache = DynamicCache()
    for layer, pair in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(*(own.to(model.device, model.dtype)[None] for own in pair), layer)
    own_caches((cache,), None)
    inputs = {"input_ids": torch.arange(TOKENS, device=backbone.device)[None]}
    mask = torch.ones(1, prefix.length + TOKENS, dtype=torch.long, device=backbone.device)
    try:
        with evaluating(model), torch.no_grad():
            with backbone.attached(prefix):
                ours = model(**inputs)[0]
            with backbone.attached(None):
                theirs = model(**inputs, attention_mask=mask, past_key_values=cache)[0]
        away = float((ours - theirs).abs().max() / ours.abs().max())
    except (IndexError, RuntimeError, TypeError, UnsupportedModel, ValueError):
        away = math.inf
    if not away <= (EXACT if model.dtype == torch.float32 else 2**-6):
        raise UnsupportedModel(
            f"family {backbone.family!r} does not attend to what lies in a cache as it does to a "
            "prefix, and a cache is where PEFT puts one; there is no PEFT checkpoint that means the "
            "same"
        )


def _check_cached(backbone: Backbone) -> None:
    """Check that the model's cache holds, layer by layer, the very keys and values of its sites.

    It does not where latents are cached (multi-head latent attention), where layers share keys and
    values, or where some layers are not attention.

    Raises:
        UnsupportedModel: It does not, so PEFT's prefix means something else there.
    """
    calls: list[AttentionCall] = []
    input_ids = torch.arange(TOKENS, device=backbone.device)[None]
    kind = KINDS[backbone.kind]
    inputs: dict[str, Any] = {**kind.inputs(backbone.model, input_ids, torch.ones_like(input_ids))}
    names = {site.name for site in sites_of(backbone)}
    with (
        backbone.attached(None) as attachment,
        evaluating(backbone.model),
        attachment.observing(calls.append),
        torch.no_grad(),
    ):
        output = backbone.model(**inputs, use_cache=True, return_dict=True)
    held = _held(output.past_key_values)
    seen = [(call.key_BHKD, call.value_BHKE) for call in calls if call.name in names]
    same = len(held) == len(seen) and all(
        a.shape == b.shape and torch.equal(a, b)
        for pair in zip(held, seen, strict=True)
        for a, b in zip(*pair, strict=True)
    )
    if not same:
        raise UnsupportedModel(
            f"family {backbone.family!r} does not keep the keys and values of each layer's attention "
            f"in its cache ({len(held)} layers there, {len(seen)} attention calls), which is where "
            "PEFT puts a prefix; there is no PEFT checkpoint that means the same"
        )


def _held(cache: object) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of a cache's layers; none of a cache that PEFT would not make."""
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if not isinstance(cache, DynamicCache):
        return []
    parts = [
        (getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers
    ]
    return [(k, v) for k, v in parts if isinstance(k, Tensor) and isinstance(v, Tensor)]
