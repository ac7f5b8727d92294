"""Sums of what was learned, and interpolation, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.data.room import LONGEST
from foreword.data.written import SPECIAL
from foreword.errors import PrefixError
from foreword.head import Head
from foreword.prefix import DTYPES, Prefix, PrefixMeta
from tests.test_prefix import SITES, made

RECIPE = {"method": "prefix", "prompt": "{mr}", "target": "{ref}", "init": "text", "seed": 0}


def random(seed: int, length: int = 3, dtype: torch.dtype = torch.float32, **meta: Any) -> Prefix:
    """A prefix of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    like = made(length=length)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator).to(dtype)

    keys, values = tuple(map(noise, like.keys)), tuple(map(noise, like.values))
    return Prefix(SITES, keys, values, PrefixMeta(**meta))


START = random(0)


def begun(seed: int, **fields: Any) -> Prefix:
    """A random prefix that started at `START`."""
    prefix = random(seed, **{"recipe": RECIPE, **fields})
    return dataclasses.replace(prefix, start=START)


def exactly(one: Prefix, other: Prefix) -> bool:
    """Whether two prefixes hold the same numbers."""
    return one.dtype == other.dtype and all(
        torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True)
    )


def close(one: Prefix, other: Prefix, atol: float = 1e-6) -> bool:
    return all(
        torch.allclose(a.float(), b.float(), rtol=0, atol=atol)
        for a, b in zip(one.tensors, other.tensors, strict=True)
    )


def with_head(prefix: Prefix, seed: int, **fields: Any) -> Prefix:
    """The prefix with a head of random numbers for three labels."""
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)
    given = {"task": "tag", "labels": ("a", "b", "c"), "pooling": None, **fields}
    return prefix.with_head(Head(weight=weight, bias=bias, **given))


# -- sums --------------------------------------------------------------------------------------------


def test_a_sum_is_the_start_and_what_both_learned() -> None:
    """Start = (s), a = s + 1, b = s + 10: their sum is s + 11, and so on."""
    ones = [torch.ones_like(tensor) for tensor in START.tensors]

    def moved(by: float) -> Prefix:
        tensors = [t + by * one for t, one in zip(START.tensors, ones, strict=True)]
        return Prefix(SITES, tuple(tensors[:2]), tuple(tensors[2:]), start=START)

    a, b = moved(1), moved(10)
    assert close(a + b, moved(11), 1e-5)
    assert close(a - b, moved(-9), 1e-5)
    assert close(b - a, moved(9), 1e-5)
    assert close(0.5 * b, moved(5), 1e-5)
    assert close(b * 0.5, moved(5), 1e-5)
    assert close(b / 4, moved(2.5), 1e-5)
    assert close(-a, moved(-1), 1e-5)
    assert close(0.7 * a + b - 2 * a, moved(8.7), 1e-5)


def test_a_sum_is_the_formula_number_by_number() -> None:
    a, b = begun(1), begun(2)
    for found, wanted in (
        (a + b, lambda s, x, y: s + (x - s) + (y - s)),
        (a - b, lambda s, x, y: s + (x - s) - (y - s)),
        (1.5 * a, lambda s, x, y: s + 1.5 * (x - s)),
    ):
        every = zip(found.tensors, START.tensors, a.tensors, b.tensors, strict=True)
        for tensor, *parts in every:
            expected = wanted(*(part.double() for part in parts)).float()
            torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_one_and_zero_are_the_first_bit_for_bit(dtype: torch.dtype) -> None:
    a, b = (begun(seed, dtype=dtype) for seed in (1, 2))
    assert 1 * a is a
    assert exactly(1 * a + 0 * b, a)
    assert exactly(0 * b + 1 * a, a)
    assert exactly(a - 0 * b, a)
    assert exactly(0 * a, START.to(dtype))
    assert exactly(a - a, START.to(dtype))


