"""The PEFT library itself, on tiny models: checkpoints that it made, and the logits that it gives.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import CartridgeConfig, PeftModel, PrefixTuningConfig, get_peft_model
from tokenizers import processors
from torch import Tensor
from transformers import PreTrainedModel

from foreword.backbone import Backbone
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle.families import BY_NAME, VOCABULARY, attention_of

LENGTH = 5
NEW_TOKENS = 6
FAMILIES = (
    *("gpt2", "opt", "gpt_neox", "gpt_bigcode", "llama", "mistral", "mixtral", "qwen2", "qwen3"),
    *("qwen3_moe", "phi", "phi3", "gemma", "gemma2", "gemma3_text", "olmo2", "cohere", "cohere2"),
    *("starcoder2", "stablelm", "granite", "gpt_oss", "smollm3", "glm4", "biogpt"),
)
"""Families of the oracle in which PEFT's prefix reaches attention."""

PEFTS_OWN = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
"""PEFT 0.21 asks the model by a name that transformers 5.23 has changed."""

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"


def model_of(name: str) -> PreTrainedModel:
    """A family's tiny model: the same weights at every call."""
    family = BY_NAME[name]
    return family.build(attention_of(family))


def backbone_of(name: str) -> Backbone:
    return Backbone(model_of(name), name=name)


def bos_backbone() -> Backbone:
    """The tiny Llama with a tokenizer that puts <s> before every text."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return Backbone(tiny_model(), tokenizer, name="tiny")


def tokens(count: int, seed: int = 2, rows: int = 2) -> Tensor:
    """Token ids (rows, count)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, count), generator=generator)


def checkpoint(model: PreTrainedModel, folder: Path, kind: str = "prefix", **options: Any) -> Path:
    """A checkpoint of random numbers, made and saved by PEFT."""
    torch.manual_seed(3)
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": LENGTH, **options}
    made = CartridgeConfig if kind == "cartridge" else PrefixTuningConfig
    get_peft_model(model, made(**options)).save_pretrained(folder)
    return folder


def peft_logits(model: PreTrainedModel, folder: Path, ids: Tensor) -> Tensor:
    """What PEFT's model gives for the folder: (B, T, V)."""
    with torch.no_grad():
        return PeftModel.from_pretrained(model, folder)(ids).logits


def peft_greedy(model: PreTrainedModel, folder: Path, ids: Tensor) -> Tensor:
    """PEFT's greedy continuation, the input included."""
    return PeftModel.from_pretrained(model, folder).generate(input_ids=ids, **greedy(ids))


def greedy(ids: Tensor) -> dict[str, Any]:
    """Arguments of `generate`."""
    return {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": 0,
    }


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to max(1, largest expected)."""
    return float((found - expected).abs().max()) / max(1.0, float(expected.abs().max()))


def change(folder: Path, **fields: Any) -> None:
    """Write other values into a checkpoint's config; `...` deletes a key."""
    path = folder / CONFIG
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
