"""Make the hostile prefix files beside this script: ``python -m tests.attacks.make``.

Every file starts from one good prefix (two sites, length 3, float32) that is written here by hand
from docs/format.md, without Foreword's own writer. Unless the digest is what is attacked, the
digest is right for the hostile contents, so that no other check hides behind it. A file's name
says what is wrong with it:

====================  ==========================================================================
bytes-*               the file as a whole: empty, cut off, bits flipped, bytes after the end
header-*              the JSON header: its size, encoding, spelling, repeated names, nesting
foreign-*             good files of something else: plain tensors, a PEFT checkpoint
metadata-*            the four metadata texts: version, digest, missing, unknown or not text
description-*         the description's JSON: NaN, infinity, surrogates, huge numbers, nesting
dtype-*, shape-*      tensors of another dtype or shape than described, or of one not allowed
tensor-*, offsets-*   not finite, missing, unknown, overlapping, with gaps, odd offsets
stack-*, site-*       paths, control characters and wrong types in the description of a site
length-*, sites-*     negative, fractional, huge; no sites, one site twice
meta-*, policy-*      unknown, missing or ill-typed meta fields; policies that do not exist
head-*                a head's task, labels, pooling, width and tensors; heads in older versions
pieces-*              the pieces of a prefix and their combination (see tests/attacks/pieces.py)
====================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LIMIT = 16 * 2**20
"""Largest header that a reader takes, in bytes."""

Tensors = dict[str, tuple[str, list[int], bytes]]
"""Dtype, shape and contents by name, in the digest's order."""


def site(layer: int) -> dict[str, Any]:
    """A described site."""
    name = f"model.layers.{layer}.self_attn"
    sizes = {"kv_heads": 1, "key_dim": 2, "value_dim": 2, "window": None}
    return {"name": name, "stack": "decoder", "layer": layer, **sizes}


def meta(**changes: Any) -> dict[str, Any]:
    """A described meta."""
    fields = {
        "backbone": "tiny",
        "family": "llama",
        "revision": None,
        "fingerprint": "ab" * 32,
        "tokenizer": "cd" * 32,
        "positions": "free",
        "windows": "visible",
        "bos": "input",
        "recipe": {"prompt": "{mr}", "target": " {ref}", "learning_rate": 5e-05},
        "training": {"steps": 12},
        "parents": [],
    }
    return {**fields, **changes}


def described(**changes: Any) -> dict[str, Any]:
    """A description."""
    fields = {"sites": [site(0), site(1)], "length": 3, "dtype": "float32", "meta": meta()}
    return {**fields, **changes}


def tensors(code: str = "F32", letter: str = "f") -> Tensors:
    """Four tensors of shape (1, 3, 2), of a safetensors dtype that `struct` packs by a letter."""
    names = [f"decoder.{layer}.{kind}" for kind in ("key", "value") for layer in (0, 1)]
    return {
        name: (code, [1, 3, 2], struct.pack(f"<6{letter}", *range(6 * place, 6 * place + 6)))
        for place, name in enumerate(names)
    }


def changed(
    name: str, shape: list[Any] | None = None, numbers: list[float] | None = None
) -> Tensors:
    """The good tensors but for one, which has another shape or other numbers."""
    code, old, data = tensors()[name]
    if numbers is not None:
        data = struct.pack(f"<{len(numbers)}f", *numbers)
    return {**tensors(), name: (code, shape or old, data)}


def canonical(value: Any) -> str:
    """Canonical JSON, NaN and infinity let through."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(text: str, parts: Tensors) -> str:
    """The digest of a description's text and its tensors."""
    return hashlib.sha256(text.encode() + b"".join(d for *_, d in parts.values())).hexdigest()


def header_of(parts: Tensors, metadata: dict[str, Any] | None) -> dict[str, Any]:
    """The header of tensors that lie one after the other."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, (code, shape, data) in parts.items():
        start, end = end, end + len(data)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    return header


def metadata_of(text: str, parts: Tensors, **changes: Any) -> dict[str, Any]:
    """The four texts with the right digest."""
    digest = digest_of(text, parts)
    fields = {"format": "foreword-prefix", "version": "1", "prefix": text, "digest": digest}
    return {**fields, **changes}


def raw(header: bytes, data: bytes) -> bytes:
    """A file of a header's bytes and tensors' bytes."""
    return struct.pack("<Q", len(header)) + header + data


def compact(header: dict[str, Any]) -> bytes:
    """A header as it should be spelled."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def built(
    description: dict[str, Any] | str | None = None, parts: Tensors | None = None, **metadata: Any
) -> bytes:
    """A file with a right digest from a description, tensors and changed metadata texts."""
    parts = tensors() if parts is None else parts
    description = described() if description is None else description
    text = description if isinstance(description, str) else canonical(description)
    header = header_of(parts, metadata_of(text, parts, **metadata))
    return raw(compact(header), joined(parts))


