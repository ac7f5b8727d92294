"""Digests that tell whether a prefix meets the backbone and tokenizer that it was made for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from foreword.weights.own import own_modules
from foreword.weights.placement import contents
from foreword.weights.stored import parts

SAMPLES = 64
"""Elements hashed per parameter, evenly spaced."""

PHRASE = "Foreword 2024:  12.5% of naïve cafés — <b>日本</b>\n\tdon't_stop"
"""Text whose token ids tell tokenizers with one vocabulary apart (digits, runs of spaces, accents)."""

_UNQUANTISED = "_foreword_unquantised"
"""Where a model keeps the digests of its rounded weights and of those that they were rounded from."""


def weights_fingerprint(model: nn.Module) -> str:
    """Digest of a sample of the weights, rounded to bfloat16.

    Loading the same weights in another floating dtype leaves it equal, and so does rounding them on
    loading (``quantize``); other weights of the same geometry, those of a folder that was quantised
    before included, change it. Adapters beside the weights (LoRA) leave it equal; those merged into
    them change it.
    """
    found = _digest(model)
    rounded, before = model.__dict__.get(_UNQUANTISED, (None, ""))
    return before if found == rounded else found


def remember_unquantised(model: nn.Module, before: str) -> None:
    """Let a model whose weights were just rounded keep the fingerprint that it had `before`.

    It holds for these very weights only: any change to them shows.
    """
    model.__dict__[_UNQUANTISED] = (_digest(model), before)


def _digest(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, module, own in sorted(_own_parameters(model), key=lambda found: found[0]):
        parameter = contents(module, own)
        total.update(f"{name}:{tuple(parameter.shape)}".encode())
        if parameter.is_meta:
            continue
        for part, tensor in parts(parameter).items():
            total.update(part.encode())
            total.update(_sample(tensor))
    return total.hexdigest()


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.flatten()
    step = max(1, flat.numel() // SAMPLES)
    sample = flat[::step][:SAMPLES].to(torch.float32).to(torch.bfloat16).cpu().contiguous()
    return sample.view(torch.uint8).numpy().tobytes()


def _own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """The name, module and name in the module of each parameter, shared ones once, adapters' never."""
    seen: set[int] = set()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for place, module in own_modules(model):
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{place}.{own}" if place else own
            # accelerate's offloading parts parameters that were one
            twice = id(parameter) in seen or (parameter.is_meta and name in tied)
            seen.add(id(parameter))
            if not twice:
                yield name, module, own


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of the vocabulary, the special tokens and how `PHRASE` is split."""
    total = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items()):
        total.update(f"{index}\t{token}\n".encode("utf-8", "surrogatepass"))
    for special in (False, True):
        ids = tokenizer(PHRASE, add_special_tokens=special)["input_ids"]
        total.update(repr(list(ids)).encode())
    total.update(repr((tokenizer.bos_token_id, tokenizer.eos_token_id)).encode())
    return total.hexdigest()


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts a BOS before a text."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
