"""The file format: round trips, the golden file, hostile files, and every flipped bit."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from foreword import format as prefix_file
from foreword import versions
from foreword.errors import (
    CorruptFile,
    FormatError,
    PrefixError,
    StoreError,
    TruncatedFile,
    UnsupportedVersion,
)
from foreword.head import Head
from foreword.prefix import Piece, Prefix, PrefixMeta, Site
from tests.attacks import make, pieces

ATTACKS = Path(make.__file__).parent
GOLDEN = Path(__file__).parent / "golden" / "v1.safetensors"
GOLDEN_2 = GOLDEN.with_name("v2.safetensors")
GOLDEN_3 = GOLDEN.with_name("v3.safetensors")
GOLDEN_4 = GOLDEN.with_name("v4.safetensors")
GOLDEN_5 = GOLDEN.with_name("v5.safetensors")
GOLDEN_5_SEVERAL = GOLDEN.with_name("v5-multilabel.safetensors")
GOLDEN_6 = GOLDEN.with_name("v6.safetensors")
GOLDEN_DIGEST = "c2dbc7ee5f50efe2a5c988907c825859fb4db6479d3d1d7a4257788b07a0739c"
GOLDEN_2_DIGEST = "b519956ecbef624ae7bb7e3a1939f35bfca58d8923bd88687c3877dd6c8c1b26"
GOLDEN_3_DIGEST = "e28b89aa83d4ade32adf796a652925a171cb7435de5fda0dfdedfe4897876a3d"
GOLDEN_4_DIGEST = "d8dd1bdc99d570303fae321e5da1515128cfaa188c203c628390ecaf1ed4fe77"
GOLDEN_5_DIGEST = "93d979e391ee2a583743d932f3b29a3c601a5ca1e810ec8b0ee50f82363269ce"
GOLDEN_5_SEVERAL_DIGEST = "31c21d0ce5c63e87c91a3450d5c55e378502e4e5e4cface53016f1f90b5cda5f"
GOLDEN_6_DIGEST = "1f03321e3e2f1980714f536cb7641ac41332cccd309584b998c66dc08fd92495"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

REFUSED: dict[str, tuple[type[FormatError], str]] = {
    "bytes-empty": (TruncatedFile, "expected at least 8 bytes, found 0"),
    "bytes-seven": (TruncatedFile, "expected at least 8 bytes, found 7"),
    "bytes-half-written": (TruncatedFile, "its header claims 1184 bytes, 636 follow"),
    "bytes-cut-in-header": (TruncatedFile, "its header claims 1184 bytes, 92 follow"),
    "bytes-cut-in-last-tensor": (TruncatedFile, "its tensors need 96 bytes, 91 are there"),
    "bytes-flipped-in-tensor": (CorruptFile, "its contents have digest"),
    "bytes-flipped-in-meta": (CorruptFile, "its contents have digest"),
    "bytes-flipped-in-exponent": (CorruptFile, "its description is not canonical JSON"),
    "bytes-after-the-end": (CorruptFile, "8 bytes follow the last tensor"),
    "bytes-zeroed": (CorruptFile, "its header is not JSON"),
    "header-size-2-62": (CorruptFile, "its header claims 4611686018427387904 bytes; at most"),
    "header-size-over-limit": (CorruptFile, "its header claims 16777217 bytes; at most 16777216"),
    "header-size-over-file": (TruncatedFile, "its header claims 16777216 bytes, 1280 follow"),
    "header-not-json": (CorruptFile, "its header is not JSON: Expecting value"),
    "header-not-utf8": (CorruptFile, "its header is not JSON: 'utf-8' codec can't decode"),
    "header-utf16": (CorruptFile, "its header is not JSON: 'utf-8' codec can't decode"),
    "header-list": (CorruptFile, "its header is a JSON list, expected an object"),
    "header-empty-object": (FormatError, "it is not a Foreword prefix"),
    "header-spaced": (CorruptFile, "its header is not compact JSON"),
    "header-padded-with-newlines": (CorruptFile, "its header is not compact JSON"),
    "header-escaped": (CorruptFile, "its header is not compact JSON"),
    "header-surrogate": (CorruptFile, "its header is not compact JSON"),
    "header-name-twice": (CorruptFile, "its header is not JSON: a name stands twice"),
    "header-nested": (CorruptFile, "its header nests too deeply"),
    "foreign-plain-tensors": (FormatError, "it is not a Foreword prefix"),
    "foreign-peft-checkpoint": (FormatError, "a PEFT checkpoint must be imported first"),
    "foreign-metadata-list": (FormatError, "it is not a Foreword prefix"),
    "metadata-version-newer": (
        UnsupportedVersion,
        "it has format version 999999; this Foreword reads versions 1, 2, 3, 4, 5, 6. Update",
    ),
    "metadata-version-not-text": (
        CorruptFile,
        "its format version is 1, expected one of ('1', '2', '3', '4', '5', '6')",
    ),
    "metadata-version-word": (
        CorruptFile,
        "its format version is 'one', expected one of ('1', '2', '3', '4', '5', '6')",
    ),
    "metadata-version-missing": (
        CorruptFile,
        "its format version is None, expected one of ('1', '2', '3', '4', '5', '6')",
    ),
    "metadata-digest-missing": (CorruptFile, "its metadata has no 'digest'"),
    "metadata-digest-not-hexadecimal": (CorruptFile, r"its digest is '\x1b[2Jg000"),
    "metadata-digest-null": (CorruptFile, "its metadata's digest is None, expected text"),
    "metadata-digest-of-another": (CorruptFile, "its contents have digest"),
    "metadata-description-object": (CorruptFile, "its metadata's prefix is {'dtype': 'float32'"),
    "metadata-unknown": (CorruptFile, "its metadata has an unknown 'comment'"),
    "description-not-json": (CorruptFile, "its description is not JSON: Expecting property name"),
    "description-list": (CorruptFile, "its description is a JSON list, expected an object"),
    "description-empty-text": (CorruptFile, "its description is not JSON: Expecting value"),
    "description-spaced": (CorruptFile, "its description is not canonical JSON"),
    "description-name-twice": (CorruptFile, "its description is not JSON: a name stands twice"),
    "description-unknown-field": (CorruptFile, "its description has an unknown 'extra'"),
    "description-missing-field": (CorruptFile, "its description has no 'length'"),
    "description-nan": (CorruptFile, "its description is not JSON: NaN is not a JSON number"),
    "description-infinity": (CorruptFile, "-Infinity is not a JSON number"),
    "description-overflow": (CorruptFile, "Out of range float values are not JSON"),
    "description-huge-number": (CorruptFile, "its description is not JSON: Exceeds the limit"),
    "description-surrogate": (CorruptFile, "surrogates not allowed"),
    "description-nested-65": (CorruptFile, "its description nests too deeply"),
    "description-nested-600": (CorruptFile, "its description nests too deeply"),
    "description-nested-9000": (CorruptFile, "its description nests too deeply"),
    "dtype-float64": (FormatError, "its dtype is 'float64'; expected one of"),
    "dtype-int8": (FormatError, "its dtype is 'int8'; expected one of"),
    "dtype-not-text": (FormatError, "its dtype is ['float32']; expected one of"),
    "dtype-described-otherwise": (FormatError, "'decoder.0.key' has dtype 'F32', expected 'BF16'"),
    "dtype-of-one-tensor": (FormatError, "'decoder.1.value' has dtype 'F16', expected 'F32'"),
    "shape-turned": (FormatError, "'decoder.0.key' has shape [1, 2, 3], expected [1, 3, 2]"),
    "shape-flat": (FormatError, "'decoder.0.key' has shape [6], expected [1, 3, 2]"),
    "shape-with-true": (FormatError, "'decoder.0.key' has shape [True, 3, 2]"),
    "shape-with-fraction": (FormatError, "'decoder.0.key' has shape [1, 3.0, 2]"),
    "shape-longer": (FormatError, "'decoder.0.key' has shape [1, 3, 2], expected [1, 4, 2]"),
    "tensor-nan": (FormatError, "tensor decoder.1.value holds NaN or infinity"),
    "tensor-infinity": (FormatError, "tensor decoder.0.key holds NaN or infinity"),
    "tensor-missing": (CorruptFile, "'decoder.1.value' is missing"),
    "tensor-unknown": (CorruptFile, "'decoder.2.key' has no site"),
    "tensor-path": (CorruptFile, "'../x' has no site"),
    "tensor-too-few-bytes": (CorruptFile, "'decoder.1.value' spans [72, 92], expected 24 bytes"),
    "tensor-gap": (CorruptFile, "its tensors overlap or leave gaps"),
    "tensor-overlap": (CorruptFile, "its tensors overlap or leave gaps"),
    "offsets-negative": (CorruptFile, "its tensors overlap or leave gaps"),
    "offsets-huge": (TruncatedFile, "its tensors need 1180591620717411303448 bytes, 96 are there"),
    "offsets-of-fractions": (CorruptFile, "'decoder.0.key' has offsets [0.0, 24.0]"),
    "offsets-three": (CorruptFile, "'decoder.0.key' has offsets [0, 24, 48]"),
    "stack-path": (CorruptFile, "site 1: stack is '../x', expected a lower-case word"),
    "stack-empty": (CorruptFile, "site 1: stack is '', expected a lower-case word"),
    "stack-not-ascii": (CorruptFile, "site 1: stack is 'décodeur', expected a lower-case word"),
    "stack-number": (CorruptFile, "site 1: stack is 7, expected a lower-case word"),
    "site-name-control": (CorruptFile, r"site 1: name is '\x1b[31mmodel\n'"),
    "site-name-long": (CorruptFile, "site 1: name is 'aaaaaa"),
    "site-name-null": (CorruptFile, "site 1: name is None"),
    "site-heads-true": (CorruptFile, "site 1: kv_heads is True, expected a whole number"),
    "site-key-dim-zero": (CorruptFile, "site 1: key_dim is 0, expected a whole number"),
    "site-value-dim-text": (CorruptFile, "site 1: value_dim is '2', expected a whole number"),
    "site-window-negative": (CorruptFile, "site 1: window is -1, expected null or a whole number"),
    "site-layer-negative": (CorruptFile, "site 1: layer is -1, expected 0 or a whole number"),
    "site-layer-huge": (CorruptFile, "site 1: layer is 2147483648, expected 0 or"),
    "site-text": (CorruptFile, "site 1 is 'decoder.1', expected an object"),
    "site-unknown-field": (CorruptFile, "site 1 has an unknown 'device'"),
    "sites-none": (CorruptFile, "its sites are [], expected a list of at least one"),
    "sites-object": (CorruptFile, "its sites are {'0':"),
    "sites-one-twice": (CorruptFile, "its description names a site twice"),
    "length-zero": (CorruptFile, "its length is 0, expected a whole number"),
    "length-negative": (CorruptFile, "its length is -3, expected a whole number"),
    "length-true": (CorruptFile, "its length is True, expected a whole number"),
    "length-fraction": (CorruptFile, "its length is 3.0, expected a whole number"),
    "length-huge": (CorruptFile, "its length is 1099511627776, expected a whole number"),
    "length-at-limit": (FormatError, "has shape [1, 3, 2], expected [1, 2147483647, 2]"),
    "meta-list": (CorruptFile, "its meta is [], expected an object"),
    "meta-unknown-field": (CorruptFile, "its meta has an unknown 'pickle'"),
    "meta-missing-field": (CorruptFile, "its meta has no 'bos'"),
    "meta-backbone-number": (CorruptFile, "meta field 'backbone' must be text; found 7"),
    "meta-revision-list": (
        CorruptFile,
        "meta field 'revision' must be text or null; found ['main']",
    ),
    "meta-recipe-list": (CorruptFile, "meta field 'recipe' must be an object; found []"),
    "meta-training-null": (CorruptFile, "meta field 'training' must be an object; found None"),
    "meta-parents-text": (CorruptFile, "meta field 'parents' must be a list of digests; found 'ab"),
    "meta-parents-numbers": (
        CorruptFile,
        "meta field 'parents' must be a list of digests; found [1",
    ),
    "policy-positions": (CorruptFile, "positions policy 'absolute' is unknown"),
    "policy-windows": (CorruptFile, "windows policy '' is unknown"),
    "policy-bos": (CorruptFile, "bos policy 'Prefix' is unknown"),
    "policy-softmax": (CorruptFile, "softmax policy 'both' is unknown"),
    "policy-softmax-number": (CorruptFile, "meta field 'softmax' must be text; found 2"),
    "policy-softmax-missing": (CorruptFile, "its meta has no 'softmax'"),
    "policy-softmax-joint": (
        CorruptFile,
        "meta field 'softmax' is 'joint'; such a prefix is a file",
    ),
    "policy-softmax-in-version-1": (CorruptFile, "its meta has an unknown 'softmax'"),
    "policy-softmax-joint-in-version-1": (CorruptFile, "its meta has an unknown 'softmax'"),
    "head-list": (CorruptFile, "its head is [], expected an object"),
    "head-missing-field": (CorruptFile, "its head has no 'pooling'"),
    "head-unknown-field": (CorruptFile, "its head has an unknown 'code'"),
    "head-task-unknown": (
        CorruptFile,
        "found 'rank'",
    ),
    "head-task-number": (CorruptFile, "its head: task is 3, expected text or null"),
    "head-labels-text": (CorruptFile, "its head: labels are 'abc', expected a list"),
    "head-labels-twice": (
        CorruptFile,
        "at least two labels, all different; found 3",
    ),
    "head-labels-one": (
        CorruptFile,
        "at least two labels, all different; found 1",
    ),
    "head-labels-numbers": (
        CorruptFile,
        "its head: a label is 1 to 256 printable characters; found 0",
    ),
    "head-labels-control": (
        CorruptFile,
        "printable characters; found '\\x1b[2J'",
    ),
    "head-labels-line-break": (CorruptFile, "printable characters; found 'c\\u2028d'"),
    "head-labels-private": (CorruptFile, "printable characters; found '\\ue000'"),
    "head-labels-turned": (CorruptFile, "printable characters; found '\\u202etxt.exe'"),
    "head-labels-long": (
        CorruptFile,
        "1 to 256 printable characters; found 'cccccccccccc...cccc",
    ),
    "head-pooling-unknown": (
        CorruptFile,
        "found 'max'",
    ),
    "head-pooling-of-tags": (
        CorruptFile,
        "a head for 'tag' has a pooling among (None,)",
    ),
    "head-span-otherwise": (
        CorruptFile,
        "a head that answers has the labels ('start', 'end')",
    ),
    "head-width-zero": (
        CorruptFile,
        "its head: width is 0",
    ),
    "head-width-true": (
        CorruptFile,
        "its head: width is True",
    ),
    "head-width-huge": (
        FormatError,
        "tensor 'head.weight' has shape [3, 2], expected [3, 2147483647]",
    ),
    "head-shape": (FormatError, "tensor 'head.weight' has shape [3, 2], expected [3, 3]"),
    "head-dtype": (FormatError, "tensor 'head.bias' has dtype 'F16', expected 'F32'"),
    "head-nan": (FormatError, "tensor head.bias holds NaN or infinity; the prefix is unusable"),
    "head-tensors-missing": (
        CorruptFile,
        "'head.bias' is missing",
    ),
    "head-missing-in-version-3": (CorruptFile, "its description has no 'head'"),
    "head-without-softmax": (CorruptFile, "its meta has no 'softmax'"),
    "head-in-version-1": (CorruptFile, "its description has an unknown 'head'"),
    "head-in-version-2": (CorruptFile, "its description has an unknown 'head'"),
    "head-in-version-4-without-pair": (CorruptFile, "its head has no 'pair'"),
    "head-regress-in-version-3": (CorruptFile, "task is 'regress'; version 5 is for 'regress'"),
    "head-classify-in-version-5": (CorruptFile, "task is 'classify'; version 5 is for 'regress'"),
    "head-regress-labels": (CorruptFile, "a head that measures has the labels ('value',)"),
    "head-regress-pair-number": (CorruptFile, "its head: pair is 0, expected true or false"),
    "head-regress-mean-whole": (CorruptFile, "a head that measures has a finite mean; found 3"),
    "head-regress-mean-text": (CorruptFile, "a head that measures has a finite mean; found '3.0'"),
    "head-regress-deviation-zero": (CorruptFile, "a deviation above 0; found 0.0"),
    "head-regress-deviation-missing": (CorruptFile, "a deviation above 0; found None"),
    "head-regress-pooling-missing": (CorruptFile, "a head for 'regress' has a pooling among"),
    "head-multilabel-in-version-3": (
        CorruptFile,
        "task is 'multilabel'; version 5 is for 'regress' and 'multilabel'",
    ),
    "head-multilabel-in-version-4": (CorruptFile, "task is 'multilabel'; version 5 is for"),
    "head-multilabel-doubled": (CorruptFile, "at least two labels, all different; found 3"),
    "head-multilabel-fewer-labels": (
        FormatError,
        "tensor 'head.weight' has shape [3, 2], expected [2, 2]",
    ),
    "head-multilabel-one-label": (CorruptFile, "at least two labels, all different; found 1"),
    "head-multilabel-shape": (
        FormatError,
        "tensor 'head.weight' has shape [3, 2], expected [3, 3]",
    ),
    "head-multilabel-with-scale": (CorruptFile, "its head has an unknown 'deviation'"),
    "head-multilabel-pair-missing": (CorruptFile, "its head has no 'pair'"),
    "head-multilabel-pair-number": (CorruptFile, "its head: pair is 1, expected true or false"),
    "head-multilabel-pooling-missing": (
        CorruptFile,
        "a head for 'multilabel' has a pooling among",
    ),
    "head-pair-in-version-3": (CorruptFile, "its head has an unknown 'pair'"),
    "head-pair-false": (CorruptFile, "its head: pair is False, expected true"),
    "head-pair-number": (CorruptFile, "its head: pair is 1, expected true"),
    "head-pair-of-tags": (CorruptFile, "a head that reads pairs of texts classifies them"),
    **{name: (CorruptFile, part) for name, part in pieces.REFUSED.items()},
}
"""Per hostile file the exact class of the error, and a part of its message that names the thing."""


def golden() -> Prefix:
    """The prefix of the golden file, number by number."""
    sites = (
        Site("model.layers.0.self_attn", "decoder", 0, 2, 4, 3, window=9),
        Site("model.layers.1.self_attn", "decoder", 1, 1, 2, 5),
    )
    keys = tuple(numbers(s.kv_heads, s.key_dim, s.layer, sign=1) for s in sites)
    values = tuple(numbers(s.kv_heads, s.value_dim, s.layer, sign=-1) for s in sites)
    meta = PrefixMeta(
        backbone="tiny/llama",
        family="llama",
        revision="0123abc",
        fingerprint="12" * 32,
        tokenizer="34" * 32,
        positions="offset",
        windows="windowed",
        bos="prefix",
        recipe={
            "prompt": 'Ünïcode „日本“ 🙂 "{mr}"\n\t\\',
            "settings": {"rate": 5e-05, "large": 1e22, "half": 0.5, "seeds": [1, 2], "none": None},
            "naïve": True,
        },
        training={"steps": 12, "best_eval_nll": -0.25, "data": {"rows": 3}},
        parents=("56" * 32,),
    )
    return Prefix(sites, keys, values, meta)


def numbers(heads: int, dim: int, layer: int, *, sign: int) -> torch.Tensor:
    """(H, 3, dim): the number at (h, p, d) is sign * (1000 layer + 100 h + 10 p + d) / 8 - 1."""

    def number(h: int, p: int, d: int) -> float:
        return sign * (1000 * layer + 100 * h + 10 * p + d) / 8 - 1

    rows = [[[number(h, p, d) for d in range(dim)] for p in range(3)] for h in range(heads)]
    return torch.tensor(rows, dtype=torch.float32)


def with_head() -> Prefix:
    """The golden prefix with a softmax of its own and a head, number by number."""
    rows = [[(10 * label + column) / 8 - 1 for column in range(4)] for label in range(3)]
    bias = torch.tensor([-1.0, -0.5, 0.0])
    head = Head("tag", ("O", "B-Ort", "日本"), None, torch.tensor(rows), bias)
    return golden().with_meta(softmax="own").with_head(head)


def noise(dtype: torch.dtype = torch.float32, seed: int = 0) -> Prefix:
    """A prefix of the golden one's geometry and meta with random numbers, tiny and huge."""
    generator = torch.Generator().manual_seed(seed)

    def like(tensor: torch.Tensor) -> torch.Tensor:
        random_tensor = torch.randn(tensor.shape, generator=generator).to(dtype)
        random_tensor[0, 0, :2] = torch.tensor([-0.0, torch.finfo(dtype).max]).to(dtype)
        random_tensor[0, 1, :2] = torch.tensor([torch.finfo(dtype).tiny, -1e-7]).to(dtype)
        return random_tensor

    old = golden()
    return Prefix(old.sites, tuple(map(like, old.keys)), tuple(map(like, old.values)), old.meta)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have dtype, shape and every bit in common."""
    whole = torch.int32 if one.dtype == torch.float32 else torch.int16
    return one.dtype == other.dtype and torch.equal(one.view(whole), other.view(whole))


# Round trips


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_round_trip_keeps_every_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    prefix = noise(dtype)
    prefix_file.save(prefix, tmp_path / "p.safetensors")
    found = prefix_file.load(tmp_path / "p.safetensors")
    assert found.dtype == dtype
    assert found.sites == prefix.sites
    assert found.meta == prefix.meta
    assert found.digest == prefix.digest
    for old, new in zip((*prefix.keys, *prefix.values), (*found.keys, *found.values), strict=True):
        assert same_bits(old, new)


def test_an_empty_meta_survives(tmp_path: Path) -> None:
    ones = torch.ones(1, 1, 2)
    bare = Prefix((Site("", "decoder", 0, 1, 2, 2),), (ones,), (ones,))
    prefix_file.save(bare, tmp_path / "p")
    assert prefix_file.load(tmp_path / "p").meta == PrefixMeta()


def test_the_header_is_what_safetensors_reads(tmp_path: Path) -> None:
    prefix = noise(torch.bfloat16)
    prefix_file.save(prefix, tmp_path / "p.safetensors")
    with safetensors.safe_open(tmp_path / "p.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        first = file.get_tensor("decoder.0.key")
    assert names == {f"decoder.{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")}
    assert same_bits(first, prefix.keys[0])
    assert json.loads(metadata["prefix"])["meta"]["recipe"] == prefix.meta.recipe
    assert (metadata["format"], metadata["version"]) == ("foreword-prefix", "1")


def test_a_file_that_safetensors_wrote_again_loads() -> None:
    prefix = noise()
    content = prefix_file.encode(prefix)
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    again = safetensors.torch.save(safetensors.torch.load(content), metadata)
    assert prefix_file.decode(again).digest == prefix.digest


def test_the_same_prefix_gives_the_same_bytes() -> None:
    """The writer of safetensors puts the metadata in another order each time."""
    assert len({prefix_file.encode(noise()) for _ in range(8)}) == 1


def test_the_digest_is_the_description_and_the_data_as_specified() -> None:
    content = prefix_file.encode(noise(torch.float16))
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    expected = hashlib.sha256(metadata["prefix"].encode() + content[8 + size :]).hexdigest()
    assert noise(torch.float16).digest == metadata["digest"] == expected


def test_the_writer_agrees_with_one_written_from_the_specification() -> None:
    description = make.described()
    meta = PrefixMeta(**{**description["meta"], "parents": ()})
    tensors = [torch.arange(6 * n, 6 * n + 6.0).reshape(1, 3, 2) for n in range(4)]
    sites = tuple(Site(**site) for site in description["sites"])
    prefix = Prefix(sites, tuple(tensors[:2]), tuple(tensors[2:]), meta)
    assert prefix_file.encode(prefix) == make.good()
    assert prefix_file.decode(make.good()).digest == prefix.digest


def test_tensors_that_share_memory_are_saved() -> None:
    """The writer of safetensors refused a prefix whose key and value were one tensor."""
    shared = torch.arange(6.0).reshape(1, 3, 2)
    site = Site("attn", "decoder", 0, 1, 2, 2)
    found = prefix_file.decode(prefix_file.encode(Prefix((site,), (shared,), (shared,))))
    assert torch.equal(found.keys[0], shared)
    assert torch.equal(found.values[0], shared)


def test_tensors_with_gradients_and_odd_strides_are_saved() -> None:
    turned = torch.arange(12.0).reshape(1, 4, 3).transpose(1, 2).requires_grad_()
    site = Site("attn", "decoder", 0, 1, 4, 4)
    found = prefix_file.decode(prefix_file.encode(Prefix((site,), (turned,), (turned,))))
    assert torch.equal(found.keys[0], turned)
    assert not found.keys[0].requires_grad


def test_recipes_come_back_as_they_were_given() -> None:
    """Tuples and keys that were numbers came back as lists and text, so that metas differed."""
    meta = PrefixMeta(recipe={"seeds": (1, 2), "by layer": {10: "a", 9: "b"}, "text": "naïve \x7f"})
    prefix = noise().with_meta(recipe=meta.recipe)
    found = prefix_file.decode(prefix_file.encode(prefix))
    assert found.meta == prefix.meta
    assert found.meta.recipe["seeds"] == [1, 2]
    assert found.meta.recipe["by layer"] == {"9": "b", "10": "a"}


# The golden file


def test_the_golden_file_loads() -> None:
    found, expected = prefix_file.load(GOLDEN), golden()
    assert found.digest == GOLDEN_DIGEST
    assert found.length == 3
    assert found.dtype == torch.float32
    assert found.sites == expected.sites
    assert found.meta == expected.meta
    assert found.meta.recipe["prompt"] == 'Ünïcode „日本“ 🙂 "{mr}"\n\t\\'
    assert found.meta.parents == ("56" * 32,)
    for old, new in zip(
        (*expected.keys, *expected.values), (*found.keys, *found.values), strict=True
    ):
        assert same_bits(old, new)


def test_the_golden_file_holds_these_very_numbers() -> None:
    found = prefix_file.load(GOLDEN)
    assert found.keys[0][1, 2, 3].item() == 123 / 8 - 1
    assert found.keys[1][0, 1, 1].item() == 1011 / 8 - 1
    assert found.values[0][1, 0, 2].item() == -102 / 8 - 1
    assert found.values[1][0, 2, 4].item() == -1024 / 8 - 1


def test_version_1_is_still_written_byte_for_byte() -> None:
    assert prefix_file.encode(golden()) == GOLDEN.read_bytes()


def test_the_golden_file_of_version_2_loads_and_is_still_written() -> None:
    found, expected = prefix_file.load(GOLDEN_2), golden().with_meta(softmax="own")
    assert found.digest == GOLDEN_2_DIGEST == expected.digest
    assert found.meta == expected.meta
    assert found.meta.softmax == "own"
    assert found.keys[0][1, 2, 3].item() == 123 / 8 - 1
    assert prefix_file.encode(expected) == GOLDEN_2.read_bytes()


def test_the_golden_file_of_version_3_loads_and_is_still_written() -> None:
    found, expected = prefix_file.load(GOLDEN_3), with_head()
    assert found.digest == GOLDEN_3_DIGEST == expected.digest
    assert found.head is not None
    assert found.head.labels == ("O", "B-Ort", "日本")
    assert (found.head.task, found.head.pooling, found.head.width) == ("tag", None, 4)
    assert found.head.weight[2, 3].item() == 23 / 8 - 1
    assert found.head.bias.tolist() == [-1.0, -0.5, 0.0]
    assert found.meta.softmax == "own"
    assert prefix_file.encode(expected) == GOLDEN_3.read_bytes()


def for_pairs() -> Prefix:
    """The golden prefix with a head that classifies pairs of texts, number by number."""
    tags = with_head().head
    assert tags is not None
    labels = ("entailment", "neutral", "contradiction")
    return golden().with_head(Head("classify", labels, "first", tags.weight, tags.bias, pair=True))


def test_the_golden_file_of_version_4_loads_and_is_still_written() -> None:
    found, expected = prefix_file.load(GOLDEN_4), for_pairs()
    assert found.digest == GOLDEN_4_DIGEST == expected.digest
    assert found.head is not None
    assert (found.head.task, found.head.pooling, found.head.pair) == ("classify", "first", True)
    assert found.head.labels == ("entailment", "neutral", "contradiction")
    assert found.head.weight[2, 3].item() == 23 / 8 - 1
    assert found.meta.softmax == "joint"
    assert prefix_file.encode(expected) == GOLDEN_4.read_bytes()


def that_measures() -> Prefix:
    """The golden prefix with a head that measures pairs of texts, number by number."""
    rows, bias = torch.tensor([[-1.0, -0.875, -0.75, -0.625]]), torch.tensor([0.25])
    head = Head("regress", ("value",), "mean", rows, bias, True, mean=3.0, deviation=1e-05)
    return golden().with_head(head)


def test_the_golden_file_of_version_5_loads_and_is_still_written() -> None:
    found, expected = prefix_file.load(GOLDEN_5), that_measures()
    assert found.digest == GOLDEN_5_DIGEST == expected.digest
    assert found.head is not None
    assert (found.head.task, found.head.pooling, found.head.pair) == ("regress", "mean", True)
    assert (found.head.mean, found.head.deviation) == (3.0, 1e-05)
    assert found.head.weight.tolist() == [[-1.0, -0.875, -0.75, -0.625]]
    assert prefix_file.encode(expected) == GOLDEN_5.read_bytes()


def for_several_labels() -> Prefix:
    """The golden prefix with a head for several labels of a text, number by number."""
    tags = with_head().head
    assert tags is not None
    labels = ("Sport", "Politik", "日本")
    return golden().with_head(Head("multilabel", labels, "last", tags.weight, tags.bias))


def test_the_golden_file_of_several_labels_loads_and_is_still_written() -> None:
    found, expected = prefix_file.load(GOLDEN_5_SEVERAL), for_several_labels()
    assert found.digest == GOLDEN_5_SEVERAL_DIGEST == expected.digest
    assert found.head is not None
    assert (found.head.task, found.head.pooling, found.head.pair) == ("multilabel", "last", False)
    assert found.head.labels == ("Sport", "Politik", "日本")
    assert (found.head.mean, found.head.deviation) == (None, None)
    assert found.head.weight[2, 3].item() == 23 / 8 - 1
    assert prefix_file.encode(expected) == GOLDEN_5_SEVERAL.read_bytes()


def of_pieces() -> Prefix:
    """The golden prefix in pieces with names and strengths, and a head, number by number."""
    pieces = (Piece("förmlich", 1, 0.5), Piece("", 2, -1e-05))
    return with_head().with_meta(softmax="joint", pieces=pieces)


def test_the_golden_file_of_version_6_loads_and_is_still_written() -> None:
    found, expected = prefix_file.load(GOLDEN_6), of_pieces()
    assert found.digest == GOLDEN_6_DIGEST == expected.digest
    assert found.meta.pieces == (Piece("förmlich", 1, 0.5), Piece("", 2, -1e-05))
    assert (found.meta.combination, found.meta.softmax) == ("attention", "joint")
    assert found.head is not None
    assert (found.head.task, found.head.pair) == ("tag", False)
    assert found.keys[0][1, 2, 3].item() == 123 / 8 - 1
    assert prefix_file.encode(expected) == GOLDEN_6.read_bytes()


def test_a_head_comes_back_bit_for_bit(tmp_path: Path) -> None:
    prefix = with_head().to(torch.bfloat16)
    prefix_file.save(prefix, tmp_path / "p.safetensors")
    found = prefix_file.load(tmp_path / "p.safetensors")
    assert found.digest == prefix.digest
    assert found.head is not None
    assert prefix.head is not None
    assert found.head.describe() == prefix.head.describe()
    for old, new in zip(prefix.tensors, found.tensors, strict=True):
        assert same_bits(old, new)
    with safetensors.safe_open(tmp_path / "p.safetensors", framework="pt") as file:
        assert same_bits(file.get_tensor("head.weight"), prefix.head.weight)


NAMES = (
    "10\u00a0000 €",  # a no-break space
    "می\u200cخواهم",  # a joiner that is none (ZWNJ)  # noqa: RUF001
    "न\u094d\u200dय",  # one that is (ZWJ)
    "東京\u3000都",  # an ideographic space
    "👩\u200d💻",  # an emoji of two
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # a flag, by tags
    "שלום\u200f!",  # a mark of direction
    "a\u00adb",  # a soft hyphen
    "\U0001fae9",  # newer than Python's tables
)


def test_class_names_of_any_script_come_back(tmp_path: Path) -> None:
    """Whatever str.isprintable refuses was none: spaces but one, joiners, and newer emoji."""
    head = Head("tag", NAMES, None, torch.zeros(len(NAMES), 4), torch.zeros(len(NAMES)))
    prefix = golden().with_head(head)
    prefix_file.save(prefix, tmp_path / "p.safetensors")
    found = prefix_file.load(tmp_path / "p.safetensors")
    assert found.head is not None
    assert found.head.labels == NAMES
    assert found.digest == prefix.digest


@pytest.mark.parametrize(
    "name", ["", "a\nb", "a\tb", "\x7f", "\x85", "\u2028", "\u2029", "\ue000", "\u202eb", "\ud800"]
)
def test_what_is_no_name_in_a_file_is_none_in_a_head(name: str) -> None:
    with pytest.raises(PrefixError, match="a label is 1 to 256 printable characters"):
        Head("tag", ("a", name), None, torch.zeros(2, 4), torch.zeros(2))


def test_a_head_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    prefix = with_head()
    assert prefix.head is not None
    broken = prefix.head.made_of(prefix.head.weight, torch.tensor([0.0, math.nan, 0.0]))
    with pytest.raises(PrefixError, match=r"head\.bias holds NaN"):
        prefix_file.save(prefix.with_head(broken), tmp_path / "p.safetensors")


def test_a_prefix_is_written_in_the_first_version_that_can_say_it() -> None:
    """The digest does not cover the version, so each description has one version only."""
    joint, own = golden(), golden().with_meta(softmax="own")
    assert b'"version":"1"' in prefix_file.encode(joint)
    assert b'"version":"2"' in prefix_file.encode(own)
    assert "softmax" not in joint.describe()["meta"]
    for content, one, other in (
        (prefix_file.encode(joint), b'"version":"1"', b'"version":"2"'),
        (prefix_file.encode(own), b'"version":"2"', b'"version":"1"'),
    ):
        with pytest.raises(CorruptFile, match="'softmax'"):
            prefix_file.decode(content.replace(one, other))


# Headers alone


@pytest.mark.parametrize("file", [GOLDEN, GOLDEN_2, GOLDEN_3, GOLDEN_4, GOLDEN_5, GOLDEN_6])
def test_an_outline_is_the_prefix_without_its_contents(file: Path) -> None:
    whole, outline = prefix_file.load(file), prefix_file.outline(file)
    assert outline.describe() == whole.describe()
    assert {tensor.device.type for tensor in outline.tensors} == {"meta"}
    assert prefix_file.claims(file) == json.loads(json.dumps(whole.describe()))


def test_an_outline_does_not_read_the_tensors(tmp_path: Path) -> None:
    """A file of which only the header is there, and holes in place of the rest."""
    content = GOLDEN.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    file = tmp_path / "hollow.safetensors"
    file.write_bytes(content[:size])
    os.truncate(file, len(content))
    assert prefix_file.outline(file).describe() == golden().describe()
    with pytest.raises(CorruptFile, match="its contents have digest"):
        prefix_file.load(file)


# Hostile files


def test_the_kept_files_are_those_of_the_script() -> None:
    kept = {file.stem: file.read_bytes() for file in ATTACKS.glob("*.safetensors")}
    assert kept == make.attacks()
    assert set(kept) == set(REFUSED)
    assert max(map(len, kept.values())) < 50_000


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_is_refused_by_its_own_error(name: str) -> None:
    error, part = REFUSED[name]
    file = ATTACKS / f"{name}.safetensors"
    tracemalloc.start()
    with pytest.raises(FormatError) as caught:
        prefix_file.load(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    message = str(caught.value)
    assert caught.type is error
    assert message.startswith(f"{file}: ")
    assert part in message
    assert len(message) < 1000
    assert message.isprintable()
    assert peak < 4 * 2**20


@pytest.mark.parametrize("name", REFUSED)
def test_the_header_of_a_hostile_file_is_read_or_refused(name: str) -> None:
    """An outline does not see the tensors; what the header itself shows is refused as in loading."""
    file = ATTACKS / f"{name}.safetensors"
    error, part = REFUSED[name]
    for read in (prefix_file.claims, prefix_file.outline):
        try:
            read(file)
        except FormatError as caught:
            refusal = caught
        else:
            continue
        if read is prefix_file.outline:
            assert type(refusal) is error
            assert part in str(refusal)


@pytest.mark.parametrize(
    "contents", [make.good, lambda: make.as_version_2(softmax="own"), pieces.as_version_6]
)
def test_every_flipped_bit_is_found(contents: Callable[[], bytes]) -> None:
    """One bit of an exponent's ``e`` turned 5e-05 into 5E-05, the same number: the file loaded."""
    content = contents()
    for place in range(len(content)):
        for bit in range(8):
            altered = bytearray(content)
            altered[place] ^= 1 << bit
            with pytest.raises(FormatError):
                prefix_file.decode(bytes(altered))