def joined(parts: Tensors) -> bytes:
    """The tensors' bytes in order."""
    return b"".join(data for *_, data in parts.values())


def good() -> bytes:
    """The file that every attack starts from."""
    return built()


def with_site(**changes: Any) -> bytes:
    """The good file but for fields of its second site."""
    return built(described(sites=[site(0), {**site(1), **changes}]))


def with_meta(**changes: Any) -> bytes:
    """The good file but for fields of its meta."""
    return built(described(meta=meta(**changes)))


def as_version_2(**changes: Any) -> bytes:
    """The good file as one of version 2, but for fields of its meta."""
    return built(described(meta=meta(**changes)), version="2")


def head(**changes: Any) -> dict[str, Any]:
    """A described head of three labels on hidden states of 2."""
    fields = {"task": "classify", "labels": ["a", "b", "c"], "pooling": "mean", "width": 2}
    return {**fields, **changes}


def head_tensors(**changes: tuple[str, list[int], bytes]) -> Tensors:
    """The good tensors and those of the head."""
    own: Tensors = {
        "head.weight": ("F32", [3, 2], struct.pack("<6f", *range(6))),
        "head.bias": ("F32", [3], struct.pack("<3f", *range(3))),
    }
    return {**tensors(), **own, **{f"head.{name}": part for name, part in changes.items()}}


def as_version_3(entry: Any = None, parts: Tensors | None = None, **changes: Any) -> bytes:
    """The good file with a head, as one of version 3."""
    described_head = head(**changes) if entry is None else entry
    description = described(meta=meta(softmax="joint"), head=described_head)
    return built(description, head_tensors() if parts is None else parts, version="3")


def as_version_5(**changes: Any) -> bytes:
    """The good file with a head that measures, as one of version 5."""
    own = {"task": "regress", "labels": ["value"], "pair": False, "mean": 3.0, "deviation": 0.5}
    parts = {
        **tensors(),
        "head.weight": ("F32", [1, 2], struct.pack("<2f", 0, 1)),
        "head.bias": ("F32", [1], struct.pack("<f", 2)),
    }
    description = described(meta=meta(softmax="joint"), head={**head(), **own, **changes})
    return built(description, parts, version="5")


def for_several(**changes: Any) -> bytes:
    """The good file with a head for several labels of a row, as one of version 5."""
    entry = {**head(), "task": "multilabel", "pair": False, **changes}
    description = described(meta=meta(softmax="joint"), head=entry)
    return built(description, head_tensors(), version="5")


def as_version_4(**changes: Any) -> bytes:
    """The good file with a head for pairs of texts, as one of version 4."""
    entry = {**head(), "pair": True, **changes}
    return built(described(meta=meta(softmax="joint"), head=entry), head_tensors(), version="4")


def with_recipe(text: str) -> bytes:
    """The good file but for the recipe, spelled as it stands here."""
    mark = '"prompt":"MARK"'
    before = canonical(described(meta=meta(recipe={"prompt": "MARK"})))
    return built(before.replace(mark, text))


def with_offsets(name: str, offsets: list[Any]) -> bytes:
    """The good file but for where one tensor lies."""
    header = header_of(tensors(), metadata_of(canonical(described()), tensors()))
    header[name]["data_offsets"] = offsets
    return raw(compact(header), joined(tensors()))


def without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Fields but for one."""
    return {key: value for key, value in fields.items() if key != name}


def flipped(content: bytes, place: int) -> bytes:
    """The bytes with the lowest bit of one flipped."""
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def nested(depth: int) -> str:
    """A recipe's entry of lists in lists."""
    return '"prompt":' + "[" * depth + "]" * depth


def peft_checkpoint() -> bytes:
    """Shaped like the adapter_model.safetensors of prefix tuning in PEFT."""
    shape = [3, 8]
    parts: Tensors = {"prompt_embeddings": ("F32", shape, struct.pack("<24f", *range(24)))}
    return raw(compact(header_of(parts, {"format": "pt"})), joined(parts))