def test_what_is_added_can_be_taken_away() -> None:
    a, b = begun(1), begun(2)
    assert close(a + b - b, a)
    assert close(-1 * -a, a)
    assert close(3 * a / 3, a)
    assert close((a + b) + (a - b), 2 * a)
    half = begun(1, dtype=torch.bfloat16)
    assert close(half + b - b, half, 2**-6)


def test_a_sum_has_the_dtype_of_the_first() -> None:
    a, b = begun(1, dtype=torch.bfloat16), begun(2)
    assert (a + b).dtype == torch.bfloat16
    assert (b + a).dtype == torch.float32
    assert exactly(a + b, (a.to(torch.float32) + b).to(torch.bfloat16))


def test_sums_do_not_change_what_they_are_made_of() -> None:
    a, b = begun(1), begun(2)
    digests = a.digest, b.digest, START.digest
    _ = a + b, a - b, 2 * a, a.interpolate(b, 0.5)
    fresh = [Prefix(p.sites, p.keys, p.values, p.meta).digest for p in (a, b, START)]
    assert tuple(fresh) == digests


def test_heads_are_added_as_keys_are() -> None:
    start = with_head(START, 5)
    a, b = (dataclasses.replace(with_head(begun(seed), seed), start=start) for seed in (1, 2))
    assert a.head is not None
    assert b.head is not None
    assert start.head is not None
    found = (a + b).head
    assert found is not None
    expected = a.head.weight + (b.head.weight - start.head.weight)
    torch.testing.assert_close(found.weight, expected, rtol=0, atol=1e-6)
    half = a.interpolate(b, 0.5).head
    assert half is not None
    torch.testing.assert_close(half.bias, (a.head.bias + b.head.bias) / 2, rtol=0, atol=1e-6)


def test_heads_that_started_elsewhere_are_not_added() -> None:
    a = dataclasses.replace(with_head(begun(1), 1), start=with_head(START, 5))
    with pytest.raises(PrefixError, match="started from different keys and values"):
        _ = a + with_head(begun(2), 2)


def test_a_head_that_the_start_had_not_started_at_zero() -> None:
    a = with_head(begun(1), 1)
    assert a.head is not None
    found = (0.5 * a).head
    assert found is not None
    assert torch.equal(found.weight, 0.5 * a.head.weight)


# -- interpolation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_interpolation_ends_exactly_at_its_ends(dtype: torch.dtype) -> None:
    a, b = random(1, dtype=dtype), random(2, dtype=dtype)
    a.keys[0][0, 0, 0] = -0.0
    assert exactly(a.interpolate(b, 0), a)
    assert exactly(a.interpolate(b, 1), b)
    assert str(a.interpolate(b, 0).keys[0][0, 0, 0].item()) == "-0.0"


@pytest.mark.parametrize("t", [0.25, -1, 2.5])
def test_interpolation_is_the_formula(t: float) -> None:
    a, b = random(1), random(2)
    for found, x, y in zip(a.interpolate(b, t).tensors, a.tensors, b.tensors, strict=True):
        torch.testing.assert_close(found, (1 - t) * x + t * y, rtol=1e-6, atol=1e-6)


def test_an_interpolation_has_a_start_where_both_have_one() -> None:
    a, b = begun(1), begun(2)
    half = a.interpolate(b, 0.5)
    assert half.start is START
    assert close(half, 0.5 * a + 0.5 * b - 0 * a)
    other = dataclasses.replace(b, start=random(3))
    for found in (a.interpolate(random(2), 0.5), a.interpolate(other, 0.5)):
        assert found.start is None
        assert found.meta.recipe["composition"]["start"] is None


# -- what is recorded --------------------------------------------------------------------------------


def test_a_sum_names_its_parents_and_keeps_the_templates() -> None:
    a = begun(1, family="llama", training={"data": "d", "steps": 9, LONGEST: 7, SPECIAL: [2]})
    b = begun(2, family="llama", recipe={**RECIPE, "prompt": "{other}"})
    meta = (0.5 * a - 2 * b).meta
    assert meta.family == "llama"
    assert meta.parents == (a.digest, b.digest)
    assert meta.training == {LONGEST: 7, SPECIAL: [2]}
    composition = meta.recipe["composition"]
    assert composition["mode"] == "sum"
    assert composition["of"] == [
        {"prefix": a.digest, "weight": 0.5},
        {"prefix": b.digest, "weight": -2.0},
    ]
    assert composition["start"] == {"parents": [], "data": "d", "tokens": [0, 3]}
    assert {**meta.recipe, "composition": 0} == {**RECIPE, "composition": 0}


