"""The one tensor of a PEFT checkpoint, `prompt_embeddings`, to and from keys and values.

It is saved as (P, L * 2 * H * D) and means (P, 2 * L, H, D): slot 2 * l holds layer l's keys, rotary
already applied with the prefix at positions 0..P-1, and slot 2 * l + 1 its values.

Shapes: P prefix length, L layers, H key/value heads, D dimension of a key and of a value,
W = L * 2 * H * D.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from foreword.errors import CorruptFile, FormatError, PrefixError, TruncatedFile
from foreword.header import parsed, raw_header, spelled
from foreword.peft.config import PeftConfig, short
from foreword.prefix import tensor_bytes

NAME = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
TENSOR = "prompt_embeddings"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_PLAIN = {"format": "pt"}


def decode(content: bytes, config: PeftConfig) -> tuple[Tensor, str | None]:
    """The tensor (P, W) in a file's bytes, and the file's header where PEFT would spell another.

    Raises:
        TruncatedFile: The bytes end too early.
        CorruptFile: They are not a safetensors file, or do not agree with its header.
        FormatError: They hold other tensors, another shape or dtype than the config says, or NaN.
    """
    raw = raw_header(BytesIO(content), len(content))
    entry = _entry(parsed("header", raw), config.shape)
    size = math.prod(config.shape) * DTYPES[entry["dtype"]].itemsize
    available = len(content) - 8 - len(raw)
    if entry["data_offsets"] != [0, size]:
        raise CorruptFile(
            f"tensor {TENSOR!r} has offsets {short(entry['data_offsets'])}, expected {[0, size]}"
        )
    if available < size:
        raise TruncatedFile(f"its tensor needs {size} bytes, {available} are there")
    if available > size:
        raise CorruptFile(f"{available - size} bytes follow the tensor")
    try:
        embeddings_PW = safetensors.torch.load(content)[TENSOR]
    except Exception as error:  # what the library refuses beyond the checks above
        raise CorruptFile(f"its tensor cannot be read: {error}") from error
    if not bool(torch.isfinite(embeddings_PW).all()):
        raise FormatError(f"tensor {TENSOR!r} holds NaN or infinity; the prefix is unusable")
    return embeddings_PW, None if raw == _header(embeddings_PW) else raw.decode()


def _entry(header: Mapping[str, Any], shape: tuple[int, int]) -> Mapping[str, Any]:
    """The header's entry of the one tensor, its name, shape and dtype as the config says."""
    names = set(header) - {"__metadata__"}
    if TENSOR not in names:
        raise FormatError(
            f"it has no tensor {TENSOR!r} (found {short(sorted(names))}); a checkpoint of prefix "
            "tuning has exactly this one"
        )
    if names != {TENSOR}:
        raise FormatError(
            f"it also holds {short(sorted(names - {TENSOR}))}, which a prefix has no place for"
        )
    entry = header[TENSOR]
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(f"tensor {TENSOR!r} is described by {short(entry)}")
    if entry["shape"] != list(shape):
        raise FormatError(
            f"tensor {TENSOR!r} has shape {short(entry['shape'])}, but the config says "
            f"{list(shape)} (num_virtual_tokens, num_layers * 2 * token_dim)"
        )
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
        raise FormatError(
            f"tensor {TENSOR!r} has dtype {short(entry['dtype'])}, expected one of {sorted(DTYPES)}"
        )
    return entry


def encode(embeddings_PW: Tensor, header: str | None = None) -> bytes:
    """A file's bytes, under PEFT's own header unless told otherwise: the same for the same tensor."""
    raw = _header(embeddings_PW) if header is None else header.encode()
    return b"".join((struct.pack("<Q", len(raw)), raw, tensor_bytes(embeddings_PW)))


def _header(embeddings_PW: Tensor) -> bytes:
    entry = {
        "dtype": _CODES[embeddings_PW.dtype],
        "shape": list(embeddings_PW.shape),
        "data_offsets": [0, embeddings_PW.numel() * embeddings_PW.element_size()],
    }
    return spelled({"__metadata__": _PLAIN, TENSOR: entry})


def unpacked(
    embeddings_PW: Tensor, config: PeftConfig
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Per layer the keys and values (H, P, D), each on its own."""
    slots_SHPD = embeddings_PW.view(
        config.length, 2 * config.layers, config.heads, config.head_dim
    ).permute(1, 2, 0, 3)
    tensors = [slot_HPD.contiguous() for slot_HPD in slots_SHPD]
    keys = tuple(tensors[slot] for slot in config.slots)
    return keys, tuple(tensors[slot + 1] for slot in config.slots)


def packed(keys: Sequence[Tensor], values: Sequence[Tensor], config: PeftConfig) -> Tensor:
    """The tensor (P, W) of per-layer keys and values (H, P, D); slots that no layer reads are zero.

    Raises:
        PrefixError: PEFT gives two layers one slot, and they differ.
    """
    slots = [torch.zeros_like(keys[0])] * (2 * config.layers)
    filled: dict[int, int] = {}
    for layer, (slot, *own) in enumerate(zip(config.slots, keys, values, strict=True)):
        before = filled.setdefault(slot, layer)
        if before != layer and not all(map(torch.equal, own, slots[slot : slot + 2])):
            raise PrefixError(
                f"in PEFT layers {before} and {layer} of an encoder-decoder share keys and values (of "
                f"{config.layers} layers, an even number), and this prefix has others in each, so it "
                "cannot be exported"
            )
        slots[slot : slot + 2] = own
    return torch.stack(slots).permute(2, 0, 1, 3).flatten(1).contiguous()
