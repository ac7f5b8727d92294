"""`Prefix` to and from one .safetensors file. docs/format.md is the specification in prose.

Everything in a file is checked before any of it is used: a file is data from anywhere.
"""

from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import safetensors.torch
import torch

from foreword.arguments import path_of
from foreword.description import canonical_json
from foreword.errors import CorruptFile, FormatError, PrefixError, StoreError
from foreword.files import write_whole
from foreword.head import Head
from foreword.header import raw_header, spelled
from foreword.outline import (
    CODES,
    FORMAT,
    HEAD_TENSORS,
    SUFFIX,
    Outline,
    approved,
    opened,
    short,
)
from foreword.prefix import Prefix, check_prefix, tensor_bytes
from foreword.versions import TABLE, VERSIONS

__all__ = [
    "SUFFIX",
    "VERSIONS",
    "claims",
    "decode",
    "encode",
    "load",
    "outline",
    "read",
    "read_outline",
    "save",
]


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
        "version": _version_of(prefix),
        "prefix": canonical_json(prefix.describe()).decode(),
        "digest": prefix.digest,
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    names = [f"{site.label}.{kind}" for kind in ("key", "value") for site in prefix.sites]
    if prefix.head is not None:
        names += HEAD_TENSORS
    end = 0
    for name, tensor in zip(names, prefix.tensors, strict=True):
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": CODES[str(tensor.dtype).removeprefix("torch.")],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    raw = spelled(header)
    return b"".join((struct.pack("<Q", len(raw)), raw, *map(tensor_bytes, prefix.tensors)))


def _version_of(prefix: Prefix) -> str:
    """The first version of the format that can say what the prefix is."""
    if prefix.meta.pieces:
        return next(version.name for version in TABLE if version.says_pieces)
    head = prefix.head
    later = head is not None and head.is_later
    kind = (head is not None, head is not None and not head.is_plain, later)
    able = (
        version.name
        for version in TABLE
        if not version.says_pieces
        and (version.has_head, version.says_inputs, version.later) == kind
        and prefix.meta.softmax in version.softmaxes
    )
    return next(able)


def load(path: str | os.PathLike[str]) -> Prefix:
    """Read a prefix from a file, on the CPU, in the dtype that it was saved in.

    Raises:
        TruncatedFile: The file ends too early.
        CorruptFile: Its bytes do not agree with its header or digest.
        UnsupportedVersion: It was written by a newer version of the format.
        FormatError: It is not a prefix file, cannot be read, or holds NaN.
    """
    return opened(path, _read)


def outline(path: str | os.PathLike[str]) -> Prefix:
    """A prefix as its file's header describes it, on the meta device: its tensors hold nothing.

    The header is checked as `load` checks it; tensors and digest are not looked at.

    Raises:
        FormatError: As `load`.
    """
    return opened(path, _outlined)


def claims(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file's header says of its prefix, unchecked: for sorting many files quickly.

    Raises:
        FormatError: It cannot be read, or says nothing.
    """
    return opened(path, _claimed)


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
    outline = approved(file, size)
    file.seek(0)
    content = file.read(size)
    try:
        prefix = _filled(outline, safetensors.torch.load(content))
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
    outline = approved(file, size)
    shapes, dtype = outline.shapes.items(), getattr(torch, outline.dtype)
    return _filled(
        outline, {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes}
    )


def _claimed(file: BinaryIO, size: int) -> dict[str, Any]:
    try:
        header = json.loads(raw_header(file, size))
        found = json.loads(header["__metadata__"]["prefix"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptFile("its header has no description") from error
    if not isinstance(found, dict):
        raise CorruptFile(f"its description is {short(found)}, expected an object")
    return found


def _filled(outline: Outline, tensors: Mapping[str, torch.Tensor]) -> Prefix:
    """The prefix of an outline and these tensors."""
    head = None
    if outline.head is not None:
        weight, bias = (tensors[name] for name in HEAD_TENSORS)
        entry = {name: value for name, value in outline.head.items() if name != "width"}
        labels = tuple(entry.pop("labels"))
        head = Head(labels=labels, weight=weight, bias=bias, **entry)
    return Prefix(
        outline.sites,
        tuple(tensors[f"{site.label}.key"] for site in outline.sites),
        tuple(tensors[f"{site.label}.value"] for site in outline.sites),
        outline.meta,
        head,
    )
