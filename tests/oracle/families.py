"""Every decoder family that the oracle is run on."""

from __future__ import annotations

from tests.oracle.family import (
    COMMON,
    EXPERTS,
    LENGTH,
    LLAMA,
    MIXED,
    NO_GPT2_DROPOUT,
    NO_HEAD_DIM,
    SIZES,
    VOCABULARY,
    WINDOW,
    Family,
)
from tests.oracle.hybrids import HYBRIDS
from tests.oracle.own import OWN

__all__ = [
    "BY_NAME",
    "FAMILIES",
    "LENGTH",
    "STANDARD",
    "VOCABULARY",
    "WINDOW",
    "Family",
    "attention_of",
]

STANDARD = (
    Family(
        "gpt2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 96,
            **NO_GPT2_DROPOUT,
        },
    ),
    Family(
        "opt",
        {
            **COMMON,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 32,
            "dropout": 0.0,
        },
    ),
    Family("gpt_neox", {**COMMON, **SIZES, "num_attention_heads": 4}),
    Family(
        "gpt_bigcode",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 96,
            **NO_GPT2_DROPOUT,
        },
    ),
    Family("llama", LLAMA),
    Family("mistral", {**LLAMA, "sliding_window": WINDOW}, window=WINDOW),
    Family(
        "mixtral",
        {**LLAMA, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
        window=WINDOW,
    ),
    Family(
        "qwen2",
        {
            **NO_HEAD_DIM,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
        },
        masks="by layer type",
        window=WINDOW,
    ),
    Family(
        "qwen3",
        {**LLAMA, "use_sliding_window": True, "sliding_window": WINDOW, "layer_types": MIXED},
        masks="by layer type",
        window=WINDOW,
    ),
    Family("qwen3_moe", {**LLAMA, **EXPERTS}),
    Family("phi", NO_HEAD_DIM),
    Family("phi3", {**NO_HEAD_DIM, "sliding_window": WINDOW}, window=WINDOW),
    Family("gemma", LLAMA),
    Family(
        "gemma2",
        {**LLAMA, "sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 12},
        masks="by layer type",
        window=WINDOW,
    ),
    Family(
        "gemma3_text",
        {**LLAMA, "sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 12},
        masks="by layer type",
        window=WINDOW,
    ),
    Family("olmo2", NO_HEAD_DIM),
    Family("cohere", {**NO_HEAD_DIM, "logit_scale": 1.0}),
    Family(
        "cohere2",
        {**LLAMA, "logit_scale": 1.0, "sliding_window": WINDOW, "layer_types": MIXED},
        masks="by layer type",
        window=WINDOW,
    ),
    Family("starcoder2", {**NO_HEAD_DIM, "sliding_window": WINDOW}, window=WINDOW),
    Family("stablelm", NO_HEAD_DIM),
    Family("granite", NO_HEAD_DIM),
    Family(
        "gpt_oss",
        {
            **LLAMA,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        masks="by layer type",
        window=WINDOW,
    ),
    Family(
        "smollm3",
        {
            **NO_HEAD_DIM,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": MIXED,
            "no_rope_layers": [1, 0, 1],
        },
        masks="by layer type",
        window=WINDOW,
    ),
    Family("glm4", LLAMA),
    Family(
        "gemma4_text",
        {
            **LLAMA,
            "num_hidden_layers": 5,
            "global_head_dim": 20,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "num_kv_shared_layers": 2,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", *MIXED, "full_attention"],
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
        masks="by layer type",
        window=WINDOW,
        gradients="explicit",
        query_norm=0.3,
    ),
    Family(
        "llama4_text",
        {
            **LLAMA,
            "intermediate_size_mlp": 48,
            "num_local_experts": 4,
            "moe_layers": [1],
            "no_rope_layers": [1, 0, 1],
            "attention_chunk_size": WINDOW,
        },
        masks="by layer type",
        window=WINDOW,
        chunked=True,
        gradients="explicit",
    ),
    Family(
        "deepseek_v3",
        {
            **COMMON,
            **SIZES,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 12,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 24,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
        },
        gradients="explicit",
    ),
    Family(
        "biogpt",
        {
            **COMMON,
            **SIZES,
            "num_attention_heads": 4,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
)
"""Families that call attention through transformers' AttentionInterface."""

FAMILIES = (*STANDARD, *OWN, *HYBRIDS)
"""Every family of the oracle, in the order of the documentation's table."""

BY_NAME = {family.title: family for family in FAMILIES}
EAGER_ONLY = {"gpt_oss", "bloom", "mpt", "gpt_neo", "gptj", "codegen", "xglm"}
"""Families whose eager kernel does what SDPA cannot (attention sinks)."""
EAGER_TOO = {"gemma2"}
"""Families whose eager kernel differs from SDPA (soft-capping): run with it."""


def attention_of(family: Family) -> str:
    """The implementation that the family is tested with: its own eager kernel where that matters."""
    return "eager" if family.name in EAGER_ONLY | EAGER_TOO else "sdpa"