def test_every_truncation_is_found() -> None:
    content = make.good()
    for size in range(len(content)):
        with pytest.raises(TruncatedFile):
            prefix_file.decode(content[:size])


@pytest.mark.parametrize("seed", range(300))
def test_a_random_change_is_found(seed: int) -> None:
    content, chance = GOLDEN.read_bytes(), random.Random(seed)
    altered = bytearray(content)
    place = chance.randrange(len(content))
    change = chance.choice(("byte", "drop", "double", "swap", "cut"))
    if change == "byte":
        altered[place] = (altered[place] + chance.randrange(1, 256)) % 256
    elif change == "drop":
        del altered[place]
    elif change == "double":
        altered.insert(place, altered[place])
    elif change == "swap":
        other = next(i for i in range(len(content)) if content[i] != content[place])
        altered[place], altered[other] = altered[other], altered[place]
    else:
        del altered[place:]
    assert bytes(altered) != content
    with pytest.raises(FormatError):
        prefix_file.decode(bytes(altered))


def test_a_model_of_many_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    """The whole file was read before its header was looked at."""
    place = tmp_path / "model.safetensors"
    weight = {"dtype": "F32", "shape": [2**32], "data_offsets": [0, 2**34]}
    header = make.compact({"weight": weight})
    place.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(place, 8 + len(header) + 2**34)
    tracemalloc.start()
    with pytest.raises(FormatError, match="not a Foreword prefix"):
        prefix_file.load(place)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_tensors_that_safetensors_cannot_read_are_a_corrupt_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(content: bytes) -> None:
        raise RuntimeError("a check that is stricter than ours")

    monkeypatch.setattr(safetensors.torch, "load", broken)
    with pytest.raises(CorruptFile, match="stricter than ours"):
        prefix_file.decode(make.good())


