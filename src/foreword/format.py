"""`Prefix` to and from one .safetensors file. docs/format.md is the specification in prose.

Everything in a file is checked before any of it is used: a file is data from anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from foreword.errors import (
    CorruptFile,
    FormatError,
    PrefixError,
    TruncatedFile,
    UnsupportedVersion,
)
from foreword.files import write_whole
from foreword.prefix import Prefix, PrefixMeta, Site, canonical_json

FORMAT = "foreword-prefix"
VERSION = 1
SUFFIX = ".safetensors"
MAX_HEADER = 16 * 2**20
"""Largest header that is read, in bytes."""

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_SIZES = {"F32": 4, "BF16": 2, "F16": 2}
_STACK = re.compile(r"[a-z][a-z_]{0,31}")


def save(prefix: Prefix, path: str | os.PathLike[str]) -> None:
    """Write a prefix to a file, whole or not at all.

    Args:
        prefix: The prefix; its tensors must be finite.
        path: The file, by convention ending in ``.safetensors``.

    Raises:
        PrefixError: A tensor holds NaN or infinity.
        StoreError: The file cannot be written.
    """
    broken = prefix.first_not_finite()
    if broken is not None:
        raise PrefixError(f"{broken} holds NaN or infinity; such a prefix is not saved")
    write_whole(Path(path), encode(prefix))


def encode(prefix: Prefix) -> bytes:
    """The bytes of a prefix's file."""
    tensors = {}
    for site, key, value in zip(prefix.sites, prefix.keys, prefix.values, strict=True):
        tensors[f"{site.label}.key"] = key.detach().cpu().contiguous()
        tensors[f"{site.label}.value"] = value.detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "prefix": canonical_json(prefix.describe()).decode(),
        "digest": prefix.digest,
    }
    return bytes(safetensors.torch.save(tensors, metadata))


def load(path: str | os.PathLike[str]) -> Prefix:
    """Read a prefix from a file, on the CPU, in the dtype that it was saved in.

    Raises:
        TruncatedFile: The file ends too early.
        CorruptFile: Its bytes do not agree with its header or digest.
        UnsupportedVersion: It was written by a newer version of the format.
        FormatError: It is not a prefix file, cannot be read, or holds NaN.
    """
    place = Path(path)
    try:
        content = place.read_bytes()
    except OSError as error:
        raise FormatError(f"cannot read {place}: {error.strerror or error}") from error
    try:
        return decode(content)
    except FormatError as error:
        raise type(error)(f"{place}: {error}") from error


def decode(content: bytes) -> Prefix:
    """The prefix that a file's bytes hold; see `load` for the errors."""
    header, start = _header(content)
    described, digest = _metadata(header)
    sites, length, dtype, meta = _described(described)
    _check_tensors(header, sites, length, dtype, len(content) - start)
    try:
        tensors = safetensors.torch.load(content)
    except Exception as error:
        raise CorruptFile(f"safetensors cannot read it: {error}") from error
    try:
        prefix = Prefix(
            sites,
            tuple(tensors[f"{site.label}.key"] for site in sites),
            tuple(tensors[f"{site.label}.value"] for site in sites),
            meta,
        )
    except PrefixError as error:
        raise CorruptFile(str(error)) from error
    broken = prefix.first_not_finite()
    if broken is not None:
        raise FormatError(f"tensor {broken} holds NaN or infinity; the prefix is unusable")
    if prefix.digest != digest:
        raise CorruptFile(
            f"its contents have digest {prefix.digest[:12]}, its header says {str(digest)[:12]}; "
            "it was altered or damaged: get it again from where it came"
        )
    return prefix


