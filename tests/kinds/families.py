"""Every encoder and encoder-decoder that the oracle is run on: tiny random models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

VOCABULARY = 97
SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT = {
    **SPECIAL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
BART = {
    **SPECIAL,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
T5 = {
    **SPECIAL,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,  # transformers makes its cache by the number of the encoder's
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: Model type.
        config: Fields of its config.
        positions: Where a token's position comes from: a ``table`` of embeddings, ``rotary`` angles of
            its position_ids, or ``distance`` alone.
        window: Window of its windowed layers.
        kernels: Kernels of attention that it can have, the default one first.
        since: Version of transformers from which on it can carry a prefix.
        note: What the page says of it besides.
    """

    name: str
    config: dict[str, Any] = field(repr=False)
    positions: str = "table"
    window: int | None = None
    kernels: tuple[str, ...] = ("sdpa", "eager")
    since: str = "5.16.1"
    note: str = ""

    @property
    def available(self) -> bool:
        """Whether the installed transformers has the family, and it can carry a prefix there."""
        new_enough = Version(transformers.__version__) >= Version(self.since)
        return new_enough and self.name in CONFIG_MAPPING

    @property
    def biased(self) -> bool:
        """Whether scores have a learned bias by distance."""
        return "relative_attention_num_buckets" in self.config

    @property
    def kind(self) -> str:
        """Encoder or encoder-decoder."""
        return "encoder-decoder" if "decoder_start_token_id" in self.config else "encoder"

    def build(self, attention: str | None = None) -> PreTrainedModel:
        """A random model in float32 and evaluation mode, every weight matrix scaled by 3."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.name, **self.config)
        auto = AutoModel if self.kind == "encoder" else AutoModelForSeq2SeqLM
        model: PreTrainedModel = auto.from_config(
            config, attn_implementation=attention or self.kernels[0]
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and "position" not in name:
                    parameter.mul_(1 if self.positions == "distance" else 3)
        return model.float().eval().requires_grad_(False)


ENCODERS = (
    Family("bert", BERT),
    Family("roberta", BERT),
    Family("xlm-roberta", BERT),
    Family("camembert", BERT),
    Family("data2vec-text", BERT),
    Family("electra", {**BERT, "embedding_size": 24}),
    Family(
        "albert",
        {**BERT, "embedding_size": 24, "num_hidden_layers": 1},
        note="one module for all layers, so one site; the tiny model has one layer",
    ),
    Family(
        "distilbert",
        {
            "vocab_size": VOCABULARY,
            "pad_token_id": 0,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": 3,
            "n_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    Family(
        "mpnet",
        {**BERT, "relative_attention_num_buckets": 32},
        kernels=("eager",),
        note="an adapter",
    ),
    Family(
        "modernbert",
        {
            **BERT,
            "global_attn_every_n_layers": 2,
            "local_attention": 40,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        positions="rotary",
        note="its window is wider than the text here",
    ),
)
ENCODER_DECODERS = (
    Family("t5", T5, positions="distance"),
    Family("mt5", T5, positions="distance"),
    Family(
        "umt5",
        T5,
        positions="distance",
        since="5.23",
        note="with transformers 5.23, and refused with 5.16 unless it is loaded with eager attention",
    ),
    Family("bart", BART),
    Family("mbart", BART),
    Family("marian", {**BART, "decoder_vocab_size": VOCABULARY}),
    Family("pegasus", BART),
)
FAMILIES = (*ENCODERS, *ENCODER_DECODERS)
BY_NAME = {family.name: family for family in FAMILIES}