def test_a_prefix_that_is_taken_away_again_weighs_nothing() -> None:
    a, b = begun(1), begun(2)
    of = (a + b - b).meta.recipe["composition"]["of"]
    assert of == [{"prefix": a.digest, "weight": 1.0}, {"prefix": b.digest, "weight": 0.0}]


def test_what_peft_said_of_the_first_is_not_said_of_a_sum() -> None:
    a = begun(1, recipe={**RECIPE, "peft": {"config": {}}})
    assert "peft" not in (2 * a).meta.recipe


def test_a_sum_comes_back_from_a_file(tmp_path: Path) -> None:
    found = begun(1) + begun(2)
    foreword.save_prefix(found, tmp_path / "sum.safetensors")
    loaded = foreword.load_prefix(tmp_path / "sum.safetensors")
    assert exactly(loaded, found)
    assert (loaded.digest, loaded.start) == (found.digest, None)


@pytest.mark.parametrize("record", [3, [], {}, {"mode": "sum"}, {"mode": "sum", "of": [1]}])
def test_a_record_of_another_kind_is_not_believed(record: Any) -> None:
    """A file's recipe may say anything."""
    a = begun(1, recipe={**RECIPE, "composition": record})
    composition = (2 * a).meta.recipe["composition"]
    assert composition["of"] == [{"prefix": a.digest, "weight": 2.0}]
    assert composition["start"] is None


# -- what is refused ---------------------------------------------------------------------------------


def test_without_a_start_a_sum_says_how_to_get_one() -> None:
    a, bare = begun(1), random(2)
    with pytest.raises(PrefixError, match=r"where the second prefix started.*foreword.with_start"):
        _ = a + bare
    with pytest.raises(PrefixError, match="where the first prefix started"):
        _ = bare - a
    for call in (lambda: 2 * bare, lambda: -bare, lambda: bare / 2):
        with pytest.raises(PrefixError, match="a multiple is of what was learned"):
            call()


def test_prefixes_of_other_starts_are_not_added() -> None:
    other = dataclasses.replace(begun(2), start=random(9))
    with pytest.raises(
        PrefixError, match="started from different keys and values. Train both with"
    ):
        _ = begun(1) + other
    same = dataclasses.replace(begun(2), start=random(0, family="x"))
    assert exactly(begun(1) + same, begun(1) + begun(2))


DIFFERING = [
    (
        {"family": "a"},
        {"family": "b"},
        "same family; found 'a' and 'b': use prefixes of one backbone",
    ),
    ({"fingerprint": "a"}, {"fingerprint": "b"}, "same fingerprint.*with_meta"),
    ({"tokenizer": "a"}, {"tokenizer": "b"}, "same tokenizer; found 'a' and 'b'"),
    (
        {},
        {"positions": "offset"},
        "same positions; found 'free' and 'offset': .*, or move one with back",
    ),
    ({}, {"windows": "windowed"}, "same windows"),
    ({}, {"bos": "prefix"}, "same bos; found 'none' and 'prefix'"),
    ({}, {"softmax": "own"}, "same softmax; found 'joint' and 'own': train both gated"),
    ({}, {"length": 4}, r"same length; found 3 and 4: cut the longer one, as in prefix\[:8\]"),
]


@pytest.mark.parametrize(("own", "others", "part"), DIFFERING)
def test_prefixes_that_differ_are_not_added(
    own: dict[str, Any], others: dict[str, Any], part: str
) -> None:
    a, b = random(1, **own), random(2, **others)
    with pytest.raises(PrefixError, match=f"a sum needs prefixes of the {part}"):
        _ = a + b
    with pytest.raises(PrefixError, match=f"interpolation needs prefixes of the {part}"):
        a.interpolate(b, 0.5)