def _header(content: bytes) -> tuple[dict[str, Any], int]:
    """The JSON header, and where the tensors' bytes start."""
    if len(content) < 8:
        raise TruncatedFile(f"expected at least 8 bytes, found {len(content)}")
    (size,) = struct.unpack("<Q", content[:8])
    if size > MAX_HEADER:
        raise CorruptFile(f"its header claims {size} bytes; at most {MAX_HEADER} are allowed")
    if 8 + size > len(content):
        raise TruncatedFile(f"its header claims {size} bytes, {len(content) - 8} follow")
    try:
        header = json.loads(content[8 : 8 + size], object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CorruptFile(f"its header is a JSON {type(header).__name__}, expected an object")
    return header, 8 + size


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _metadata(header: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The description of the prefix and the digest that the file claims."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FormatError(
            "it is not a Foreword prefix (its metadata has no format 'foreword-prefix'); a PEFT "
            "checkpoint must be imported first"
        )
    version = metadata.get("version")
    if version != str(VERSION):
        raise UnsupportedVersion(
            f"it has format version {version!r}; this Foreword reads version {VERSION}. "
            "Update Foreword"
        )
    expected = {"format", "version", "prefix", "digest"}
    if set(metadata) != expected or not isinstance(metadata["digest"], str):
        raise CorruptFile(f"its metadata has {sorted(metadata)}, expected {sorted(expected)}")
    try:
        described = json.loads(metadata["prefix"], object_pairs_hook=_without_repeats)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptFile(f"its description is not JSON: {error}") from error
    return described, metadata["digest"]


def _described(
    described: Any,
) -> tuple[tuple[Site, ...], int, str, PrefixMeta]:
    """Sites, length, dtype name and meta from the description, each checked."""
    expected = {"sites", "length", "dtype", "meta"}
    if not isinstance(described, dict) or set(described) != expected:
        raise CorruptFile(f"its description must hold exactly {sorted(expected)}")
    if not isinstance(described["sites"], list) or not described["sites"]:
        raise CorruptFile("its description lists no sites")
    sites = tuple(_site(entry) for entry in described["sites"])
    if len({site.label for site in sites}) != len(sites):
        raise CorruptFile("its description names a site twice")
    length = described["length"]
    if not _is_count(length):
        raise CorruptFile(f"its length is {length!r}, expected a whole number of at least 1")
    dtype = _NAMES.get(described["dtype"]) if isinstance(described["dtype"], str) else None
    if dtype is None:
        raise FormatError(
            f"its dtype is {described['dtype']!r}; expected one of {sorted(_NAMES)}"
        )
    return sites, length, dtype, _meta(described["meta"])


def _site(entry: Any) -> Site:
    names = [field.name for field in dataclasses.fields(Site)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise CorruptFile(f"a site must hold exactly {names}")
    counts = [entry[name] for name in ("kv_heads", "key_dim", "value_dim")]
    window, layer = entry["window"], entry["layer"]
    whole = all(map(_is_count, counts)) and (window is None or _is_count(window))
    if not whole or not (_is_count(layer) or (layer == 0 and type(layer) is int)):
        raise CorruptFile(f"a site's numbers must be whole and positive; found {entry}")
    if not isinstance(entry["name"], str) or not isinstance(entry["stack"], str):
        raise CorruptFile(f"a site's name and stack must be text; found {entry}")
    if not _STACK.fullmatch(entry["stack"]):
        raise CorruptFile(f"stack {entry['stack']!r} is not a lower-case word")
    return Site(**entry)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _meta(entry: Any) -> PrefixMeta:
    fields = {field.name: field for field in dataclasses.fields(PrefixMeta)}
    if not isinstance(entry, dict) or set(entry) != set(fields):
        raise CorruptFile(f"its meta must hold exactly {sorted(fields)}")
    texts = ("backbone", "family", "fingerprint", "tokenizer", "positions", "windows", "bos")
    for name in texts:
        if not isinstance(entry[name], str):
            raise CorruptFile(f"meta field {name!r} must be text; found {entry[name]!r}")
    if not isinstance(entry["revision"], str | None):
        raise CorruptFile(f"meta field 'revision' must be text or null; found {entry['revision']!r}")
    for name in ("recipe", "training"):
        if not isinstance(entry[name], dict):
            raise CorruptFile(f"meta field {name!r} must be an object; found {entry[name]!r}")
    parents = entry["parents"]
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise CorruptFile(f"meta field 'parents' must be a list of digests; found {parents!r}")
    try:
        return PrefixMeta(**{**entry, "parents": tuple(parents)})
    except PrefixError as error:
        raise CorruptFile(str(error)) from error


def _check_tensors(
    header: Mapping[str, Any], sites: tuple[Site, ...], length: int, dtype: str, available: int
) -> None:
    """See that the tensors are those of the sites, and that they fill the file exactly."""
    shapes = {}
    for site in sites:
        shapes[f"{site.label}.key"] = [site.kv_heads, length, site.key_dim]
        shapes[f"{site.label}.value"] = [site.kv_heads, length, site.value_dim]
    found = set(header) - {"__metadata__"}
    if found != set(shapes):
        odd = sorted(found ^ set(shapes))
        raise CorruptFile(f"its tensors are not those of its sites (first: {odd[0]!r})")
    end = 0
    spans = []
    for name, shape in shapes.items():
        entry = header[name]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CorruptFile(f"tensor {name!r} has an ill-formed entry")
        if entry["shape"] != shape:
            raise FormatError(f"tensor {name!r} has shape {entry['shape']}, expected {shape}")
        if entry["dtype"] != dtype:
            raise FormatError(f"tensor {name!r} has dtype {entry['dtype']!r}, expected {dtype!r}")
        size = shape[0] * shape[1] * shape[2] * _SIZES[dtype]
        offsets = entry["data_offsets"]
        if not isinstance(offsets, list) or [type(o) for o in offsets] != [int, int]:
            raise CorruptFile(f"tensor {name!r} has offsets {offsets!r}")
        if offsets[1] - offsets[0] != size:
            raise CorruptFile(f"tensor {name!r} spans {offsets}, expected {size} bytes")
        spans.append(offsets)
        end = max(end, offsets[1])
    if end > available:
        raise TruncatedFile(f"its tensors need {end} bytes, {available} are there")
    if end < available:
        raise CorruptFile(f"{available - end} bytes follow the last tensor")
    spans.sort()
    if spans[0][0] != 0 or any(a[1] != b[0] for a, b in zip(spans, spans[1:], strict=False)):
        raise CorruptFile("its tensors overlap or leave gaps")
