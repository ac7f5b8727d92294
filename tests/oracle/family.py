"""A decoder family as the oracle sees it: a tiny random model of awkward sizes.

Sizes are chosen to be awkward: grouped heads, a head dimension that is not hidden / heads where the
family allows it, windows of which the text is more than twice as long, weight matrices scaled by 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 97
WINDOW = 9
LENGTH = 6
"""Prefix length P."""

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
COMMON = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_GPT2_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LLAMA = {**COMMON, **SIZES, **HEADS, "head_dim": 12}
NO_HEAD_DIM = {**COMMON, **SIZES, **HEADS}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


@dataclass(frozen=True)
class Family:
    """One family: its config, and how it takes ready-made 4-D masks (for the reference).

    Attributes:
        name: Model type.
        config: Fields of its config.
        masks: ``none``: it takes no ready-made masks, and makes the right one by itself.
            ``own``: the same, with the window in a buffer of its modules.
        window: Window of its windowed layers.
        dtype: Of the weights.
        alibi: Whether its positions are a bias by distance (ALiBi).
        chunked: Whether its window is a chunk: text begins to be cut anew at its multiples.
        gradients: What their reference is: ``cache`` takes the same tensors as `past_key_values`,
            ``explicit`` writes them into attention.
        positionless: Whether its attention has no positions at all.
        query_norm: Weight of the norms of queries, where scores are scaled by nothing else.
        recurrent: Whether some layers are not attention, so that no prefix can stand for a text.
        variant: What sets it apart from others of the same model type.
    """

    name: str
    config: dict[str, Any] = field(repr=False)
    masks: Literal["single", "by layer type", "none", "own"] = "single"
    window: int | None = None
    dtype: torch.dtype = torch.float32
    alibi: bool = False
    chunked: bool = False
    gradients: Literal["cache", "explicit"] = "cache"
    positionless: bool = False
    query_norm: float | None = None
    recurrent: bool = False
    variant: str = ""

    @property
    def title(self) -> str:
        """Model type and variant, by which tests and the table know it."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def available(self) -> bool:
        """Whether the installed transformers has the family."""
        return self.name in CONFIG_MAPPING

    def build(self, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
        """A random model in float32 and evaluation mode, every weight matrix scaled by 3."""
        torch.manual_seed(seed)
        config = AutoConfig.for_model(self.name, **self.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        model = model.float().eval()
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
                elif self.query_norm is not None and name.endswith("q_norm.weight"):
                    parameter.fill_(self.query_norm)
        return model