@pytest.mark.parametrize("name", ["family", "fingerprint", "tokenizer"])
def test_what_is_not_known_does_not_differ(name: str) -> None:
    a, b = begun(1, **{name: "a"}), begun(2)
    assert getattr((a + b).meta, name) == "a"


def test_prefixes_at_other_sites_are_not_added() -> None:
    a, b = random(1), random(2)
    with pytest.raises(
        PrefixError, match=r"found 2 and 1, and only one has decoder\.0. Cut one down"
    ):
        _ = a + b.only(["decoder.1"])
    wide = dataclasses.replace(SITES[0], window=None)
    other = Prefix((wide, SITES[1]), b.keys, b.values)
    with pytest.raises(PrefixError, match=r"one geometry; site decoder\.0 has .* 9\) in one and"):
        _ = a + other


def test_heads_that_differ_are_not_added() -> None:
    a, b = begun(1), begun(2)
    with pytest.raises(PrefixError, match=r"found one in only one of them.*with_head\(None\)"):
        _ = a + with_head(b, 2)
    with pytest.raises(PrefixError, match="same labels of the head"):
        _ = with_head(a, 1) + with_head(b, 2, labels=("a", "b", "d"))
    classifying = with_head(b, 2, task="classify", pooling="mean")
    with pytest.raises(PrefixError, match="same task of the head; found 'tag' and 'classify'"):
        _ = with_head(a, 1) + classifying


def test_prefixes_at_other_strengths_are_not_added() -> None:
    a, b = begun(1), begun(2)
    with pytest.raises(PrefixError, match=r"same \(length, strength\).*\(a \+ b\)\.strength"):
        _ = a.strength(0.5) + b
    both = a.strength(0.5) + b.strength(0.5)
    assert exactly(both, a + b)
    assert both.meta.pieces == a.strength(0.5).meta.pieces
    mixture = foreword.concat(a, b, combination="logits")
    with pytest.raises(PrefixError, match=r"combined as 'logits'. Take its pieces apart with"):
        _ = mixture + mixture


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), 10**400])
def test_weights_that_are_not_finite_are_refused(weight: float) -> None:
    a = begun(1)
    with pytest.raises(PrefixError, match="a weight must be finite"):
        _ = weight * a
    with pytest.raises(PrefixError, match="t must be finite"):
        a.interpolate(a, weight)
    with pytest.raises(PrefixError, match="strength must be finite"):
        a.strength(weight)


def test_what_is_no_number_and_no_prefix_is_refused() -> None:
    a = begun(1)
    for call in (lambda: a + 1, lambda: a * a, lambda: a * "2", lambda: a / None, lambda: True * a):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(PrefixError, match="cannot be divided by 0"):
        _ = a / 0
    with pytest.raises(PrefixError, match="other must be a Prefix"):
        a.interpolate(3, 0.5)
    with pytest.raises(PrefixError, match="t must be a number"):
        a.interpolate(a, "half")


def test_a_result_that_the_dtype_does_not_hold_is_refused() -> None:
    a = begun(1, dtype=torch.float16)
    with pytest.raises(
        PrefixError, match=r"a multiple leaves what torch.float16 holds, at decoder.0.k"
    ):
        _ = 1e6 * a


def test_nothing_is_computed_of_what_is_not_there() -> None:
    a, hollow = begun(1), begun(2)
    hollow = dataclasses.replace(
        hollow,
        keys=tuple(key.to("meta") for key in hollow.keys),
        values=tuple(value.to("meta") for value in hollow.values),
    )
    with pytest.raises(PrefixError, match="no contents"):
        _ = a + hollow
    broken = begun(3)
    broken.keys[0][0, 0, 0] = float("nan")
    with pytest.raises(
        PrefixError, match=r"decoder.0.key holds NaN or infinity; nothing is computed"
    ):
        _ = a + broken