@pytest.mark.parametrize("name", ["missing", "folder", "nul\0"])
def test_what_cannot_be_read_is_a_format_error_that_names_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FormatError, match=r"cannot read .*" + name):
        prefix_file.load(tmp_path / name)


# Saving


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_not_saved(number: float, tmp_path: Path) -> None:
    prefix = noise()
    prefix.values[1][0, 2, 1] = number
    with pytest.raises(PrefixError, match=r"decoder\.1\.value holds NaN or infinity"):
        prefix_file.save(prefix, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"stack": "../x"}, r"stack is '\.\./x'"),
        ({"name": "a\nb"}, r"name is 'a\\nb'"),
        ({"layer": 0}, "names a site twice"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_what_would_not_load_is_not_saved(
    changes: dict[str, object], part: str, tmp_path: Path
) -> None:
    first = Site("attn.0", "decoder", 0, 1, 2, 2)
    fields = {"name": "attn.1", "stack": "decoder", "layer": 1, **changes}
    second = Site(**fields, kv_heads=1, key_dim=2, value_dim=2)  # type: ignore[arg-type]
    ones = (torch.ones(1, 3, 2), torch.ones(1, 3, 2))
    with pytest.raises(PrefixError, match=part):
        prefix_file.save(Prefix((first, second), ones, ones), tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_a_prefix_that_was_changed_in_place_is_not_saved(tmp_path: Path) -> None:
    prefix = noise()
    assert prefix.digest
    prefix.keys[0][0, 0, 0] = 7
    with pytest.raises(PrefixError, match="its contents have digest"):
        prefix_file.save(prefix, tmp_path / "p")


def test_a_full_disk_leaves_the_old_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "p.safetensors"
    prefix_file.save(golden(), place)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"p\.safetensors: the disk is full"):
        prefix_file.save(noise(), place)
    assert prefix_file.load(place).digest == GOLDEN_DIGEST
    assert list(tmp_path.iterdir()) == [place]


def test_a_process_that_dies_while_saving_leaves_the_old_prefix(tmp_path: Path) -> None:
    place = tmp_path / "p.safetensors"
    prefix_file.save(golden(), place)
    script = (
        "import os, sys\n"
        "from foreword import format as prefix_file\n"
        "from tests.test_format import noise\n"
        "prefix = noise()\n"
        "os.fsync = lambda handle: os._exit(9)\n"
        "prefix_file.save(prefix, sys.argv[1])\n"
    )
    command = [sys.executable, "-c", script, str(place)]
    code = subprocess.run(command, check=False, cwd=ATTACKS.parents[1]).returncode
    assert code == 9
    assert prefix_file.load(place).digest == GOLDEN_DIGEST
    prefix_file.save(noise(), place)
    assert prefix_file.load(place).digest == noise().digest


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    """Its first bytes were read as a size: "its header claims 2336349533906826614 bytes"."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(
        CorruptFile, match="a.safetensors: it is a pointer of Git LFS.*git lfs pull"
    ):
        prefix_file.load(path)


def test_one_table_says_what_each_version_is_for() -> None:
    """Each kind of prefix has one version, and no version two meanings."""
    kinds = [
        (version.says_pieces, version.has_head, version.says_inputs, version.later, softmax)
        for version in versions.TABLE
        for softmax in version.softmaxes
    ]
    assert len(set(kinds)) == len(kinds) == 10
    assert versions.VERSIONS == ("1", "2", "3", "4", "5", "6")
