"""A tiny Llama in a folder, as vLLM's CPU attention takes it, and prefixes of many lengths for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import foreword
from foreword.engine.vllm.engine import VllmEngine
from foreword.engine.vllm.launch import Launch
from foreword.engine.vllm.model import ServedModel
from foreword.engine.vllm.offline import OfflinePrefixes
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model

WORDS = 258
"""Tokens of the byte tokenizer; the model has more embeddings than that."""

LENGTHS = (1, 5, 16, 32, 37, 64, 70, 96)
"""Prefix lengths, some of them multiples of vLLM's blocks of 32 on a CPU."""


def backbone(seed: int = 0, **changes: object) -> foreword.Backbone:
    sizes = {"vocab_size": 264, "hidden_size": 64, "head_dim": 32, "max_position_embeddings": 512}
    model = tiny_model(seed, **{**sizes, **changes})
    with torch.no_grad():
        model.lm_head.weight[WORDS:] = 0  # a row without a token is never the likeliest
    return foreword.Backbone(model, byte_tokenizer(), name="tiny")


GPT = {"n_embd": 128, "n_head": 4, "n_layer": 3, "n_positions": 512}
"""Sizes of a model of GPT's families."""


def of_family(name: str, sizes: dict[str, Any]) -> foreword.Backbone:
    """A random model whose tokens beyond the tokenizer's are never the likeliest."""
    torch.manual_seed(0)
    special = {"vocab_size": 264, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = getattr(transformers, name)(**sizes, **special, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        model.get_output_embeddings().weight[WORDS:] = 0
    return foreword.Backbone(model, byte_tokenizer(), name=name)


def saved(made: foreword.Backbone, folder: Path) -> Path:
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def prefix(
    made: foreword.Backbone, length: int, seed: int, positions: str = "free"
) -> foreword.Prefix:
    """What a text of random tokens is, moved away from any text's keys and values."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, WORDS, (length,), generator=generator).tolist()
    captured = made.capture(ids, positions=positions)

    def away(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.3 * torch.randn(tensor.shape, generator=generator)

    keys, values = tuple(map(away, captured.keys)), tuple(map(away, captured.values))
    return foreword.Prefix(captured.sites, keys, values, captured.meta)


def store(made: foreword.Backbone, folder: Path) -> PrefixStore:
    """A store with a prefix of each length, ``p1`` to ``p96``, every fourth of policy ``offset``."""
    filled = PrefixStore(folder)
    for seed, length in enumerate(LENGTHS):
        policy = "offset" if seed % 4 == 3 else "free"
        filled.save(f"p{length}", prefix(made, length, seed, policy))
    return filled


def offline(prefixes: OfflinePrefixes, **more: Any) -> Any:
    """A ``vllm.LLM`` over prefixes: blocks of 32, chunks of 64 tokens, prefix caching on."""
    from vllm import LLM

    made = LLM(
        prefixes.tokenizer.name_or_path,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=16,
        max_num_batched_tokens=64,
        block_size=32,
        enable_prefix_caching=True,
        disable_log_stats=True,
        **more,
        **prefixes.engine_arguments(),
    )
    torch.set_num_threads(1)
    return made


FLAGS = (
    "--enforce-eager",
    "--max-model-len=256",
    "--max-num-seqs=16",
    "--max-num-batched-tokens=64",
    "--block-size=32",
)
"""Blocks of 32, chunks of 64 tokens."""


def launched(
    made: foreword.Backbone, folder: Path, store: PrefixStore, flags: Sequence[str] = ()
) -> tuple[ServedModel, VllmEngine]:
    """The model in vLLM, behind the engine that the server asks; `flags` are more flags of vLLM's."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    folder.mkdir(parents=True, exist_ok=True)
    source = str(saved(made, folder))
    started = Launch(source, store, (*FLAGS, *flags), name=made.name, dtype="float32").start()
    return started[:2]
