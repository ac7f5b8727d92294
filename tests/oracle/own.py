"""Families with an attention of their own, which a prefix joins through an adapter."""

from __future__ import annotations

from tests.oracle.family import COMMON, SIZES, VOCABULARY, Family

_DROPPED = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
_FALCON = {**COMMON, **SIZES, **_DROPPED, "num_attention_heads": 4}

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
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "d_model": 32,
            "n_layers": 3,
            "n_heads": 4,
            "max_seq_len": 96,
        },
        masks="none",
        alibi=True,
    ),
)
"""Every family with an adapter."""
