"""The outline of a prefix's file: what its header says, every word of it checked, without its tensors.

docs/format.md is the specification in prose. Nothing here needs PyTorch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, TypeVar

from foreword.arguments import path_of
from foreword.description import (
    LATER,
    SOFTMAX,
    Piece,
    PrefixMeta,
    Site,
    canonical_json,
    check_head,
    check_scale,
)
from foreword.errors import (
    CorruptFile,
    FormatError,
    PrefixError,
    TruncatedFile,
)
from foreword.files import reason
from foreword.header import parsed, raw_header, spelled
from foreword.versions import TABLE, Version, known

T = TypeVar("T")

FORMAT = "foreword-prefix"
SUFFIX = ".safetensors"
MAX_COUNT = 2**31
"""Every length, dimension, window and layer is below it."""
MAX_NAME = 256
"""Longest name of a site, in characters."""
CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""By the name of a dtype how safetensors spells it."""
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""By the same name the bytes of a number."""
HEAD_TENSORS = ["head.weight", "head.bias"]
_STACK = re.compile(r"[a-z][a-z_]{0,31}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COUNT = f"a whole number from 1 to {MAX_COUNT - 1}"
_REPR = reprlib.Repr()
_REPR.maxstring = 60


def outline_of(path: str | os.PathLike[str]) -> Outline:
    """What a prefix's file says of itself; its header is checked, its tensors are not read.

    Raises:
        FormatError: The header is not that of a prefix, or not of a file of this size.
    """
    return opened(path, approved)


def opened(path: str | os.PathLike[str], read: Callable[[BinaryIO, int], T]) -> T:
    """What is read from a file; errors name it."""
    place = path_of("path", path, FormatError)
    try:
        with place.open("rb") as file:
            return read(file, os.fstat(file.fileno()).st_size)
    except FormatError as error:
        raise type(error)(f"{place}: {error}") from error
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot read {place}: {reason(error)}") from error


class Outline(NamedTuple):
    """A prefix without its tensors' contents, and the digest that its file claims.

    Attributes:
        sites: Its sites.
        length: Prefix length P.
        dtype: The name of its tensors' dtype, such as ``float32``.
        meta: Its meta.
        head: What its head's description says; None without one.
        digest: What the file claims; only its tensors can prove it.
    """

    sites: tuple[Site, ...]
    length: int
    dtype: str
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
            shapes |= zip(HEAD_TENSORS, ([labels, self.head["width"]], [labels]), strict=True)
        return shapes

    @property
    def parameters(self) -> int:
        """Number of numbers in its tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return self.parameters * _SIZES[self.dtype]

    @property
    def head_task(self) -> str | None:
        """What its head does; None without one."""
        return None if self.head is None else str(self.head["task"])