def whole_files() -> dict[str, bytes]:
    """Attacks on the file as a whole."""
    content = good()
    return {
        "bytes-empty": b"",
        "bytes-seven": content[:7],
        "bytes-half-written": content[: len(content) // 2],
        "bytes-cut-in-header": content[:100],
        "bytes-cut-in-last-tensor": content[:-5],
        "bytes-flipped-in-tensor": flipped(content, len(content) - 9),
        "bytes-flipped-in-meta": flipped(content, content.index(b"{mr}") + 1),
        "bytes-flipped-in-exponent": content.replace(b"5e-05", b"5E-05"),
        "bytes-after-the-end": content + b"\0" * 8,
        "bytes-zeroed": bytes(len(content)),
    }


def headers() -> dict[str, bytes]:
    """Attacks on the header, and files of something else."""
    header = header_of(tensors(), metadata_of(canonical(described()), tensors()))
    spelled, data = compact(header), joined(tensors())
    entry = b'"decoder.0.key":{"dtype":"F32","shape":[1,3,2],"data_offsets":[0,24]}'
    assert entry in spelled
    return {
        "header-size-2-62": struct.pack("<Q", 2**62) + good()[8:],
        "header-size-over-limit": struct.pack("<Q", LIMIT + 1) + good()[8:],
        "header-size-over-file": struct.pack("<Q", LIMIT) + good()[8:],
        "header-not-json": raw(b"this is no JSON.", data),
        "header-not-utf8": raw(spelled.replace(b"llama", b"ll\xffma"), data),
        "header-utf16": raw(spelled.decode().strip().encode("utf-16"), data),
        "header-list": raw(b"[1,2,3] ", data),
        "header-empty-object": raw(b"{}      ", b""),
        "header-spaced": raw(json.dumps(header, ensure_ascii=False).encode(), data),
        "header-padded-with-newlines": raw(spelled.rstrip() + b"\n" * 9, data),
        "header-escaped": raw(spelled.replace(b'"decoder.0.key"', b'"decoder\\u002e0.key"'), data),
        "header-surrogate": raw(spelled.replace(b'"decoder.0.key"', b'"\\ud800"'), data),
        "header-name-twice": raw(spelled.replace(entry, entry + b"," + entry), data),
        "header-nested": raw(b'{"a":' + b"[" * 20000 + b"]" * 20000 + b"}", b""),
        "foreign-plain-tensors": raw(compact(header_of(tensors(), None)), data),
        "foreign-peft-checkpoint": peft_checkpoint(),
        "foreign-metadata-list": raw(compact({"__metadata__": []}), b""),
    }


def metadata() -> dict[str, bytes]:
    """Attacks on the metadata's four texts and on the description's JSON."""
    fields = metadata_of(canonical(described()), tensors())
    data = joined(tensors())

    def lacking(name: str) -> bytes:
        return raw(compact(header_of(tensors(), without(fields, name))), data)

    spaced = json.dumps(described(), sort_keys=True)
    twice = canonical(described()).replace('"length":3', '"length":3,"length":3')
    return {
        "metadata-version-newer": built(version="999999", sites="elsewhere"),
        "metadata-version-not-text": built(version=1),
        "metadata-version-word": built(version="one"),
        "metadata-version-missing": lacking("version"),
        "metadata-digest-missing": lacking("digest"),
        "metadata-digest-not-hexadecimal": built(digest="\x1b[2Jg" + "0" * 59),
        "metadata-digest-null": built(digest=None),
        "metadata-digest-of-another": built(digest=digest_of("{}", tensors())),
        "metadata-description-object": built(prefix=described()),
        "metadata-unknown": built(comment="hello"),
        "description-not-json": built("{sites}"),
        "description-list": built("[]"),
        "description-empty-text": built(""),
        "description-spaced": built(spaced),
        "description-name-twice": built(twice),
        "description-unknown-field": built(described(extra=1)),
        "description-missing-field": built(without(described(), "length")),
        "description-nan": with_recipe('"prompt":NaN'),
        "description-infinity": with_recipe('"prompt":-Infinity'),
        "description-overflow": with_recipe('"prompt":1e999'),
        "description-huge-number": with_recipe('"prompt":' + "9" * 5000),
        "description-surrogate": with_recipe('"prompt":"\\ud800"'),
        "description-nested-65": with_recipe(nested(64)),
        "description-nested-600": with_recipe(nested(600)),
        "description-nested-9000": with_recipe(nested(9000)),
    }


def tensor_files() -> dict[str, bytes]:
    """Attacks on the tensors."""
    first, last = "decoder.0.key", "decoder.1.value"
    extra = {**tensors(), "../x": ("F32", [1], bytes(4))}
    return {
        "dtype-float64": built(described(dtype="float64"), tensors("F64", "d")),
        "dtype-int8": built(described(dtype="int8"), tensors("I8", "b")),
        "dtype-not-text": built(described(dtype=["float32"])),
        "dtype-described-otherwise": built(described(dtype="bfloat16")),
        "dtype-of-one-tensor": built(parts={**tensors(), last: tensors("F16", "e")[last]}),
        "shape-turned": built(parts=changed(first, [1, 2, 3])),
        "shape-flat": built(parts=changed(first, [6])),
        "shape-with-true": built(parts=changed(first, [True, 3, 2])),
        "shape-with-fraction": built(parts=changed(first, [1, 3.0, 2])),
        "shape-longer": built(described(length=4)),
        "tensor-nan": built(parts=changed(last, None, [0, 1, 2, math.nan, 4, 5])),
        "tensor-infinity": built(parts=changed(first, None, [0, 1, 2, 3, 4, -math.inf])),
        "tensor-missing": built(parts=without(tensors(), last)),
        "tensor-unknown": built(parts={**tensors(), "decoder.2.key": ("F32", [1], bytes(4))}),
        "tensor-path": built(parts=extra),
        "tensor-too-few-bytes": built(parts=changed(last, None, [0, 1, 2, 3, 4])),
        "tensor-gap": with_offsets(last, [80, 104]) + bytes(8),
        "tensor-overlap": with_offsets("decoder.1.key", [0, 24]),
        "offsets-negative": with_offsets(first, [-24, 0]),
        "offsets-huge": with_offsets(last, [2**70, 2**70 + 24]),
        "offsets-of-fractions": with_offsets(first, [0.0, 24.0]),
        "offsets-three": with_offsets(first, [0, 24, 48]),
    }


def fields() -> dict[str, bytes]:
    """Attacks on the description's fields."""
    return {
        "stack-path": with_site(stack="../x"),
        "stack-empty": with_site(stack=""),
        "stack-not-ascii": with_site(stack="décodeur"),
        "stack-number": with_site(stack=7),
        "site-name-control": with_site(name="\x1b[31mmodel\n"),
        "site-name-long": with_site(name="a" * 257),
        "site-name-null": with_site(name=None),
        "site-heads-true": with_site(kv_heads=True),
        "site-key-dim-zero": with_site(key_dim=0),
        "site-value-dim-text": with_site(value_dim="2"),
        "site-window-negative": with_site(window=-1),
        "site-layer-negative": with_site(layer=-1),
        "site-layer-huge": with_site(layer=2**31),
        "site-text": built(described(sites=[site(0), "decoder.1"])),
        "site-unknown-field": with_site(device="cuda"),
        "sites-none": built(described(sites=[]), {}),
        "sites-object": built(described(sites={"0": site(0)})),
        "sites-one-twice": built(described(sites=[site(0), site(0)])),
        "length-zero": built(described(length=0)),
        "length-negative": built(described(length=-3)),
        "length-true": built(described(length=True)),
        "length-fraction": built(described(length=3.0)),
        "length-huge": built(described(length=2**40)),
        "length-at-limit": built(described(length=2**31 - 1)),
        "meta-list": built(described(meta=[])),
        "meta-unknown-field": with_meta(pickle="gASV"),
        "meta-missing-field": built(described(meta=without(meta(), "bos"))),
        "meta-backbone-number": with_meta(backbone=7),
        "meta-revision-list": with_meta(revision=["main"]),
        "meta-recipe-list": with_meta(recipe=[]),
        "meta-training-null": with_meta(training=None),
        "meta-parents-text": with_meta(parents="ab" * 32),
        "meta-parents-numbers": with_meta(parents=[1, 2]),
        "policy-positions": with_meta(positions="absolute"),
        "policy-windows": with_meta(windows=""),
        "policy-bos": with_meta(bos="Prefix"),
        "policy-softmax": as_version_2(softmax="both"),
        "policy-softmax-number": as_version_2(softmax=2),
        "policy-softmax-missing": as_version_2(),
        "policy-softmax-joint": as_version_2(softmax="joint"),
        "policy-softmax-in-version-1": with_meta(softmax="own"),
        "policy-softmax-joint-in-version-1": with_meta(softmax="joint"),
    }


def heads() -> dict[str, bytes]:
    """Attacks on a head."""
    nan = struct.pack("<3f", 0, math.nan, 2)
    return {
        "head-list": as_version_3([]),
        "head-missing-field": as_version_3(without(head(), "pooling")),
        "head-unknown-field": as_version_3(code="eval"),
        "head-task-unknown": as_version_3(task="rank"),
        "head-task-number": as_version_3(task=3),
        "head-labels-text": as_version_3(labels="abc"),
        "head-labels-twice": as_version_3(labels=["a", "b", "a"]),
        "head-labels-one": as_version_3(labels=["a"]),
        "head-labels-numbers": as_version_3(labels=[0, 1, 2]),
        "head-labels-control": as_version_3(labels=["a", "b", "\x1b[2J"]),
        "head-labels-line-break": as_version_3(labels=["a", "b", "c\u2028d"]),
        "head-labels-private": as_version_3(labels=["a", "b", "\ue000"]),
        "head-labels-turned": as_version_3(labels=["a", "b", "\u202etxt.exe"]),
        "head-labels-long": as_version_3(labels=["a", "b", "c" * 257]),
        "head-pooling-unknown": as_version_3(pooling="max"),
        "head-pooling-of-tags": as_version_3(task="tag"),
        "head-span-otherwise": as_version_3(task="answer", pooling=None),
        "head-width-zero": as_version_3(width=0),
        "head-width-true": as_version_3(width=True),
        "head-width-huge": as_version_3(width=2**31 - 1),
        "head-shape": as_version_3(width=3),
        "head-dtype": as_version_3(
            parts=head_tensors(bias=("F16", [3], struct.pack("<3e", *range(3))))
        ),
        "head-nan": as_version_3(parts=head_tensors(bias=("F32", [3], nan))),
        "head-tensors-missing": as_version_3(parts=tensors()),
        "head-missing-in-version-3": built(described(meta=meta(softmax="joint")), version="3"),
        "head-without-softmax": built(described(head=head()), head_tensors(), version="3"),
        "head-in-version-1": built(described(head=head()), head_tensors()),
        "head-in-version-2": built(
            described(meta=meta(softmax="own"), head=head()), head_tensors(), version="2"
        ),
        "head-in-version-4-without-pair": built(
            described(meta=meta(softmax="joint"), head=head()), head_tensors(), version="4"
        ),
        "head-regress-in-version-3": as_version_3(task="regress", labels=["value"]),
        "head-classify-in-version-5": as_version_5(task="classify"),
        "head-regress-labels": as_version_5(labels=["score"]),
        "head-regress-pair-number": as_version_5(pair=0),
        "head-regress-mean-whole": as_version_5(mean=3),
        "head-regress-mean-text": as_version_5(mean="3.0"),
        "head-regress-deviation-zero": as_version_5(deviation=0.0),
        "head-regress-deviation-missing": as_version_5(deviation=None),
        "head-regress-pooling-missing": as_version_5(pooling=None),
        "head-multilabel-in-version-3": as_version_3(task="multilabel"),
        "head-multilabel-in-version-4": as_version_4(task="multilabel"),
        "head-multilabel-doubled": for_several(labels=["a", "b", "a"]),
        "head-multilabel-fewer-labels": for_several(labels=["a", "b"]),
        "head-multilabel-one-label": for_several(labels=["a"]),
        "head-multilabel-shape": for_several(width=3),
        "head-multilabel-with-scale": for_several(mean=3.0, deviation=0.5),
        "head-multilabel-pair-missing": built(
            described(meta=meta(softmax="joint"), head=head(task="multilabel")),
            head_tensors(),
            version="5",
        ),
        "head-multilabel-pair-number": for_several(pair=1),
        "head-multilabel-pooling-missing": for_several(pooling=None),
        "head-pair-in-version-3": as_version_3(pair=True),
        "head-pair-false": as_version_4(pair=False),
        "head-pair-number": as_version_4(pair=1),
        "head-pair-of-tags": as_version_4(task="tag", pooling=None),
    }


def attacks() -> dict[str, bytes]:
    """Every hostile file's bytes by name, without the suffix."""
    own = {**whole_files(), **headers(), **metadata(), **tensor_files(), **fields(), **heads()}
    from tests.attacks.pieces import pieces  # which builds on this module

    return {**own, **pieces()}


def main() -> None:
    """Write the files."""
    for old in FOLDER.glob("*.safetensors"):
        old.unlink()
    for name, content in attacks().items():
        (FOLDER / f"{name}.safetensors").write_bytes(content)


if __name__ == "__main__":
    main()
