"""Model folders that are damaged, or put together from two models: refused, and the file is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

import foreword
from foreword.backbone import load
from foreword.errors import BackboneError
from tests.conftest import byte_tokenizer

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 9\n"
WEIGHTS = "model.safetensors"


def change(folder: Path, **fields: Any) -> None:
    """Write other values into the folder's config."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder: Path, match: str) -> str:
    """What `load` says, beyond the folder's own name."""
    with pytest.raises(BackboneError, match=match) as caught:
        load(str(folder), dtype="float32")
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 4, 100, 5000, -1])
def test_weights_that_were_cut_off_are_named(tiny_folder: Path, size: int) -> None:
    """A download that broke off raised the parser's own SafetensorError."""
    path = tiny_folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    assert "get it again" in refused(tiny_folder, f"{WEIGHTS} is damaged or cut off")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "pytorch_model.bin"])
def test_pointers_of_git_lfs_are_named(tiny_folder: Path, name: str) -> None:
    """A clone without Git LFS has small text files in the place of weights and tokenizers."""
    if name.endswith(".bin"):
        (tiny_folder / WEIGHTS).unlink()
    (tiny_folder / name).write_bytes(POINTER)
    assert "git lfs pull" in refused(tiny_folder, f"{name}: it is a pointer of Git LFS")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[1]", "{", "", "5", "[" * 100_000, "\ufeff{}"])
def test_small_files_that_are_no_object_are_named(
    tiny_folder: Path, name: str, content: str
) -> None:
    """Transformers passes over a damaged generation_config.json without a word."""
    (tiny_folder / name).write_text(content, encoding="utf-8")
    refused(tiny_folder, f"{name} (is not JSON|holds a JSON)")


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '{"version": "1.0", "model": {"type": "Foo"}}', '"text"', ""]
)
def test_a_foreign_tokenizer_json_is_named(tiny_folder: Path, content: str) -> None:
    """It raised KeyError: 'added_tokens'."""
    (tiny_folder / "tokenizer.json").write_text(content)
    refused(tiny_folder, "tokenizer.json is not a tokenizer of the tokenizers library")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, r"has shape \(258, 32\), by config.json it has \(258, 64\)"),
        ({"vocab_size": 300}, r"\(258, 32\), by config.json it has \(300, 32\)"),
        ({"num_key_value_heads": 4}, "by config.json it has"),
        ({"intermediate_size": 10}, "by config.json it has"),
        ({"num_hidden_layers": 4}, "has no weights for 9 of its parameters"),
        ({"num_hidden_layers": 2}, "by config.json there is no layers.2"),
        ({"hidden_size": "32"}, "'hidden_size'"),
        ({"num_attention_heads": 0}, "ZeroDivisionError"),
        ({"hidden_act": "foo"}, "KeyError: 'foo'"),
        ({"dtype": "zzz"}, "zzz"),
        ({"pad_token_id": 9999}, "Padding_idx"),
        ({"model_type": 7}, "model type `7`"),
        ({"quantization_config": [1]}, "AttributeError"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tiny_folder: Path, fields: dict[str, Any], message: str
) -> None:
    """With fewer layers than there are weights it loaded, and wrote nonsense."""
    change(tiny_folder, **fields)
    refused(tiny_folder, message)


def test_encoders_with_a_head_in_their_folder_load_and_shallower_configs_do_not(
    tmp_path: Path,
) -> None:
    """Weights that the model has no place for are common; those of whole layers are not."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    BertForMaskedLM(BertConfig(vocab_size=258, num_hidden_layers=3, **sizes)).save_pretrained(
        tmp_path
    )
    byte_tokenizer().save_pretrained(tmp_path)
    assert len(load(str(tmp_path)).sites) == 3
    change(tmp_path, num_hidden_layers=2)
    refused(tmp_path, "by config.json there is no encoder.layer.2")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": None}, "name must be text; found None"),
        ({"name": 5}, "name must be text; found 5"),
        ({"name": "x" * 5000}, "cannot load backbone"),
        ({"name": "\ud800"}, "lone surrogate"),
        ({"device": "tpu9"}, "device 'tpu9' cannot be used"),
        ({"device": -1}, "device -1 cannot be used"),
        ({"device": []}, r"device \[\] cannot be used"),
        ({"attention": 5}, "attention must be text"),
        ({"revision": 5}, "revision must be text"),
    ],
)
def test_arguments_are_refused_by_name(
    tiny_folder: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        load(**{"name": str(tiny_folder), **given})


def test_a_folder_may_be_given_as_a_path(tiny_folder: Path) -> None:
    """Its name in a prefix's meta is text all the same, or the prefix could not be saved."""
    assert load(tiny_folder, dtype="float32").name == str(tiny_folder)


def test_a_tokenizer_of_another_vocabulary_is_refused_where_its_tokens_are_used(
    tiny_folder: Path,
) -> None:
    """It raised IndexError in the middle of a forward pass; on a GPU it ends the process."""
    for path in tiny_folder.glob("*token*"):
        path.unlink()
    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(1000)}, unk_token="w0"))
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", eos_token="w1")
    made.save_pretrained(tiny_folder)
    backbone = load(str(tiny_folder), dtype="float32")
    known, unknown = {"a": "w3", "b": "w4"}, {"a": "w5", "b": "w999"}
    settings = foreword.TrainSettings(prompt="{a}", target="{b}", length=2, steps=1)
    beyond = r"token 999 \('w999'\) is not among the 258 that the backbone has embeddings for"
    with pytest.raises(foreword.ForewordError, match=f"row 2: {beyond}"):
        foreword.train(
            backbone,
            [known, unknown],
            foreword.TrainSettings(**{**settings.as_json(), "init": "noise"}),
        )
    with pytest.raises(foreword.ForewordError, match=f"input 2: {beyond}"):
        foreword.generate(backbone, ["w3", "w999"])
    with pytest.raises(foreword.ForewordError, match=beyond):
        backbone.capture("w999")
    with pytest.raises(foreword.ForewordError, match=beyond):
        foreword.features(backbone, ["w999"])
