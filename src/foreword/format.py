"""`Prefix` to and from one .safetensors file. docs/format.md is the specification in prose.

Everything in a file is checked before any of it is used: a file is data from anywhere.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import os
import re
import reprlib
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

import safetensors.torch
import torch

from foreword.arguments import path_of
from foreword.errors import (
    CorruptFile,
    FormatError,
    PrefixError,
    StoreError,
    TruncatedFile,
)
from foreword.files import reason, write_whole
from foreword.head import Head, check_head, check_scale
from foreword.header import parsed, raw_header, spelled
from foreword.prefix import (
    SOFTMAX,
    Prefix,
    PrefixMeta,
    Site,
    canonical_json,
    check_prefix,
    tensor_bytes,
)
from foreword.versions import TABLE, Version, known, version_of

T = TypeVar("T")

FORMAT = "foreword-prefix"
SUFFIX = ".safetensors"

MAX_COUNT = 2**31
"""Every length, dimension, window and layer is below it."""
MAX_NAME = 256
"""Longest name of a site, in characters."""

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in _CODES}
_HEAD_TENSORS = ["head.weight", "head.bias"]
_STACK = re.compile(r"[a-z][a-z_]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNT = f"a whole number from 1 to {MAX_COUNT - 1}"
_REPR = reprlib.Repr()
_REPR.maxstring = 60


def save(prefix: Prefix, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
    """Write a prefix to a file, whole or not at all, after seeing that it can be read again.

    Args:
        prefix: The prefix; its tensors must be finite.
        path: The file, by convention ending in ``.safetensors``.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        PrefixError: A tensor holds NaN or infinity, or a field is not what the format allows.
        NameTaken: A file is there, and `overwrite` is not set.
        StoreError: The file cannot be written.
    """
    place = path_of("path", path, StoreError)
    check_prefix(prefix)
    broken = prefix.first_not_finite()
    if broken is not None:
        raise PrefixError(f"{broken} holds NaN or infinity; such a prefix is not saved")
    content = encode(prefix)
    try:
        decode(content)
    except FormatError as error:
        raise PrefixError(
            f"this prefix would not load again, so it is not saved: {error}"
        ) from error
    write_whole(place, content, overwrite=overwrite)


def encode(prefix: Prefix) -> bytes:
    """The bytes of a prefix's file: the same bytes for the same prefix."""
    metadata = {
        "format": FORMAT,
        "version": version_of(prefix),
        "prefix": canonical_json(prefix.describe()).decode(),
        "digest": prefix.digest,
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    names = [f"{site.label}.{kind}" for kind in ("key", "value") for site in prefix.sites]
    if prefix.head is not None:
        names += _HEAD_TENSORS
    end = 0
    for name, tensor in zip(names, prefix.tensors, strict=True):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    raw = spelled(header)
    return b"".join((struct.pack("<Q", len(raw)), raw, *map(tensor_bytes, prefix.tensors)))


def load(path: str | os.PathLike[str]) -> Prefix:
    """Read a prefix from a file, on the CPU, in the dtype that it was saved in.

    Raises:
        TruncatedFile: The file ends too early.
        CorruptFile: Its bytes do not agree with its header or digest.
        UnsupportedVersion: It was written by a newer version of the format.
        FormatError: It is not a prefix file, cannot be read, or holds NaN.
    """
    return _opened(path, _read)


def outline(path: str | os.PathLike[str]) -> Prefix:
    """A prefix as its file's header describes it, on the meta device: its tensors hold nothing.

    The header is checked as `load` checks it; tensors and digest are not looked at.

    Raises:
        FormatError: As `load`.
    """
    return _opened(path, _outlined)


def claims(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file's header says of its prefix, unchecked: for sorting many files quickly.

    Raises:
        FormatError: It cannot be read, or says nothing.
    """
    return _opened(path, _claimed)


def _opened(path: str | os.PathLike[str], read: Callable[[BinaryIO, int], T]) -> T:
    """What is read from a file; errors name it."""
    place = path_of("path", path, FormatError)
    try:
        with place.open("rb") as file:
            return read(file, os.fstat(file.fileno()).st_size)
    except FormatError as error:
        raise type(error)(f"{place}: {error}") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read {place}: {reason(error)}") from error


def decode(content: bytes) -> Prefix:
    """The prefix that a file's bytes hold; see `load` for the errors."""
    return _read(io.BytesIO(content), len(content))


def read(file: BinaryIO) -> Prefix:
    """The prefix in an open file, all of which is read; see `load` for the errors."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return _read(file, size)


def read_outline(file: BinaryIO) -> Prefix:
    """What `outline` gives of an open file, which is at its beginning again after that."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = _outlined(file, size)
    file.seek(0)
    return prefix


def _read(file: BinaryIO, size: int) -> Prefix:
    """The prefix in a file of `size` bytes; its tensors are read once its header is approved."""
    outline = _approved(file, size)
    file.seek(0)
    content = file.read(size)
    try:
        prefix = outline.filled(safetensors.torch.load(content))
    except Exception as error:  # nothing known; the checks above are meant to leave nothing
        raise CorruptFile(f"its tensors cannot be read: {error}") from error
    broken = prefix.first_not_finite()
    if broken is not None:
        raise FormatError(f"tensor {broken} holds NaN or infinity; the prefix is unusable")
    if prefix.digest != outline.digest:
        raise CorruptFile(
            f"its contents have digest {prefix.digest[:12]}, its header says {outline.digest[:12]}; "
            "it was altered or damaged: get it again from where it came"
        )
    return prefix


def _outlined(file: BinaryIO, size: int) -> Prefix:
    """The prefix in a file of `size` bytes, without what its tensors hold."""
    outline = _approved(file, size)
    shapes = outline.shapes.items()
    return outline.filled(
        {name: torch.empty(shape, dtype=outline.dtype, device="meta") for name, shape in shapes}
    )


def _claimed(file: BinaryIO, size: int) -> dict[str, Any]:
    try:
        header = json.loads(raw_header(file, size))
        found = json.loads(header["__metadata__"]["prefix"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptFile("its header has no description") from error
    if not isinstance(found, dict):
        raise CorruptFile(f"its description is {_short(found)}, expected an object")
    return found


class _Outline(NamedTuple):
    """A prefix without its tensors' contents, and the digest that its file claims."""

    sites: tuple[Site, ...]
    length: int
    dtype: torch.dtype
    meta: PrefixMeta
    head: dict[str, Any] | None
    digest: str

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Its tensors by name."""
        shapes = {}
        for site in self.sites:
            shapes[f"{site.label}.key"] = [site.kv_heads, self.length, site.key_dim]
            shapes[f"{site.label}.value"] = [site.kv_heads, self.length, site.value_dim]
        if self.head is not None:
            labels = len(self.head["labels"])
            shapes |= zip(_HEAD_TENSORS, ([labels, self.head["width"]], [labels]), strict=True)
        return shapes

    def filled(self, tensors: Mapping[str, torch.Tensor]) -> Prefix:
        """The prefix of these tensors."""
        head = None
        if self.head is not None:
            weight, bias = (tensors[name] for name in _HEAD_TENSORS)
            entry = {name: value for name, value in self.head.items() if name != "width"}
            labels = tuple(entry.pop("labels"))
            head = Head(labels=labels, weight=weight, bias=bias, **entry)
        return Prefix(
            self.sites,
            tuple(tensors[f"{site.label}.key"] for site in self.sites),
            tuple(tensors[f"{site.label}.value"] for site in self.sites),
            self.meta,
            head,
        )


def _approved(file: BinaryIO, size: int) -> _Outline:
    """What the header of a file of `size` bytes says, once all of it is found to be possible."""
    raw = raw_header(file, size)
    header = parsed("header", raw)
    version, described, digest = _metadata(header)
    _check_spelling(header, raw)
    outline = _described(version, described, digest)
    _check_tensors(header, outline, size - 8 - len(raw))
    return outline


def _metadata(header: Mapping[str, Any]) -> tuple[Version, dict[str, Any], str]:
    """The format's version, the description of the prefix, the digest that the file claims."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise FormatError(
            "it is not a Foreword prefix (its metadata has no format 'foreword-prefix'); a PEFT "
            "checkpoint must be imported first"
        )
    version = known(metadata.get("version"))
    _check_fields("its metadata", metadata, {"format", "version", "prefix", "digest"})
    for name in ("prefix", "digest"):
        if not isinstance(metadata[name], str):
            raise CorruptFile(f"its metadata's {name} is {_short(metadata[name])}, expected text")
    if not _DIGEST.fullmatch(metadata["digest"]):
        raise CorruptFile(
            f"its digest is {_short(metadata['digest'])}, expected 64 hexadecimal digits"
        )
    described = parsed("description", metadata["prefix"])
    try:
        canonical = canonical_json(described).decode()
    except PrefixError as error:
        raise CorruptFile(f"its description is not JSON: {error}") from error
    if canonical != metadata["prefix"]:
        raise CorruptFile("its description is not canonical JSON (sorted names, no spaces)")
    return version, described, metadata["digest"]


def _check_spelling(header: Mapping[str, Any], raw: bytes) -> None:
    """Refuse a second spelling of one header: the digest could not tell them apart."""
    try:
        same = spelled(header) == raw
    except ValueError:  # a surrogate, which no UTF-8 spells
        same = False
    if not same:
        raise CorruptFile("its header is not compact JSON filled up with spaces to 8 bytes")


def _short(value: Any) -> str:
    """A value from a file in a few words, whatever it holds."""
    return _REPR.repr(value)


def _described(version: Version, described: Mapping[str, Any], digest: str) -> _Outline:
    """What the description says, each part checked."""
    own = {"head"} if version.has_head else set()
    _check_fields("its description", described, {"sites", "length", "dtype", "meta"} | own)
    listed = described["sites"]
    if not isinstance(listed, list) or not listed:
        raise CorruptFile(f"its sites are {_short(listed)}, expected a list of at least one")
    sites = tuple(_site(number, entry) for number, entry in enumerate(listed))
    if len({site.label for site in sites}) != len(sites):
        raise CorruptFile("its description names a site twice")
    length = described["length"]
    if not _is_count(length):
        raise CorruptFile(f"its length is {_short(length)}, expected {_COUNT}")
    dtype = _NAMES.get(described["dtype"]) if isinstance(described["dtype"], str) else None
    if dtype is None:
        raise FormatError(
            f"its dtype is {_short(described['dtype'])}; expected one of {sorted(_NAMES)}"
        )
    head = _head(version, described["head"]) if version.has_head else None
    return _Outline(sites, length, dtype, _meta(version, described["meta"]), head, digest)


def _head(version: Version, entry: Any) -> dict[str, Any]:
    """The description of a head, checked."""
    own = {"pair"} if version.says_inputs else set()
    own |= {"mean", "deviation"} if version.measures else set()
    _check_fields("its head", entry, {"task", "labels", "pooling", "width"} | own)
    if not _is_count(entry["width"]):
        raise CorruptFile(f"its head: width is {_short(entry['width'])}, expected {_COUNT}")
    if not isinstance(entry["labels"], list):
        raise CorruptFile(f"its head: labels are {_short(entry['labels'])}, expected a list")
    for name in ("task", "pooling"):
        if not isinstance(entry[name], str | None):
            raise CorruptFile(f"its head: {name} is {_short(entry[name])}, expected text or null")
    if (entry["task"] == "regress") != version.measures:
        raise CorruptFile(
            f"its head: task is {_short(entry['task'])}; version 5 is for 'regress', and no other is"
        )
    if version.measures and type(entry["pair"]) is not bool:
        raise CorruptFile(f"its head: pair is {_short(entry['pair'])}, expected true or false")
    if version.says_inputs and not version.measures and entry["pair"] is not True:
        raise CorruptFile(
            f"its head: pair is {_short(entry['pair'])}, expected true; a head that reads one text is "
            "one of version 3"
        )
    try:
        pair = entry.get("pair", False)
        check_head(entry["task"], tuple(entry["labels"]), entry["pooling"], pair=pair)
        check_scale(entry["task"], entry.get("mean"), entry.get("deviation"))
    except PrefixError as error:
        raise CorruptFile(f"its head: {error}") from error
    return dict(entry)


def _site(number: int, entry: Any) -> Site:
    what = f"site {number}"
    _check_fields(what, entry, {field.name for field in dataclasses.fields(Site)})
    for name in ("kv_heads", "key_dim", "value_dim"):
        if not _is_count(entry[name]):
            raise CorruptFile(f"{what}: {name} is {_short(entry[name])}, expected {_COUNT}")
    window, layer, stack, module = (entry[n] for n in ("window", "layer", "stack", "name"))
    if not (window is None or _is_count(window)):
        raise CorruptFile(f"{what}: window is {_short(window)}, expected null or {_COUNT}")
    if not (_is_count(layer) or (type(layer) is int and layer == 0)):
        raise CorruptFile(f"{what}: layer is {_short(layer)}, expected 0 or {_COUNT}")
    if not (isinstance(stack, str) and _STACK.fullmatch(stack)):
        raise CorruptFile(f"{what}: stack is {_short(stack)}, expected a lower-case word")
    if not (isinstance(module, str) and len(module) <= MAX_NAME and module.isprintable()):
        raise CorruptFile(
            f"{what}: name is {_short(module)}, expected at most {MAX_NAME} printable characters"
        )
    return Site(**entry)


def _check_fields(what: str, entry: Any, expected: set[str]) -> None:
    if not isinstance(entry, dict):
        raise CorruptFile(f"{what} is {_short(entry)}, expected an object")
    for name in sorted(set(entry) ^ expected):
        state = "an unknown" if name in entry else "no"
        raise CorruptFile(f"{what} has {state} {_short(name)}; expected exactly {sorted(expected)}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < MAX_COUNT


def _meta(version: Version, entry: Any) -> PrefixMeta:
    fields = {field.name for field in dataclasses.fields(PrefixMeta)}
    texts = {"backbone", "family", "fingerprint", "tokenizer", "positions", "windows", "bos"}
    if version.says_softmax:
        texts |= {"softmax"}
    else:
        fields -= {"softmax"}
    _check_fields("its meta", entry, fields)
    for name in sorted(texts):
        if not isinstance(entry[name], str):
            raise CorruptFile(f"meta field {name!r} must be text; found {_short(entry[name])}")
    if not isinstance(entry["revision"], str | None):
        found = _short(entry["revision"])
        raise CorruptFile(f"meta field 'revision' must be text or null; found {found}")
    for name in ("recipe", "training"):
        if not isinstance(entry[name], dict):
            raise CorruptFile(f"meta field {name!r} must be an object; found {_short(entry[name])}")
    parents = entry["parents"]
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise CorruptFile(
            f"meta field 'parents' must be a list of digests; found {_short(parents)}"
        )
    softmax = entry.get("softmax")
    if softmax in SOFTMAX and softmax not in version.softmaxes:
        other = next(v.name for v in TABLE if softmax in v.softmaxes)
        raise CorruptFile(
            f"meta field 'softmax' is {softmax!r}; such a prefix is a file of version {other}"
        )
    try:
        return PrefixMeta(**{**entry, "parents": tuple(parents)})
    except PrefixError as error:
        raise CorruptFile(str(error)) from error


def _check_tensors(header: Mapping[str, Any], outline: _Outline, available: int) -> None:
    """Check that the tensors are those of the sites and the head, and fill the file exactly."""
    shapes = outline.shapes
    for name in sorted((set(header) - {"__metadata__"}) ^ set(shapes)):
        state = "has no site" if name in header else "is missing"
        raise CorruptFile(f"its tensors are not those of its sites: {_short(name)} {state}")
    dtype = outline.dtype
    spans = sorted(_span(name, header[name], shape, dtype) for name, shape in shapes.items())
    end = max(span[1] for span in spans)
    if end > available:
        raise TruncatedFile(f"its tensors need {end} bytes, {available} are there")
    if end < available:
        raise CorruptFile(f"{available - end} bytes follow the last tensor")
    if spans[0][0] != 0 or any(a[1] != b[0] for a, b in itertools.pairwise(spans)):
        raise CorruptFile("its tensors overlap or leave gaps")


def _span(name: str, entry: Any, shape: list[int], dtype: torch.dtype) -> tuple[int, int]:
    """Where a tensor starts and ends in the data, once it is found to be the expected one."""
    what = f"tensor {name!r}"
    _check_fields(what, entry, {"dtype", "shape", "data_offsets"})
    if not _are_whole(entry["shape"]) or entry["shape"] != shape:
        raise FormatError(f"{what} has shape {_short(entry['shape'])}, expected {shape}")
    if entry["dtype"] != _CODES[dtype]:
        raise FormatError(f"{what} has dtype {_short(entry['dtype'])}, expected {_CODES[dtype]!r}")
    offsets = entry["data_offsets"]
    if not _are_whole(offsets) or len(offsets) != 2:
        raise CorruptFile(f"{what} has offsets {_short(offsets)}, expected [from, to]")
    size = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != size:
        raise CorruptFile(f"{what} spans {offsets}, expected {size} bytes")
    return offsets[0], offsets[1]


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)
