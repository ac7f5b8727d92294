"""Damaged and forged PEFT folders: each is refused with its own message, and nothing else happens."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import foreword
from foreword.backbone import Backbone
from foreword.errors import CorruptFile, ForewordError, FormatError, TruncatedFile
from foreword.peft import read_config
from tests.conftest import tiny_model

CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
LENGTH, WIDTH = 4, 2 * 3 * 2 * 12
GOOD: dict[str, Any] = {
    "peft_type": "PREFIX_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": LENGTH,
    "num_layers": 3,
    "num_attention_heads": 2,
    "token_dim": 24,
    "num_transformer_submodules": 1,
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_model(), name="tiny")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without PEFT."""
    (tmp_path / CONFIG).write_text(json.dumps(GOOD))
    save_file({"prompt_embeddings": torch.randn(LENGTH, WIDTH)}, tmp_path / TENSORS)
    return tmp_path


def test_the_good_one_is_read(folder: Path, backbone: Backbone) -> None:
    assert foreword.import_peft(folder, backbone).length == LENGTH


Expected = tuple[type[ForewordError], str]
CONFIGS: dict[str, tuple[dict[str, Any], Expected]] = {
    "no kind": ({"peft_type": ...}, (FormatError, "peft_type is None")),
    "lora": ({"peft_type": "LORA"}, (FormatError, "peft_type is 'LORA'; only PREFIX_TUNING and")),
    "kind is a list": ({"peft_type": ["PREFIX_TUNING"]}, (FormatError, "peft_type is \\[")),
    "no task": ({"task_type": ...}, (FormatError, "ignores the prefix without a word")),
    "null task": ({"task_type": None}, (FormatError, "task_type is null")),
    "classifier": ({"task_type": "SEQ_CLS"}, (FormatError, "task_type is 'SEQ_CLS'")),
    "task is a list": ({"task_type": ["CAUSAL_LM"]}, (FormatError, "task_type is \\[")),
    "encoder-decoder": ({"task_type": "SEQ_2_SEQ_LM"}, (CorruptFile, "is 1, expected 2 with")),
    "two submodules": ({"num_transformer_submodules": 2}, (CorruptFile, "is 2, expected 1 with")),
    "half a submodule": ({"num_transformer_submodules": 0.5}, (CorruptFile, "is 0.5, expected 1")),
    "no length": ({"num_virtual_tokens": ...}, (CorruptFile, "config has no num_virtual_tokens")),
    "no layers": ({"num_layers": ...}, (CorruptFile, "config has no num_layers")),
    "no heads": ({"num_attention_heads": ...}, (CorruptFile, "has no num_attention_heads")),
    "no width": ({"token_dim": ...}, (CorruptFile, "config has no token_dim")),
    "zero tokens": ({"num_virtual_tokens": 0}, (CorruptFile, "num_virtual_tokens is 0, expected")),
    "negative": ({"num_layers": -3}, (CorruptFile, "num_layers is -3")),
    "true layers": ({"num_layers": True}, (CorruptFile, "num_layers is True")),
    "text": ({"token_dim": "24"}, (CorruptFile, "token_dim is '24'")),
    "fraction": ({"token_dim": 24.0}, (CorruptFile, "token_dim is 24.0")),
    "huge": ({"num_virtual_tokens": 2**70}, (CorruptFile, "num_virtual_tokens is 11805916")),
    "uneven heads": ({"token_dim": 25}, (CorruptFile, "token_dim is 25, expected a multiple")),
    "other modules": ({"modules_to_save": ["score"]}, (FormatError, "modules_to_save: \\['score")),
    "frozen": (
        {"peft_type": "CARTRIDGE", "num_frozen_tokens": 5},
        (CorruptFile, "num_frozen_tokens is 5, expected .* from 0 to .* 4"),
    ),
    "frozen text": (
        {"peft_type": "CARTRIDGE", "num_frozen_tokens": "1"},
        (CorruptFile, "num_frozen_tokens is '1'"),
    ),
    "deep": ({"x": [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]}, (CorruptFile, "nests too deeply")),
    "surrogate": ({"x": "\ud800"}, (CorruptFile, "its config is not JSON")),
}


@pytest.mark.parametrize("fault", CONFIGS)
def test_configs(fault: str, folder: Path, backbone: Backbone) -> None:
    fields, (kind, message) = CONFIGS[fault]
    config = {k: v for k, v in {**GOOD, **fields}.items() if v is not ...}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(kind, match=message) as caught:
        foreword.import_peft(folder, backbone)
    assert str(folder / CONFIG) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "its config is not JSON"),
        (b"[1, 2]", "config"),
        (b'{"a": 1', "its config is not JSON"),
        (b'\xff\xfe{"a": 1}', "its config is not JSON"),
        (json.dumps(GOOD).replace("24", "NaN").encode(), "NaN is not a JSON number"),
        (json.dumps({**GOOD, "x": 0}).replace(' 0}', ' 1e999}').encode(), "config is not JSON"),
        (b'{"peft_type": "LORA", "peft_type": "PREFIX_TUNING"}', "stands twice"),
        (b"[" * 100_000, "config"),
        (b" " * (2**20 + 1), "at most 1048576 are read"),
    ],
    ids=["empty", "list", "cut", "not text", "nan", "inf", "twice", "bomb", "large"],
)  # fmt: skip
def test_configs_that_are_not_json(
    text: bytes, message: str, folder: Path, backbone: Backbone
) -> None:
    (folder / CONFIG).write_bytes(text)
    with pytest.raises(FormatError, match=message):
        foreword.import_peft(folder, backbone)


