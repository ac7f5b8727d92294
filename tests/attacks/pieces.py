"""Attacks on the pieces of a prefix: a part of tests/attacks/make.py."""

from __future__ import annotations

import math
from typing import Any

from tests.attacks.make import (
    built,
    described,
    head,
    head_tensors,
    meta,
    without,
)


def piece(name: Any = "formal", length: Any = 1, strength: Any = 0.5) -> dict[str, Any]:
    """A described piece."""
    return {"name": name, "length": length, "strength": strength}


GOOD = [piece(), piece("", 2, 1.0)]


def piecewise(listed: Any = None, combination: Any = "attention", **changes: Any) -> dict[str, Any]:
    """The good meta with pieces."""
    listed = GOOD if listed is None else listed
    return meta(softmax="joint", pieces=listed, combination=combination, **changes)


def as_version_6(listed: Any = None, combination: Any = "attention", **changes: Any) -> bytes:
    """The good file with pieces, as one of version 6, but for fields of its description."""
    fields = {"meta": piecewise(listed, combination), "head": None, **changes}
    return built(described(**fields), version="6")


def with_head(**changes: Any) -> bytes:
    """The same with a head."""
    entry = {**head(), "pair": False, **changes}
    return built(described(meta=piecewise(), head=entry), head_tensors(), version="6")


def controls(*names: str) -> list[dict[str, Any]]:
    """Pieces of one token each."""
    return [piece(name) for name in names]


def pieces() -> dict[str, bytes]:
    """Every hostile file with pieces."""
    return {
        "pieces-none": as_version_6([]),
        "pieces-object": as_version_6({"0": piece()}),
        "pieces-text": as_version_6(["formal", piece("", 2)]),
        "pieces-65": as_version_6([piece()] * 65, length=65),
        "pieces-in-version-1": built(described(meta=piecewise())),
        "pieces-in-version-2": built(
            described(meta={**piecewise(), "softmax": "own"}), version="2"
        ),
        "pieces-in-version-3": built(
            described(meta=piecewise(), head=head()), head_tensors(), version="3"
        ),
        "pieces-missing": as_version_6(meta=without(piecewise(), "pieces")),
        "pieces-without-combination": as_version_6(meta=without(piecewise(), "combination")),
        "pieces-without-softmax": as_version_6(meta=without(piecewise(), "softmax")),
        "pieces-without-word-of-a-head": built(described(meta=piecewise()), version="6"),
        "pieces-unknown-field": as_version_6([{**piece(), "code": "eval"}, piece("", 2)]),
        "pieces-missing-field": as_version_6([without(piece(), "strength"), piece("", 2)]),
        "pieces-name-number": as_version_6([piece(7), piece("", 2)]),
        "pieces-name-control": as_version_6([piece("\x1b[2J"), piece("", 2)]),
        "pieces-name-turned": as_version_6([piece("\u202etxt.exe"), piece("", 2)]),
        "pieces-name-long": as_version_6([piece("a" * 257), piece("", 2)]),
        "pieces-length-zero": as_version_6([piece(length=0), piece("", 3)]),
        "pieces-length-negative": as_version_6([piece(length=-1), piece("", 4)]),
        "pieces-length-true": as_version_6([piece(length=True), piece("", 2)]),
        "pieces-length-huge": as_version_6([piece(length=2**40), piece("", 2)]),
        "pieces-too-short": as_version_6([piece(), piece("", 1)]),
        "pieces-too-long": as_version_6([piece(), piece("", 3)]),
        "pieces-strength-whole": as_version_6([piece(strength=1), piece("", 2)]),
        "pieces-strength-text": as_version_6([piece(strength="1.0"), piece("", 2)]),
        "pieces-strength-null": as_version_6([piece(strength=None), piece("", 2)]),
        "pieces-strength-minus-zero": as_version_6([piece(strength=-0.0), piece("", 2)]),
        "pieces-strength-nan": as_version_6([piece(strength=math.nan), piece("", 2)]),
        "pieces-strength-infinite": as_version_6([piece(strength=math.inf), piece("", 2)]),
        "pieces-combination-unknown": as_version_6(combination="sum"),
        "pieces-combination-number": as_version_6(combination=2),
        "pieces-control-alone": as_version_6([piece("", 3)], "control"),
        "pieces-control-twice": as_version_6(controls("", "a=b", "a=b"), "control"),
        "pieces-control-without-value": as_version_6(controls("", "a=b", "a="), "control"),
        "pieces-head-list": as_version_6(head=[]),
        "pieces-head-without-pair": built(
            described(meta=piecewise(), head=head()), head_tensors(), version="6"
        ),
        "pieces-head-with-scale": with_head(mean=3.0, deviation=0.5),
        "pieces-head-without-scale": with_head(task="regress", labels=["value"]),
        "pieces-head-pair-number": with_head(pair=0),
        "pieces-head-of-none": built(
            described(meta=piecewise(), head=None), head_tensors(), version="6"
        ),
    }


