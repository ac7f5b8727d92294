"""Families with recurrent or convolutional layers between (or beside) their attention layers.

A prefix joins the attention layers alone: to the others a text is more than keys and values, so no
prefix can be a text. They are compared with attention written out (`tests.oracle.explicit`).
"""

from __future__ import annotations

from tests.oracle.family import COMMON, EXPERTS, HEADS, LLAMA, SIZES, Family

_FOUR = {"num_hidden_layers": 4}
_LINEAR = {
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "mamba_d_conv": 3,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}

HYBRIDS = (
    Family(
        "qwen3_next",
        {
            **LLAMA,
            **_FOUR,
            **EXPERTS,
            **_LINEAR,
            "shared_expert_intermediate_size": 24,
            "partial_rotary_factor": 0.5,
        },
        recurrent=True,
    ),
    Family("qwen3_5_text", {**LLAMA, **_FOUR, **_LINEAR}, recurrent=True),
    Family(
        "jamba",
        {
            **COMMON,
            **SIZES,
            **HEADS,
            **_FOUR,
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_d_conv": 3,
        },
        recurrent=True,
        positionless=True,
    ),
    Family(
        "lfm2",
        {
            **COMMON,
            **SIZES,
            **HEADS,
            **_FOUR,
            "layer_types": ["conv", "full_attention"] * 2,
            "block_multiple_of": 8,
        },
        recurrent=True,
    ),
    Family(
        "falcon_h1",
        {**COMMON, **SIZES, **HEADS, **_MAMBA2, "head_dim": 12, "mamba_d_ssm": 32},
        recurrent=True,
    ),
    Family(
        "granitemoehybrid",
        {
            **COMMON,
            **SIZES,
            **HEADS,
            **_FOUR,
            **_MAMBA2,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_local_experts": 4,
            "shared_intermediate_size": 24,
        },
        recurrent=True,
        positionless=True,
    ),
)
"""Every hybrid family; two of its layers (all of falcon_h1's) have attention."""