def spell(header: dict[str, Any], data: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


SIZE = LENGTH * WIDTH * 4
ENTRY = {"dtype": "F32", "shape": [LENGTH, WIDTH], "data_offsets": [0, SIZE]}
DATA = b"\0" * SIZE


def one(data: bytes = DATA, **changes: Any) -> bytes:
    return spell({"prompt_embeddings": {**ENTRY, **changes}}, data)


FILES: dict[str, tuple[bytes, Expected]] = {
    "empty": (b"", (TruncatedFile, "expected at least 8 bytes, found 0")),
    "huge header": (struct.pack("<Q", 2**60), (CorruptFile, "header claims")),
    "cut header": (one()[:60], (TruncatedFile, "header claims")),
    "cut data": (one()[:-1], (TruncatedFile, f"needs {SIZE} bytes, {SIZE - 1} are there")),
    "more data": (one() + b"x", (CorruptFile, "1 bytes follow the tensor")),
    "no json": (struct.pack("<Q", 8) + b"notjson!" + DATA, (CorruptFile, "header is not JSON")),
    "no tensor": (spell({}, b""), (FormatError, "has no tensor 'prompt_embeddings'")),
    "other name": (
        spell({"base_model.score.weight": ENTRY}, DATA),
        (FormatError, "found \\['base_model.score.weight'"),
    ),
    "one more": (
        spell({"prompt_embeddings": ENTRY, "z": {**ENTRY, "data_offsets": [SIZE, 2 * SIZE]}}, 2 * DATA),
        (FormatError, "also holds \\['z'\\]"),
    ),
    "entry is text": (spell({"prompt_embeddings": "F32"}, DATA), (CorruptFile, "described by 'F32'")),
    "wrong width": (one(shape=[LENGTH, WIDTH // 2]), (FormatError, "has shape .* config says")),
    "wrong length": (one(shape=[LENGTH + 1, WIDTH]), (FormatError, "has shape")),
    "three dimensions": (one(shape=[LENGTH, WIDTH, 1]), (FormatError, "has shape")),
    "shape is text": (one(shape="4"), (FormatError, "has shape '4'")),
    "float64": (one(dtype="F64"), (FormatError, "dtype 'F64', expected one of")),
    "integers": (one(dtype="I32"), (FormatError, "dtype 'I32'")),
    "dtype is a list": (one(dtype=["F32"]), (FormatError, "dtype \\['F32'\\]")),
    "offsets": (one(data_offsets=[4, SIZE + 4]), (CorruptFile, "offsets \\[4, ")),
    "negative offset": (one(data_offsets=[-SIZE, 0]), (CorruptFile, "offsets")),
    "metadata": (
        spell({"__metadata__": {"format": 3}, "prompt_embeddings": ENTRY}, DATA),
        (CorruptFile, "cannot be read"),
    ),
    "nan": (one(struct.pack("<f", float("nan")) * (SIZE // 4)), (FormatError, "holds NaN")),
    "infinite": (one(struct.pack("<f", float("inf")) + DATA[4:]), (FormatError, "holds NaN or inf")),
    "pickle": (b"\x80\x02cos\nsystem\nq\x00.", (CorruptFile, "header claims")),
}  # fmt: skip


@pytest.mark.parametrize("fault", FILES)
def test_files(fault: str, folder: Path, backbone: Backbone) -> None:
    content, (kind, message) = FILES[fault]
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        foreword.import_peft(folder, backbone)
    assert str(folder / TENSORS) in str(caught.value)


def nothing(folder: Path) -> None:
    for name in (CONFIG, TENSORS):
        (folder / name).unlink()


def config_is_a_folder(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).mkdir()


def tensors_are_a_folder(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / TENSORS).mkdir()


def tensors_are_a_pipe(folder: Path) -> None:
    """Reading it would wait for ever."""
    (folder / TENSORS).unlink()
    os.mkfifo(folder / TENSORS)


def link_to_nowhere(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(folder / "gone")


def link_to_itself(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(folder / CONFIG)


def no_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (nothing, "there is no .*adapter_config.json; a PEFT checkpoint has"),
        (config_is_a_folder, "adapter_config.json is not a file"),
        (tensors_are_a_folder, "adapter_model.safetensors is not a file"),
        (tensors_are_a_pipe, "adapter_model.safetensors is not a file"),
        (link_to_nowhere, "there is no"),
        (link_to_itself, "there is no|cannot read"),
        (no_tensors, "there is no .*adapter_model.safetensors"),
    ],
)
def test_places(
    damage: Callable[[Path], None], message: str, folder: Path, backbone: Backbone
) -> None:
    damage(folder)
    with pytest.raises(FormatError, match=message):
        foreword.import_peft(folder, backbone)


@pytest.mark.parametrize("path", ["no/such/folder", "nul\0nul", "x" * 5000])
def test_folders_that_are_none(path: str, backbone: Backbone) -> None:
    with pytest.raises(FormatError, match=r"there is no|cannot read"):
        foreword.import_peft(path, backbone)


def test_a_file_in_place_of_the_folder(folder: Path) -> None:
    with pytest.raises(FormatError, match=r"there is no|cannot read"):
        read_config(folder / CONFIG)
