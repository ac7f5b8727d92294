"""Slices, strengths and prefixes side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.description import Piece
from foreword.errors import PrefixError
from foreword.prefix import DTYPES, Prefix
from tests.arithmetic.test_sums import DIFFERING, RECIPE, begun, exactly, random, with_head


def lengths(prefix: Prefix) -> list[int]:
    return [piece.length for piece in prefix.meta.pieces]


# -- slices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "tokens"),
    [
        (slice(None, 3), [0, 1, 2]),
        (slice(2, 5), [2, 3, 4]),
        (slice(4, None), [4, 5, 6]),
        (slice(-2, None), [5, 6]),
        (slice(2, 99), [2, 3, 4, 5, 6]),
        (3, [3]),
        (-1, [6]),
    ],
)
def test_a_slice_is_of_virtual_tokens(place: Any, tokens: list[int]) -> None:
    prefix = random(1, 7)
    found = prefix[place]
    assert found.length == len(tokens)
    for whole, part in zip(prefix.tensors, found.tensors, strict=True):
        assert torch.equal(part, whole[:, tokens])
    record = found.meta.recipe["composition"]
    of = {"prefix": prefix.digest, "tokens": [tokens[0], tokens[-1] + 1]}
    assert (record["mode"], record["of"]) == ("slice", [of])
    assert found.meta.parents == (prefix.digest,)


def test_all_of_a_prefix_is_itself() -> None:
    prefix = random(1)
    assert prefix[:] is prefix
    assert prefix[0:99] is prefix


def test_a_slice_keeps_templates_head_and_start() -> None:
    prefix = with_head(begun(1, recipe=RECIPE), 1)
    found = prefix[1:]
    assert found.head is prefix.head
    assert found.start is not None
    assert prefix.start is not None
    assert torch.equal(found.start.keys[0], prefix.start.keys[0][:, 1:])
    assert found.meta.recipe["prompt"] == "{mr}"
    assert found.meta.recipe["composition"]["start"]["tokens"] == [1, 3]
    assert found[1:].meta.recipe["composition"]["start"]["tokens"] == [2, 3]


def test_slices_of_sums_are_sums_of_slices() -> None:
    a, b = begun(1), begun(2)
    assert exactly((a + 0.5 * b)[1:], a[1:] + 0.5 * b[1:])


def test_pieces_are_cut_along() -> None:
    parts = [random(seed, 2).strength(seed) for seed in (2, 3, 4)]
    whole = foreword.concat(*parts, names=["a", "b", "c"])
    assert whole[1:5].meta.pieces == (Piece("a", 1, 2), Piece("b", 2, 3), Piece("c", 1, 4))
    assert whole[2:4].meta.pieces == (Piece("b", 2, 3),)
    assert whole[5].meta.pieces == (Piece("c", 1, 4),)


@pytest.mark.parametrize(
    ("place", "part"),
    [
        (slice(2, 2), r"at least one of the prefix's 3 virtual tokens; found none in 2:2"),
        (slice(5, None), "found none in 3:3"),
        (slice(None, None, 2), "steps of 1, as in .*; found 2"),
        (slice(None, None, -1), "steps of 1, as in .*; found -1"),
        (slice(0, 3, 0), "a slice is of whole numbers"),
        (slice("a", None), "a slice is of whole numbers"),
        (3, "virtual tokens 0 to 2; there is no 3"),
        (-4, "there is no -4"),
        ("a", r"as in prefix\[2:8\] or prefix\[3\]; found 'a' \(str\)"),
        (True, r"found True \(bool\)"),
        (1.0, r"found 1.0 \(float\)"),
        ((0, 1), r"found \(0, 1\)"),
    ],
)
def test_slices_that_cannot_be_are_refused(place: Any, part: str) -> None:
    with pytest.raises(PrefixError, match=part):
        _ = random(1)[place]


def test_a_prefix_is_no_sequence() -> None:
    prefix: Any = random(1)
    for call in (
        lambda: list(prefix),
        lambda: iter(prefix),
        lambda: 1 in prefix,
        lambda: len(prefix),
    ):
        with pytest.raises(TypeError):
            call()


# -- strengths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0, 0.5, -1, 3.25])
def test_a_strength_is_a_piece_and_shares_the_tensors(strength: float) -> None:
    prefix = begun(1)
    found = prefix.strength(strength)
    assert found.meta.pieces == (Piece("", 3, strength),)
    assert found.meta.combination == "attention"
    for own, old in zip(found.tensors, prefix.tensors, strict=True):
        assert own is old
    assert found.start is prefix.start
    assert found.meta.recipe == prefix.meta.recipe


def test_strengths_multiply_and_full_strength_is_the_prefix() -> None:
    prefix = begun(1)
    assert prefix.strength(1.0) is prefix
    assert prefix.strength(0.5).strength(0.5).meta.pieces == (Piece("", 3, 0.25),)
    assert prefix.strength(0.5).strength(2).digest == prefix.digest
    both = foreword.concat(prefix, prefix.strength(0.5)).strength(2)
    assert [piece.strength for piece in both.meta.pieces] == [2, 1]
    mixture = foreword.concat(prefix, random(2), combination="logits").strength(0.5)
    assert mixture.meta.combination == "logits"
    assert [piece.strength for piece in mixture.meta.pieces] == [0.5, 0.5]


def test_a_strength_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(PrefixError, match="the strength of a piece must be finite"):
        random(1).strength(1e300).strength(1e300)
    with pytest.raises(PrefixError, match="strength must be a number; found True"):
        random(1).strength(True)


# -- side by side ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("at", [1, 3, 6])
def test_the_halves_of_a_prefix_side_by_side_are_the_whole(at: int, dtype: torch.dtype) -> None:
    prefix = random(1, 7, dtype)
    found = foreword.concat(prefix[:at], prefix[at:])
    assert exactly(found, prefix)
    assert lengths(found) == [at, 7 - at]
    assert found.meta.pieces == (Piece("", at), Piece("", 7 - at))


def test_side_by_side_each_has_its_name_and_its_strength() -> None:
    a, b, c = random(1, 2), random(2, 3), random(3, 1)
    inner = foreword.concat(a.strength(0.5), b, names=["a", "b"])
    whole = foreword.concat(inner, c.strength(-1))
    assert whole.meta.pieces == (Piece("a", 2, 0.5), Piece("b", 3), Piece("", 1, -1))
    for index, tensor in enumerate(whole.tensors):
        parts = [one.tensors[index] for one in (a, b, c)]
        assert torch.equal(tensor, torch.cat(parts, dim=1))
    record = whole.meta.recipe["composition"]
    assert record["mode"] == "concat"
    assert [term["prefix"] for term in record["of"]] == [inner.digest, c.strength(-1).digest]
    assert whole.meta.parents == (inner.digest, c.strength(-1).digest)


def test_side_by_side_comes_back_from_a_file(tmp_path: Path) -> None:
    whole = foreword.concat(random(1), random(2).strength(0.1), names=["förmlich", ""])
    foreword.save_prefix(whole, tmp_path / "whole.safetensors")
    assert b'"version":"6"' in (tmp_path / "whole.safetensors").read_bytes()
    found = foreword.load_prefix(tmp_path / "whole.safetensors")
    assert exactly(found, whole)
    assert (found.meta, found.digest) == (whole.meta, whole.digest)


def test_the_pieces_come_apart_again() -> None:
    a, b = begun(1, bos="prefix"), random(2, 4, bos="prefix").strength(0.5)
    whole = foreword.concat(a, b, names=["a", "b"])
    first, second = whole.split()
    assert exactly(first, a)
    assert exactly(second, b)
    for one in (first, second):
        assert one.meta.pieces == ()
        assert one.meta.bos == "prefix"
        assert one.meta.parents == (whole.digest,)
    assert a.split() == (a,)
    mixture = foreword.concat(a, b, combination="logits")
    assert [one.meta.combination for one in mixture.split()] == ["attention", "attention"]
    (only,) = a.strength(0.5).split()
    assert exactly(only, a)
    assert only.meta.pieces == ()


def test_starts_stand_side_by_side_too() -> None:
    whole = foreword.concat(begun(1), begun(2))
    assert whole.start is not None
    assert exactly(whole.start, foreword.concat(*(2 * [begun(1).start])))
    assert exactly(0 * whole, whole.start)
    assert exactly((2 * whole)[:3], 2 * begun(1))
    assert foreword.concat(begun(1), random(2)).start is None


def test_one_prefix_is_itself() -> None:
    prefix = random(1)
    assert foreword.concat(prefix) is prefix
    assert foreword.concat(prefix, names=["a"]).meta.pieces == (Piece("a", 3),)


def test_a_mixture_and_controls_are_put_together_as_well() -> None:
    a, b = random(1, positions="offset"), random(2, 4, positions="offset")
    mixture = foreword.concat(a.strength(0.7), b.strength(-0.2), combination="logits")
    assert mixture.meta.combination == "logits"
    assert mixture.meta.pieces == (Piece("", 3, 0.7), Piece("", 4, -0.2))
    names = ["", "tone=polite", "tone=rude"]
    control = foreword.concat(b, a, a, names=names, combination="control")
    assert control.meta.combination == "control"
    assert [piece.name for piece in control.meta.pieces] == names
    with pytest.raises(PrefixError, match="has two pieces named ''"):
        foreword.concat(a, a, combination="control")


def test_what_is_itself_in_pieces_is_one_piece_of_a_mixture() -> None:
    a, b = random(1), random(2)
    both = foreword.concat(a, b)
    mixture = foreword.concat(both, a, combination="logits")
    assert mixture.meta.pieces == (Piece("", 6), Piece("", 3))
    with pytest.raises(PrefixError, match=r"strengths \[1.0, 0.5\], and as one piece"):
        foreword.concat(foreword.concat(a, b.strength(0.5)), a, combination="logits")


@pytest.mark.parametrize(("own", "others", "part"), DIFFERING[:-1])
def test_prefixes_that_differ_do_not_stand_side_by_side(
    own: dict[str, Any], others: dict[str, Any], part: str
) -> None:
    with pytest.raises(PrefixError, match=f"concat needs prefixes of the {part}"):
        foreword.concat(random(1, **own), random(2, **others))
    with pytest.raises(PrefixError, match=f"^one file of a mixture of logits needs .* the {part}"):
        foreword.concat(random(1, **own), random(2, **others), combination="logits")


def test_what_cannot_stand_side_by_side_is_refused() -> None:
    a: Any = random(1)
    with pytest.raises(PrefixError, match="concat needs at least one prefix; found none"):
        foreword.concat()
    with pytest.raises(PrefixError, match="prefix 2 must be a Prefix; found 'b'"):
        foreword.concat(a, "b")
    with pytest.raises(PrefixError, match="prefix 1 must be a Prefix; found 'b'"):
        foreword.concat("b")
    with pytest.raises(PrefixError, match="prefix 2 carries a head, and one text has one; drop it"):
        foreword.concat(a, with_head(a, 1))
    with pytest.raises(
        PrefixError, match="one dtype; prefix 1 has torch.float32, prefix 2 torch.bf"
    ):
        foreword.concat(a, a.to(torch.bfloat16))
    offset = random(1, positions="offset")
    with pytest.raises(PrefixError, match=r"they would overlap.*foreword\.cascade\(backbone"):
        foreword.concat(offset, offset)
    with pytest.raises(PrefixError, match="names must be one for each of 2 prefixes; found 'ab'"):
        foreword.concat(a, a, names="ab")
    with pytest.raises(PrefixError, match="at most 64 pieces; found 65"):
        foreword.concat(*([a] * 65))
    mixture = foreword.concat(a, a, combination="logits")
    with pytest.raises(PrefixError, match=r"combined as 'logits'.*prefix.split\(\)"):
        foreword.concat(a, mixture)
    with pytest.raises(PrefixError, match="combined as 'logits'"):
        _ = mixture[:2]


def test_a_start_in_pieces_is_cut_as_numbers_are() -> None:
    start = random(0).strength(0.5)
    prefix = dataclasses.replace(random(1), start=start)
    assert prefix[:2].start is not None
    assert prefix[:2].start.meta.pieces == ()
