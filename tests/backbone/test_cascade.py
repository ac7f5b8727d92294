"""Prefixes behind one another, against the capture of the whole text.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import foreword
from foreword.backbone import Backbone
from foreword.description import Piece
from foreword.errors import BackboneError, MismatchError, PrefixError, UnsupportedModel
from foreword.prefix import Prefix
from tests.backbone.test_rotate import apart, backbone_of, text
from tests.conftest import tiny_model

ROTARY = ("llama", "gpt_neox", "cohere2", "qwen3")
UNTURNED = ("gpt2", "opt", "bloom")
TOLERANCE = 1e-5
"""Of rotated keys, relative to a site's largest (tests/backbone/test_rotate.py)."""


def logits(backbone: Backbone, prefix: Prefix) -> Tensor:
    """(T, V) of a short text behind a prefix."""
    with backbone.attached(prefix), torch.no_grad():
        found: Tensor = backbone.model(torch.tensor([text(11, 7)])).logits[0]
    return found


def plain(prefix: Prefix) -> Prefix:
    """The same at full strength, without word of pieces."""
    return prefix.with_meta(pieces=())


def same(backbone: Backbone, found: Prefix, whole: Prefix) -> None:
    """Check that a prefix is the capture of a whole text, in its numbers and in what it does."""
    assert apart(found.keys, whole.keys) <= TOLERANCE
    assert apart(found.values, whole.values) <= TOLERANCE
    expected = logits(backbone, whole)
    largest = max(1.0, float(expected.abs().max()))
    assert float((logits(backbone, plain(found)) - expected).abs().max()) <= TOLERANCE * largest


def behind(whole: Prefix, first: int) -> Prefix:
    """What was captured behind a text's first tokens, which under ``offset`` is no slice: see below."""
    return dataclasses.replace(
        whole,
        keys=tuple(key[:, first:] for key in whole.keys),
        values=tuple(value[:, first:] for value in whole.values),
    )


@pytest.mark.parametrize("name", [*ROTARY, *UNTURNED])
def test_a_text_behind_its_beginning_is_the_whole_text(name: str) -> None:
    backbone, ids = backbone_of(name), text(13)
    whole = backbone.capture(ids)
    first, rest = backbone.capture(ids[:5]), behind(whole, 5)
    found = foreword.cascade(backbone, first, rest)
    same(backbone, found, whole)
    assert torch.equal(found.keys[0][:, 5:], rest.keys[0])
    if name in UNTURNED:
        for key, *parts in zip(found.keys, first.keys, rest.keys, strict=True):
            assert torch.equal(key, torch.cat(parts, dim=1))


@pytest.mark.parametrize("name", ROTARY)
def test_three_parts_are_each_shifted_by_all_behind_them(name: str) -> None:
    backbone, ids = backbone_of(name), text(14)
    whole = backbone.capture(ids)
    middle = backbone.capture(ids[:9])[4:]
    found = foreword.cascade(backbone, backbone.capture(ids[:4]), middle, whole[9:])
    same(backbone, found, whole)
    assert [piece.length for piece in found.meta.pieces] == [4, 5, 5]
    untold = torch.cat([backbone.capture(ids[:4]).keys[0], middle.keys[0], whole[9:].keys[0]], 1)
    assert apart((untold,), (whole.keys[0],)) > 1e-3


@pytest.mark.parametrize("name", ROTARY)
def test_under_offset_the_later_parts_are_turned(name: str) -> None:
    backbone, ids = backbone_of(name), text(13)
    whole, first = backbone.capture(ids, "offset"), backbone.capture(ids[:5], "offset")
    rest = backbone.moved(backbone.capture(ids, "free")[5:], "offset")
    found = foreword.cascade(backbone, first, rest)
    same(backbone, found, whole)
    assert torch.equal(found.keys[0][:, :5], first.keys[0])


def test_a_cascade_says_what_it_is_of() -> None:
    backbone = backbone_of("llama")
    a, b = backbone.capture(text(4)), backbone.capture(text(3, 8)).strength(0.5)
    found = foreword.cascade(backbone, a, b, names=["role", "style"])
    assert found.meta.pieces == (Piece("role", 4), Piece("style", 3, 0.5))
    assert found.meta.parents == (a.digest, b.digest)
    assert found.meta.recipe["composition"]["mode"] == "cascade"
    assert found.meta.recipe["composition"]["start"] is None
    assert found.meta.positions == "free"
    assert foreword.cascade(backbone, a) is a
    assert foreword.cascade(backbone, a, names=["role"]).meta.pieces == (Piece("role", 4),)


