"""Families with an attention of their own, which a prefix joins through an adapter."""

from __future__ import annotations

from tests.oracle.family import COMMON, NO_GPT2_DROPOUT, SIZES, VOCABULARY, WINDOW, Family

_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DROPPED = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
_FALCON = {**COMMON, **SIZES, **_DROPPED, "num_attention_heads": 4}

_DROPPED_GPT_NEO = {"resid_dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0}
_GPTJ = {
    **_IDS,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    **NO_GPT2_DROPOUT,
}

OWN = (
    Family(
        "bloom",
        {**COMMON, **_DROPPED, "hidden_size": 32, "n_layer": 3, "n_head": 4},
        masks="none",
        alibi=True,
    ),
    Family("falcon", {**_FALCON, "multi_query": True}, variant="multi-query"),
    Family(
        "falcon",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
        variant="grouped",
    ),
    Family(
        "falcon",
        {**_FALCON, "multi_query": False, "alibi": True},
        masks="none",
        alibi=True,
        variant="alibi",
    ),
    Family(
        "mpt",
        {
            **_IDS,
            "d_model": 32,
            "n_layers": 3,
            "n_heads": 4,
            "max_seq_len": 96,
            "use_cache": True,
        },
        masks="none",
        alibi=True,
    ),
    Family(
        "gpt_neo",
        {
            **COMMON,
            **_DROPPED_GPT_NEO,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["local", "global"], 1], [["local"], 1]],
            "window_size": WINDOW,
        },
        masks="own",
        window=WINDOW,
    ),
    Family("gptj", {**_GPTJ, "n_positions": 96, "rotary_dim": 6}),
    Family("codegen", {**_GPTJ, "n_positions": 96, "n_ctx": 96, "rotary_dim": 6}),
    Family(
        "xglm",
        {
            **COMMON,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 3,
            "attention_heads": 4,
            "layerdrop": 0.0,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
    ),
)
"""Every family with an adapter."""
