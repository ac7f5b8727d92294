"""A tiny encoder with a byte-level tokenizer that marks texts as encoders' do, and rows of each task."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import foreword
from tests.conftest import byte_tokenizer


def marking_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte; <s> text </s>, and <s> question </s> context </s>."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 1)],
    )
    return tokenizer


def tiny_encoder(seed: int = 0) -> foreword.Backbone:
    """A random BERT of three layers."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=1,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "position" not in name:
                parameter.mul_(3)
    return foreword.Backbone(model.requires_grad_(False), marking_tokenizer(), name="tiny-bert")


CLASSIFY = [
    {"text": f"{word} {place}", "label": label}
    for label, words in (("good", ("fine", "lovely", "great")), ("bad", ("dull", "awful", "poor")))
    for word in words
    for place in ("film", "food")
]
TAG = [
    {"tokens": [name, "sits", "in", place, "."], "tags": ["B-person", "O", "O", "B-place", "O"]}
    for name in ("Ada", "Otto")
    for place in ("Rome", "Oslo", "Ulm")
]
ANSWER = [
    {
        "question": "Who sits?",
        "context": f"In {place} sits {name} today.",
        "answers": {"text": [name], "answer_start": [len(f"In {place} sits ")]},
    }
    for name in ("Ada", "Otto")
    for place in ("Rome", "Oslo", "Ulm")
]
ROWS = {"classify": CLASSIFY, "tag": TAG, "answer": ANSWER}


def save_folder(backbone: foreword.Backbone, folder: Path) -> None:
    """A backbone as a model folder, which the command line loads."""
    assert backbone.tokenizer is not None
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