def test_starts_are_shifted_with_their_prefixes() -> None:
    backbone, ids = backbone_of("llama"), text(13)
    whole = backbone.capture(ids)
    first = dataclasses.replace(backbone.capture(text(5, 9)), start=backbone.capture(ids[:5]))
    rest = dataclasses.replace(backbone.capture(text(8, 9)), start=whole[5:])
    found = foreword.cascade(backbone, first, rest)
    assert found.start is not None
    same(backbone, found.start, whole)
    moved = backbone.moved(first, "offset").start
    assert moved is not None
    assert apart(moved.keys, backbone.capture(ids[:5], "offset").keys) <= TOLERANCE


def test_a_shift_is_a_rotation_both_ways(tiny: Backbone) -> None:
    prefix = tiny.capture(text(6))
    there = tiny.shifted(prefix, 9)
    assert apart(there.keys, prefix.keys) > 1e-3
    assert apart(tiny.shifted(there, -9).keys, prefix.keys) <= 1e-6
    assert all(map(torch.equal, there.values, prefix.values))
    assert tiny.shifted(prefix, 0) is prefix
    composition = there.meta.recipe["composition"]
    assert composition["of"] == [{"prefix": prefix.digest, "by": 9}]
    assert composition["start"] is None


def test_the_end_of_a_prefix_under_offset_would_stand_where_text_does(tiny: Backbone) -> None:
    free = tiny.capture(text(6))
    offset = tiny.moved(free, "offset")
    assert torch.equal(offset[:4].keys[0], offset.keys[0][:, :4])
    for cut in (
        lambda: offset[2:],
        lambda: offset[3],
        lambda: foreword.cascade(tiny, offset, offset).split(),
    ):
        with pytest.raises(PrefixError, match="would stand where the text does"):
            cut()
    expected = tiny.moved(free[2:], "offset")
    same(tiny, expected, tiny.moved(tiny.moved(offset, "free")[2:], "offset"))


def test_a_mixture_is_moved_by_its_pieces(tiny: Backbone) -> None:
    one, two = tiny.capture(text(6)), tiny.capture(text(9))
    mixture = foreword.concat(one, two.strength(-0.5), combination="logits")
    with pytest.raises(PrefixError, match="moved by its own length"):
        tiny.moved(mixture, "offset")


def test_gated_prefixes_are_not_put_side_by_side(tiny: Backbone) -> None:
    gated = tiny.capture(text(6)).with_meta(softmax="own")
    for put in (foreword.concat, lambda *both: foreword.cascade(tiny, *both)):
        with pytest.raises(PrefixError, match="which averages what they add"):
            put(gated, gated)
    foreword.concat(gated, gated, combination="logits")


def test_what_cannot_be_behind_one_another_is_refused(tiny: Backbone) -> None:
    prefix: Any = tiny.capture(text(6))
    with pytest.raises(PrefixError, match="cascade needs at least one prefix; found none"):
        foreword.cascade(tiny)
    with pytest.raises(BackboneError, match="backbone must be a Backbone"):
        foreword.cascade(prefix, prefix)  # type: ignore[arg-type]
    with pytest.raises(PrefixError, match="prefix 2 must be a Prefix"):
        foreword.cascade(tiny, prefix, None)  # type: ignore[arg-type]
    offset = tiny.capture(text(6), "offset")
    with pytest.raises(
        PrefixError, match="cascade needs prefixes of the same positions; found 'free'"
    ):
        foreword.cascade(tiny, prefix, offset)
    other = Backbone(tiny_model(head_dim=8)).capture([5, 6])
    with pytest.raises(MismatchError, match="key dimension"):
        foreword.cascade(tiny, other, other)
    table = backbone_of("gpt2")
    long = table.capture(text(50))
    with pytest.raises(
        PrefixError, match="100 virtual tokens in all leave -4 of the backbone's 96"
    ):
        foreword.cascade(table, long, long)
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    stretched = Backbone(tiny_model(rope_parameters=scaled))
    part = stretched.capture([5, 6, 7])
    with pytest.raises(UnsupportedModel, match="'dynamic'"):
        foreword.cascade(stretched, part, part)


def test_rotations_are_kept_while_they_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server measures one for each shift that its clients think of."""
    own = foreword.Backbone(tiny_model(), name="tiny")
    monkeypatch.setattr("foreword.backbone.backbone.TURNS", 3)
    prefix = own.capture([5, 6, 7])
    first = own.turned(prefix, 1)
    for by in (2, 3, -3, 4, 5, 1):
        again = own.turned(prefix, by)
        assert len(own._turns) <= 3
    assert list(own._turns) == [4, 5, 1]
    assert all(map(torch.equal, again.keys, first.keys))
