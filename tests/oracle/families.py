"""Tiny random models of every decoder family that the oracle is run on.

Sizes are chosen to be awkward: grouped heads, a head dimension that is not hidden / heads where the
family allows it, windows of which the text is more than twice as long, weight matrices scaled by 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
WINDOW = 9
LENGTH = 6
"""Prefix length P."""

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
_COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_NO_GPT2_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_LLAMA = {**_COMMON, **_SIZES, **_HEADS, "head_dim": 12}
_NO_HEAD_DIM = {**_COMMON, **_SIZES, **_HEADS}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Family:
    """One family: its config, and how it takes ready-made 4-D masks (for the reference)."""

    name: str
    config: dict[str, Any] = field(repr=False)
    masks: Literal["single", "by layer type"] = "single"
    window: int | None = None
    dtype: torch.dtype = torch.float32

    def build(self, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
        """A random model in float32 and evaluation mode, every weight matrix scaled by 3."""
        torch.manual_seed(seed)
        config = AutoConfig.for_model(self.name, **self.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        model = model.float().eval()
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
        return model


FAMILIES = (
    Family(
        "gpt2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 96,
            **_NO_GPT2_DROPOUT,
        },
    ),
    Family(
        "opt",
        {
            **_COMMON,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "dropout": 0.0,
        },
    ),
    Family("gpt_neox", {**_COMMON, **_SIZES, "num_attention_heads": 4}),
    Family(
        "gpt_bigcode",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 96,
            **_NO_GPT2_DROPOUT,
        },
    ),
    Family("llama", _LLAMA),
    Family("mistral", {**_LLAMA, "sliding_window": WINDOW}, window=WINDOW),
    Family(
        "mixtral",
        {**_LLAMA, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
        window=WINDOW,
    ),
    Family(
        "qwen2",
        {
            **_NO_HEAD_DIM,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
        },
        masks="by layer type",
        window=WINDOW,
    ),
    Family(
        "qwen3",
        {**_LLAMA, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": _MIXED},
        masks="by layer type",
        window=WINDOW,
    ),
    Family("qwen3_moe", {**_LLAMA, **_EXPERTS}),
    Family("phi", _NO_HEAD_DIM),
    Family("phi3", {**_NO_HEAD_DIM, "sliding_window": WINDOW}, window=WINDOW),
    Family("gemma", _LLAMA),
    Family(
        "gemma2",
        {**_LLAMA, "sliding_window": WINDOW, "layer_types": _MIXED, "query_pre_attn_scalar": 12},
        masks="by layer type",
        window=WINDOW,
    ),
    Family(
        "gemma3_text",
        {**_LLAMA, "sliding_window": WINDOW, "layer_types": _MIXED, "query_pre_attn_scalar": 12},
        masks="by layer type",
        window=WINDOW,
    ),
    Family("olmo2", _NO_HEAD_DIM),
    Family("cohere", {**_NO_HEAD_DIM, "logit_scale": 1.0}),
    Family(
        "cohere2",
        {**_LLAMA, "logit_scale": 1.0, "sliding_window": WINDOW, "layer_types": _MIXED},
        masks="by layer type",
        window=WINDOW,
    ),
    Family("starcoder2", {**_NO_HEAD_DIM, "sliding_window": WINDOW}, window=WINDOW),
    Family("stablelm", _NO_HEAD_DIM),
    Family("granite", _NO_HEAD_DIM),
    Family(
        "gpt_oss",
        {
            **_LLAMA,
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        masks="by layer type",
        window=WINDOW,
    ),
    Family(
        "smollm3",
        {
            **_NO_HEAD_DIM,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "no_rope_layers": [1, 0, 1],
        },
        masks="by layer type",
        window=WINDOW,
    ),
    Family("glm4", _LLAMA),
    Family(
        "biogpt",
        {
            **_COMMON,
            **_SIZES,
            "num_attention_heads": 4,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
)
"""Every family of the oracle, in the order of the documentation's table."""

BY_NAME = {family.name: family for family in FAMILIES}
EAGER_ONLY = {"gpt_oss"}
"""Families whose eager kernel does what SDPA cannot (attention sinks)."""
EAGER_TOO = {"gemma2"}
"""Families whose eager kernel differs from SDPA (soft-capping): run with it."""


def attention_of(family: Family) -> str:
    """The implementation that the family is tested with: its own eager kernel where that matters."""
    return "eager" if family.name in EAGER_ONLY | EAGER_TOO else "sdpa"