def approved(file: BinaryIO, size: int) -> Outline:
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
            raise CorruptFile(f"its metadata's {name} is {short(metadata[name])}, expected text")
    if not _DIGEST.fullmatch(metadata["digest"]):
        raise CorruptFile(
            f"its digest is {short(metadata['digest'])}, expected 64 hexadecimal digits"
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


def short(value: Any) -> str:
    """A value from a file in a few words, whatever it holds."""
    return _REPR.repr(value)


def _described(version: Version, described: Mapping[str, Any], digest: str) -> Outline:
    """What the description says, each part checked."""
    own = {"head"} if version.has_head else set()
    _check_fields("its description", described, {"sites", "length", "dtype", "meta"} | own)
    listed = described["sites"]
    if not isinstance(listed, list) or not listed:
        raise CorruptFile(f"its sites are {short(listed)}, expected a list of at least one")
    sites = tuple(_site(number, entry) for number, entry in enumerate(listed))
    if len({site.label for site in sites}) != len(sites):
        raise CorruptFile("its description names a site twice")
    length = described["length"]
    if not _is_count(length):
        raise CorruptFile(f"its length is {short(length)}, expected {_COUNT}")
    dtype = described["dtype"]
    if not isinstance(dtype, str) or dtype not in CODES:
        raise FormatError(f"its dtype is {short(dtype)}; expected one of {sorted(CODES)}")
    head = _head(version, described["head"]) if version.has_head else None
    meta = _meta(version, described["meta"])
    if meta.pieces and sum(piece.length for piece in meta.pieces) != length:
        raise CorruptFile(
            f"its pieces have {sum(piece.length for piece in meta.pieces)} virtual tokens, its length "
            f"is {length}"
        )
    return Outline(sites, length, dtype, meta, head, digest)


def _head(version: Version, entry: Any) -> dict[str, Any] | None:
    """The description of a head, checked; None where it says that there is none."""
    if version.says_pieces and entry is None:
        return None
    own = {"pair"} if version.says_inputs else set()
    task = entry.get("task") if isinstance(entry, dict) else None
    measures = task == "regress" if version.says_pieces else task != "multilabel"
    own |= {"mean", "deviation"} if version.later and measures else set()
    _check_fields("its head", entry, {"task", "labels", "pooling", "width"} | own)
    if not _is_count(entry["width"]):
        raise CorruptFile(f"its head: width is {short(entry['width'])}, expected {_COUNT}")
    if not isinstance(entry["labels"], list):
        raise CorruptFile(f"its head: labels are {short(entry['labels'])}, expected a list")
    for name in ("task", "pooling"):
        if not isinstance(entry[name], str | None):
            raise CorruptFile(f"its head: {name} is {short(entry[name])}, expected text or null")
    if not version.says_pieces and (entry["task"] in LATER) != version.later:
        raise CorruptFile(
            f"its head: task is {short(entry['task'])}; version 5 is for "
            f"{' and '.join(map(repr, LATER))}, and no earlier one is"
        )
    if version.later and type(entry["pair"]) is not bool:
        raise CorruptFile(f"its head: pair is {short(entry['pair'])}, expected true or false")
    if version.says_inputs and not version.later and entry["pair"] is not True:
        raise CorruptFile(
            f"its head: pair is {short(entry['pair'])}, expected true; a head that reads one text is "
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
            raise CorruptFile(f"{what}: {name} is {short(entry[name])}, expected {_COUNT}")
    window, layer, stack, module = (entry[n] for n in ("window", "layer", "stack", "name"))
    if not (window is None or _is_count(window)):
        raise CorruptFile(f"{what}: window is {short(window)}, expected null or {_COUNT}")
    if not (_is_count(layer) or (type(layer) is int and layer == 0)):
        raise CorruptFile(f"{what}: layer is {short(layer)}, expected 0 or {_COUNT}")
    if not (isinstance(stack, str) and _STACK.fullmatch(stack)):
        raise CorruptFile(f"{what}: stack is {short(stack)}, expected a lower-case word")
    if not (isinstance(module, str) and len(module) <= MAX_NAME and module.isprintable()):
        raise CorruptFile(
            f"{what}: name is {short(module)}, expected at most {MAX_NAME} printable characters"
        )
    return Site(**entry)


def _check_fields(what: str, entry: Any, expected: set[str]) -> None:
    if not isinstance(entry, dict):
        raise CorruptFile(f"{what} is {short(entry)}, expected an object")
    for name in sorted(set(entry) ^ expected):
        state = "an unknown" if name in entry else "no"
        raise CorruptFile(f"{what} has {state} {short(name)}; expected exactly {sorted(expected)}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < MAX_COUNT


def _meta(version: Version, entry: Any) -> PrefixMeta:
    fields = {field.name for field in dataclasses.fields(PrefixMeta)}
    fields -= set() if version.says_pieces else {"pieces", "combination"}
    texts = {"backbone", "family", "fingerprint", "tokenizer", "positions", "windows", "bos"}
    if version.says_softmax:
        texts |= {"softmax"}
    else:
        fields -= {"softmax"}
    if version.says_pieces:
        texts |= {"combination"}
    _check_fields("its meta", entry, fields)
    for name in sorted(texts):
        if not isinstance(entry[name], str):
            raise CorruptFile(f"meta field {name!r} must be text; found {short(entry[name])}")
    if not isinstance(entry["revision"], str | None):
        found = short(entry["revision"])
        raise CorruptFile(f"meta field 'revision' must be text or null; found {found}")
    for name in ("recipe", "training"):
        if not isinstance(entry[name], dict):
            raise CorruptFile(f"meta field {name!r} must be an object; found {short(entry[name])}")
    parents = entry["parents"]
    if not isinstance(parents, list) or not all(isinstance(p, str) for p in parents):
        raise CorruptFile(f"meta field 'parents' must be a list of digests; found {short(parents)}")
    softmax = entry.get("softmax")
    if softmax in SOFTMAX and softmax not in version.softmaxes:
        other = next(v.name for v in TABLE if softmax in v.softmaxes)
        raise CorruptFile(
            f"meta field 'softmax' is {softmax!r}; such a prefix is a file of version {other}"
        )
    pieces = _pieces(entry["pieces"]) if version.says_pieces else ()
    try:
        return PrefixMeta(**{**entry, "parents": tuple(parents), "pieces": pieces})
    except PrefixError as error:
        raise CorruptFile(str(error)) from error


def _pieces(listed: Any) -> tuple[Piece, ...]:
    """The pieces of a prefix, at least one; each of their strengths is spelled in one way."""
    if not isinstance(listed, list) or not listed:
        raise CorruptFile(f"its pieces are {short(listed)}, expected a list of at least one")
    return tuple(_piece(number, entry) for number, entry in enumerate(listed))


def _piece(number: int, entry: Any) -> Piece:
    what = f"piece {number}"
    _check_fields(what, entry, {field.name for field in dataclasses.fields(Piece)})
    name, length, strength = entry["name"], entry["length"], entry["strength"]
    if not isinstance(name, str):
        raise CorruptFile(f"{what}: name is {short(name)}, expected text")
    if not _is_count(length):
        raise CorruptFile(f"{what}: length is {short(length)}, expected {_COUNT}")
    if type(strength) is not float or str(strength) == "-0.0":
        raise CorruptFile(
            f"{what}: strength is {short(strength)}, expected a fraction, and of zeros 0.0"
        )
    try:
        return Piece(name, length, strength)
    except PrefixError as error:
        raise CorruptFile(f"{what}: {error}") from error


def _check_tensors(header: Mapping[str, Any], outline: Outline, available: int) -> None:
    """Check that the tensors are those of the sites and the head, and fill the file exactly."""
    shapes = outline.shapes
    for name in sorted((set(header) - {"__metadata__"}) ^ set(shapes)):
        state = "has no site" if name in header else "is missing"
        raise CorruptFile(f"its tensors are not those of its sites: {short(name)} {state}")
    dtype = outline.dtype
    spans = sorted(_span(name, header[name], shape, dtype) for name, shape in shapes.items())
    end = max(span[1] for span in spans)
    if end > available:
        raise TruncatedFile(f"its tensors need {end} bytes, {available} are there")
    if end < available:
        raise CorruptFile(f"{available - end} bytes follow the last tensor")
    if spans[0][0] != 0 or any(a[1] != b[0] for a, b in itertools.pairwise(spans)):
        raise CorruptFile("its tensors overlap or leave gaps")


def _span(name: str, entry: Any, shape: list[int], dtype: str) -> tuple[int, int]:
    """Where a tensor starts and ends in the data, once it is found to be the expected one."""
    what = f"tensor {name!r}"
    _check_fields(what, entry, {"dtype", "shape", "data_offsets"})
    if not _are_whole(entry["shape"]) or entry["shape"] != shape:
        raise FormatError(f"{what} has shape {short(entry['shape'])}, expected {shape}")
    if entry["dtype"] != CODES[dtype]:
        raise FormatError(f"{what} has dtype {short(entry['dtype'])}, expected {CODES[dtype]!r}")
    offsets = entry["data_offsets"]
    if not _are_whole(offsets) or len(offsets) != 2:
        raise CorruptFile(f"{what} has offsets {short(offsets)}, expected [from, to]")
    size = math.prod(shape) * _SIZES[dtype]
    if offsets[1] - offsets[0] != size:
        raise CorruptFile(f"{what} spans {offsets}, expected {size} bytes")
    return offsets[0], offsets[1]


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)