REFUSED = {
    "pieces-none": "its pieces are [], expected a list of at least one",
    "pieces-object": "its pieces are {'0': {",
    "pieces-text": "piece 0 is 'formal', expected an object",
    "pieces-65": "a prefix has at most 64 pieces; found 65",
    "pieces-in-version-1": "its meta has an unknown 'combination'",
    "pieces-in-version-2": "its meta has an unknown 'combination'",
    "pieces-in-version-3": "its meta has an unknown 'combination'",
    "pieces-missing": "its meta has no 'pieces'",
    "pieces-without-combination": "its meta has no 'combination'",
    "pieces-without-softmax": "its meta has no 'softmax'",
    "pieces-without-word-of-a-head": "its description has no 'head'",
    "pieces-unknown-field": "piece 0 has an unknown 'code'",
    "pieces-missing-field": "piece 0 has no 'strength'",
    "pieces-name-number": "piece 0: name is 7, expected text",
    "pieces-name-control": "printable characters; found '\\x1b[2J'",
    "pieces-name-turned": "printable characters; found '\\u202etxt.exe'",
    "pieces-name-long": "piece 0: the name of a piece is at most 256 printable characters",
    "pieces-length-zero": "piece 0: length is 0, expected a whole number",
    "pieces-length-negative": "piece 0: length is -1, expected a whole number",
    "pieces-length-true": "piece 0: length is True, expected a whole number",
    "pieces-length-huge": "piece 0: length is 1099511627776, expected a whole number",
    "pieces-too-short": "its pieces have 2 virtual tokens, its length is 3",
    "pieces-too-long": "its pieces have 4 virtual tokens, its length is 3",
    "pieces-strength-whole": "piece 0: strength is 1, expected a fraction",
    "pieces-strength-text": "piece 0: strength is '1.0', expected a fraction",
    "pieces-strength-null": "piece 0: strength is None, expected a fraction",
    "pieces-strength-minus-zero": "piece 0: strength is -0.0, expected a fraction, and of zeros 0.0",
    "pieces-strength-nan": "its description is not JSON: NaN is not a JSON number",
    "pieces-strength-infinite": "its description is not JSON: Infinity is not a JSON number",
    "pieces-combination-unknown": "combination 'sum' is unknown",
    "pieces-combination-number": "meta field 'combination' must be text; found 2",
    "pieces-control-alone": "combination 'control' needs a shared piece and one for each value",
    "pieces-control-twice": "combination 'control' has two pieces named 'a=b'",
    "pieces-control-without-value": "is named attribute=value; found 'a='",
    "pieces-head-list": "its head is [], expected an object",
    "pieces-head-without-pair": "its head has no 'pair'",
    "pieces-head-with-scale": "its head has an unknown 'deviation'",
    "pieces-head-without-scale": "its head has no 'deviation'",
    "pieces-head-pair-number": "its head: pair is 0, expected true or false",
    "pieces-head-of-none": "'head.bias' has no site",
}
"""Per hostile file a part of its error's message; each is a `CorruptFile`."""
