"""Where a prefix with control starts: a shared piece, and one behind it for each value.

The virtual tokens of an attribute's values have one place, behind those of the attributes before it, so
that what a row selects stands in a row, as text would.

Shapes: S virtual tokens of the shared piece, V of a value, A attributes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.backbone.tokens import check_known, tokenized
from foreword.description import Piece
from foreword.errors import PrefixError
from foreword.prefix import Prefix

Values = Mapping[str, tuple[str, ...]]
"""By attribute its values."""


def with_captured(
    backbone: Backbone,
    shared: Prefix,
    ids: Sequence[int],
    values: Values,
    length: int,
    *,
    own: bool,
) -> Prefix:
    """A shared piece, and behind it the values' texts as the backbone captures them there.

    Args:
        backbone: The backbone.
        shared: The shared piece, at the place that it has with nothing behind it.
        ids: S token ids that the values' texts are read behind.
        values: The attributes.
        length: V.
        own: Whether the shared piece is a capture of these tokens; else it is moved to make room.

    Raises:
        UnsupportedModel: It cannot be moved, as `Backbone.shifted` says.
    """
    policy = "offset" if backbone.positions == "offset" else shared.meta.positions
    slots = {name: value_tokens(backbone, name, "", length) for name in values}

    def captured(tokens: Mapping[str, Sequence[int]]) -> Prefix:
        text = [*ids, *(token for name in values for token in tokens[name])]
        return backbone.capture(text, policy).to(torch.float32)

    if own:
        front = _cut(captured(slots), 0, len(ids))
    else:
        behind = 0 if policy == "offset" else len(values) * length
        front = backbone.shifted(shared.to(torch.float32), -behind)
    parts = [front]
    for place, (name, known) in enumerate(values.items()):
        first = len(ids) + place * length
        for value in known:
            whole = captured({**slots, name: value_tokens(backbone, name, value, length)})
            parts.append(_cut(whole, first, first + length))
    return _joined(shared, parts, values)


def with_made(shared: Prefix, made: Prefix, values: Values) -> Prefix:
    """A shared piece, and behind it virtual tokens that were made for the values, one after the other.

    Args:
        shared: The shared piece.
        made: The values' virtual tokens.
        values: The attributes.
    """
    count = sum(map(len, values.values()))
    length = made.length // count
    parts = [_cut(made, number * length, (number + 1) * length) for number in range(count)]
    return _joined(shared, [shared, *parts], values)


def value_tokens(backbone: Backbone, attribute: str, value: str, length: int) -> list[int]:
    """Tokens of ``attribute: value``, or of the value alone where that is too long, repeated and cut.

    Raises:
        PrefixError: They are no tokens that the backbone knows.
    """
    both, alone = (_ids(backbone, text) for text in (f"{attribute}: {value}".rstrip(), value))
    ids = alone if value and len(both) > length else both
    return (ids * -(-length // len(ids)))[:length]


def _ids(backbone: Backbone, text: str) -> list[int]:
    if backbone.tokenizer is None:
        raise PrefixError("this backbone has no tokenizer; attributes need one to start from texts")
    ids: list[int] = tokenized(backbone.tokenizer, text, add_special_tokens=False)["input_ids"]
    check_known(ids, backbone.vocabulary, backbone.tokenizer, PrefixError)
    return ids


def _cut(prefix: Prefix, first: int, end: int) -> Prefix:
    """Some virtual tokens of a prefix, without a record of it."""

    def part(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensor[:, first:end] for tensor in tensors)

    return dataclasses.replace(prefix, keys=part(prefix.keys), values=part(prefix.values))


def _joined(shared: Prefix, parts: Sequence[Prefix], values: Values) -> Prefix:
    """The parts' virtual tokens one after the other, at the shared one's sites, with its meta."""
    labels = [site.label for site in shared.sites]
    parts = [part.only(labels) for part in parts]
    named = (f"{name}={value}" for name, known in values.items() for value in known)
    names = ["", *named]
    pieces = tuple(Piece(name, part.length) for name, part in zip(names, parts, strict=True))
    meta = dataclasses.replace(shared.meta, pieces=pieces, combination="control")
    keys = zip(*(part.keys for part in parts), strict=True)
    own = zip(*(part.values for part in parts), strict=True)
    return dataclasses.replace(
        shared,
        keys=tuple(torch.cat(every, dim=1) for every in keys),
        values=tuple(torch.cat(every, dim=1) for every in own),
        meta=meta,
    )
