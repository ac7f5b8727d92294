"""Fixtures: a tiny random backbone with a byte-level tokenizer, and the embedded one."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import foreword.notices  # isort: skip  (before anything else imports transformers)

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import foreword
from foreword.weights import embedded

torch.set_num_threads(1)

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
MEMORY = [
    {"mr": f"name[{name}], food[{food}]", "ref": f"{name} serves {food} food."}
    for name in ("Zizzi", "Aromi", "Fitzbillies", "Cotto")
    for food in ("Thai", "Greek", "fish")
]
"""Twelve rows that a tiny model can be trained on."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, <s> and </s> around; no download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{char: i for i, char in enumerate(alphabet, 2)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    fast.chat_template = CHAT
    return fast


def tiny_model(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """A random Llama of three layers with grouped heads and an odd head dimension."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.requires_grad_(False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the tests of the server."""
    about = "of the tests of the server run only those over this engine"
    parser.addoption("--engine", choices=["embedded", "vllm"], default=None, help=about)


@pytest.fixture
def tiny() -> foreword.Backbone:
    """A fresh tiny backbone."""
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """The tiny backbone as a model folder."""
    folder = tmp_path / "tiny-model"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """Twelve restaurant rows with columns mr and ref."""
    return [dict(row) for row in MEMORY]


@pytest.fixture(scope="session")
def smollm2() -> foreword.Backbone:
    """The embedded backbone in float32, converted on first use."""
    return foreword.load(embedded.NAME, dtype="float32")


@pytest.fixture
def spelled(tiny: foreword.Backbone) -> foreword.Backbone:
    """The tiny backbone, whose texts have one character per token: equal texts are equal tokens."""
    tiny.tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    return tiny
