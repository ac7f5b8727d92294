"""`Prefix`, `PrefixMeta` and `Site` as values: checks, measures and identity."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.errors import PrefixError
from foreword.prefix import (
    MAX_DEPTH,
    Piece,
    Prefix,
    PrefixMeta,
    Site,
    canonical_json,
    nesting,
    plain_json,
    tensor_bytes,
)

SITES = (
    Site("a.attn", "decoder", 0, kv_heads=2, key_dim=4, value_dim=3, window=9),
    Site("b.attn", "decoder", 1, kv_heads=1, key_dim=2, value_dim=5),
)


def made(sites: tuple[Site, ...] = SITES, length: int = 3, **meta: Any) -> Prefix:
    """A prefix of counting numbers: keys from 0, values from 1000."""
    return Prefix(
        sites,
        tuple(counting(s.kv_heads, length, s.key_dim) for s in sites),
        tuple(counting(s.kv_heads, length, s.value_dim) + 1000 for s in sites),
        PrefixMeta(**meta),
    )


def counting(*shape: int) -> Tensor:
    """0, 1, 2 and so on in a shape."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def nested(depth: int) -> list[Any]:
    """Lists in lists, so many levels."""
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


# Measures


def test_a_prefix_counts_itself() -> None:
    prefix = made()
    assert prefix.length == 3
    assert prefix.dtype == torch.float32
    assert prefix.parameters == 2 * 3 * (4 + 3) + 1 * 3 * (2 + 5) == 63
    assert prefix.nbytes == 4 * 63
    assert prefix.to(torch.bfloat16).nbytes == 2 * 63


def test_a_site_has_a_label_and_a_geometry_without_its_name() -> None:
    renamed = dataclasses.replace(SITES[0], name="other")
    assert SITES[0].label == renamed.label == "decoder.0"
    assert SITES[0].geometry == renamed.geometry == ("decoder", 0, 2, 4, 3, 9)
    assert SITES[0] != renamed


def test_another_dtype_rounds_and_keeps_the_rest() -> None:
    prefix = made(family="llama")
    half = prefix.to(torch.bfloat16)
    assert half.sites == prefix.sites
    assert half.meta == prefix.meta
    assert half.dtype == torch.bfloat16
    assert half.values[0].tolist() == prefix.values[0].bfloat16().tolist()
    assert half.digest != prefix.digest


def test_changed_meta_shares_the_tensors() -> None:
    prefix = made(family="llama", parents=("p",))
    changed = prefix.with_meta(family="gpt2")
    assert changed.meta == PrefixMeta(family="gpt2", parents=("p",))
    assert changed.keys is prefix.keys
    assert prefix.meta.family == "llama"


def test_a_prefix_at_some_of_its_sites_keeps_their_tensors_and_their_order() -> None:
    prefix = made(bos="input")
    second = prefix.only(["decoder.1"])
    assert second.sites == SITES[1:]
    assert second.keys[0] is prefix.keys[1]
    assert second.values[0] is prefix.values[1]
    assert second.meta == prefix.meta
    assert prefix.only(["decoder.1", "decoder.0"]).digest == prefix.digest
    with pytest.raises(PrefixError, match=r"no site 'decoder.2'; it has decoder.0 to decoder.1"):
        prefix.only(["decoder.0", "decoder.2"])
    with pytest.raises(PrefixError, match="at least one site"):
        prefix.only([])


def test_the_first_tensor_that_is_not_finite_is_named() -> None:
    prefix = made()
    assert prefix.first_not_finite() is None
    prefix.values[1][0, 2, 4] = float("inf")
    assert prefix.first_not_finite() == "decoder.1.value"
    prefix.values[0][1, 0, 0] = float("nan")
    assert prefix.first_not_finite() == "decoder.0.value"
    prefix.keys[0][0, 0, 0] = float("-inf")
    assert prefix.first_not_finite() == "decoder.0.key"


# What is refused


@pytest.mark.parametrize(
    ("keys", "values", "part"),
    [
        (((2, 3, 4),), ((2, 3, 3), (1, 3, 5)), "2 sites; found 1 keys and 2 values"),
        (((2, 3, 4), (1, 3, 2)), ((2, 3, 3),), "2 sites; found 2 keys and 1 values"),
        (((2, 3, 4), (1, 2, 2)), ((2, 3, 3), (1, 3, 5)), r"key of site decoder\.1: .* \(1, 2, 2\)"),
        (
            ((2, 3, 4), (1, 3, 2)),
            ((2, 3, 4), (1, 3, 5)),
            r"value of site decoder\.0: .*\(2, 3, 3\)",
        ),
        (
            ((2, 3, 4), (1, 3, 2)),
            ((2, 3, 3), (3, 5)),
            r"value of site decoder\.1: .*found \(3, 5\)",
        ),
        (((4, 3, 2), (1, 3, 2)), ((2, 3, 3), (1, 3, 5)), r"key of site decoder\.0: .*\(4, 3, 2\)"),
        (((2, 0, 4), (1, 0, 2)), ((2, 0, 3), (1, 0, 5)), r"length >= 1; found \(2, 0, 4\)"),
        (((24,), (1, 3, 2)), ((2, 3, 3), (1, 3, 5)), r"length >= 1; found \(24,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(
    keys: tuple[tuple[int, ...], ...], values: tuple[tuple[int, ...], ...], part: str
) -> None:
    with pytest.raises(PrefixError, match=part):
        Prefix(SITES, tuple(map(torch.zeros, keys)), tuple(map(torch.zeros, values)))


def test_a_prefix_without_sites_is_refused() -> None:
    with pytest.raises(PrefixError, match="at least one site; found none"):
        Prefix((), (), ())


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64, torch.bool])
def test_dtypes_that_no_file_holds_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(PrefixError, match=f"one of float32, bfloat16, float16; found {dtype}"):
        made().to(dtype)


def test_one_dtype_holds_everywhere() -> None:
    prefix = made()
    values = (prefix.values[0], prefix.values[1].half())
    with pytest.raises(PrefixError, match=r"value of site decoder\.1: .*found torch\.float16"):
        Prefix(SITES, prefix.keys, values)


@pytest.mark.parametrize("name", ["positions", "windows", "bos", "softmax"])
def test_policies_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(PrefixError, match=f"{name} policy 'sometimes' is unknown; use one of"):
        PrefixMeta(**{name: "sometimes"})


# Pieces


def test_a_piece_is_of_plain_values() -> None:
    assert Piece("a", 2, 1) == Piece("a", 2, 1.0)
    assert type(Piece("a", 2, 1).strength) is float
    assert str(Piece("", 1, -0.0).strength) == "0.0"
    assert Piece("", 1, -2.5).strength == -2.5


@pytest.mark.parametrize(
    ("piece", "part"),
    [
        ({"name": "a\nb"}, "the name of a piece is at most 256 printable characters; found 'a"),
        ({"name": "a" * 257}, "at most 256 printable characters"),
        ({"name": None}, "name must be text"),
        ({"length": 0}, "the length of a piece must be at least 1; found 0"),
        ({"length": 1.5}, "length must be a whole number"),
        ({"strength": float("nan")}, "the strength of a piece must be finite; found nan"),
        ({"strength": -float("inf")}, "the strength of a piece must be finite; found -inf"),
        ({"strength": "1"}, "strength must be a number"),
    ],
)
def test_pieces_that_cannot_be_are_refused(piece: dict[str, Any], part: str) -> None:
    with pytest.raises(PrefixError, match=part):
        Piece(**{"name": "", "length": 3, **piece})


@pytest.mark.parametrize(
    ("pieces", "combination", "part"),
    [
        ((Piece("", 2),), "attention", r"prefix of 3 virtual tokens must add up.*found 2 = 2"),
        ((Piece("", 2), Piece("", 2)), "logits", r"found 2 \+ 2 = 4"),
        ((), "logits", "combination 'logits' is of pieces, and there are none"),
        ((Piece("", 3),), "sum", r"combination 'sum' is unknown; use one of \('attention'"),
        ((Piece("", 3),), "control", "needs a shared piece and one for each value.*found 1"),
        ((Piece("", 1), Piece("x", 2)), "control", "named attribute=value; found 'x'"),
        ((Piece("", 1), Piece("=x", 2)), "control", "named attribute=value; found '=x'"),
        (tuple(Piece(n, 1) for n in ("", "a=b", "a=b")), "control", "two pieces named 'a=b'"),
        (tuple(Piece("", 1) for _ in range(65)), "attention", "at most 64 pieces; found 65"),
        (({"name": "", "length": 3},), "attention", "a piece must be a Piece; found"),
    ],
)
def test_pieces_that_do_not_go_together_are_refused(
    pieces: tuple[Piece, ...], combination: str, part: str
) -> None:
    with pytest.raises(PrefixError, match=part):
        made().with_meta(pieces=pieces, combination=combination)


def test_pieces_that_go_together_are_kept() -> None:
    three = (Piece("task", 1), Piece("sentiment=positive", 1, 0.5), Piece("sentiment=negative", 1))
    for combination in ("attention", "logits", "control"):
        meta = made().with_meta(pieces=list(three), combination=combination).meta
        assert (meta.pieces, meta.combination) == (three, combination)
        assert meta.as_json()["pieces"][1] == {
            "name": "sentiment=positive",
            "length": 1,
            "strength": 0.5,
        }
        assert meta.as_json()["softmax"] == "joint"
    assert not {"pieces", "combination", "softmax"} & set(made().meta.as_json())


# Its start


def test_a_start_is_part_of_neither_digest_nor_size() -> None:
    plain = made()
    prefix = dataclasses.replace(plain, start=made(family="llama"))
    assert prefix.digest == plain.digest
    assert prefix.nbytes == plain.nbytes
    assert "start" not in repr(prefix)
    assert prefix.describe() == plain.describe()


def test_a_start_goes_along_with_its_prefix() -> None:
    prefix = dataclasses.replace(made(), start=made())
    assert prefix.with_meta(family="x").start is prefix.start
    assert prefix.to(torch.bfloat16).start is prefix.start
    only = prefix.only(["decoder.1"])
    assert only.start is not None
    assert only.start.sites == SITES[1:]


def test_a_start_of_another_shape_is_refused() -> None:
    with pytest.raises(
        PrefixError, match="its sites and its length, 2 and 3; found one of 2 and 4"
    ):
        dataclasses.replace(made(), start=made(length=4))
    with pytest.raises(PrefixError, match="found one of 1 and 3"):
        dataclasses.replace(made(), start=made(SITES[:1]))
    with pytest.raises(PrefixError, match="start must be a Prefix"):
        dataclasses.replace(made(), start=3)


# Recipes


@pytest.mark.parametrize("name", ["recipe", "training"])
@pytest.mark.parametrize(
    "value",
    [{"x": float("nan")}, {"x": float("inf")}, {"x": {1, 2}}, {"x": b"x"}, {"x": "\ud800"}],
)
def test_values_that_are_not_json_are_refused(name: str, value: dict[str, Any]) -> None:
    with pytest.raises(PrefixError, match="must hold JSON values only"):
        PrefixMeta(**{name: value})


def test_a_recipe_in_itself_is_refused() -> None:
    recipe: dict[str, Any] = {}
    recipe["recipe"] = recipe
    with pytest.raises(PrefixError, match="Circular"):
        PrefixMeta(recipe=recipe)


def test_recipes_may_nest_so_deep_and_no_deeper() -> None:
    deep = made(recipe={"x": nested(MAX_DEPTH - 1)})
    assert len(deep.digest) == 64
    for depth in (MAX_DEPTH, 500, 100_000):
        with pytest.raises(PrefixError, match=r"nests deeper|recursion"):
            PrefixMeta(recipe={"x": nested(depth)})


def test_a_recipe_is_a_copy_in_json_types() -> None:
    """What was changed after the digest was taken made the file disagree with its digest."""
    recipe: dict[str, Any] = {"seeds": (1, 2), "settings": {3: None}}
    meta = PrefixMeta(recipe=recipe)
    recipe["settings"]["late"] = True
    assert meta.recipe == {"seeds": [1, 2], "settings": {"3": None}}


@pytest.mark.parametrize(
    ("value", "levels"), [(1, 0), ("[[", 0), ([], 1), ({"a": [1, {}]}, 3), (nested(70), 70)]
)
def test_nesting_counts_levels(value: object, levels: int) -> None:
    assert nesting(value) == levels


def test_plain_json_keeps_what_json_can_say() -> None:
    value = {"a": [1, 2.5, True, None, "naïve"], "b": {}}
    assert plain_json(value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": [True, None]}, b'{"a":[true,null],"b":1}'),
        ({"é": '日\n"\\\x01'}, '{"é":"日\\n\\"\\\\\\u0001"}'.encode()),
        ([5e-05, 1e22, 0.1, -0.0, 2.0], b"[5e-05,1e+22,0.1,-0.0,2.0]"),
        (
            {"Z": 0, "a": 0, "é": 0, "🙂": 0, "\uffff": 0},
            '{"Z":0,"a":0,"é":0,"\uffff":0,"🙂":0}'.encode(),
        ),
    ],
)
def test_canonical_json_has_one_spelling(value: object, expected: bytes) -> None:
    assert canonical_json(value) == expected


# Identity


def test_the_digest_is_that_of_the_description_and_the_numbers() -> None:
    site = Site("attn", "decoder", 0, kv_heads=1, key_dim=1, value_dim=2)
    key, value = torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[3.0, 4.0], [5.0, 6.0]]])
    description = (
        '{"dtype":"float32","length":2,"meta":{"backbone":"m","bos":"none","family":"",'
        '"fingerprint":"","parents":["p"],"positions":"free","recipe":{"text":"é"},"revision":null,'
        '"tokenizer":"","training":{},"windows":"visible"},"sites":[{"key_dim":1,"kv_heads":1,'
        '"layer":0,"name":"attn","stack":"decoder","value_dim":2,"window":null}]}'
    )
    expected = hashlib.sha256(description.encode() + struct.pack("<6f", 1, 2, 3, 4, 5, 6))
    meta = PrefixMeta(backbone="m", recipe={"text": "é"}, parents=("p",))
    assert Prefix((site,), (key,), (value,), meta).digest == expected.hexdigest()


def test_equal_prefixes_have_equal_digests() -> None:
    one = made(recipe={"a": 1, "b": (2,)})
    other = made(recipe={"b": [2], "a": 1})
    assert one.digest == other.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "x"},
        {"family": "x"},
        {"revision": ""},
        {"fingerprint": "x"},
        {"tokenizer": "x"},
        {"positions": "offset"},
        {"windows": "windowed"},
        {"bos": "input"},
        {"softmax": "own"},
        {"recipe": {"a": {"b": 1}}},
        {"training": {"steps": 1}},
        {"parents": ("x",)},
        {"pieces": (Piece("", 3),)},
        {"pieces": (Piece("a", 1), Piece("b=c", 2)), "combination": "control"},
    ],
)
def test_every_meta_field_is_in_the_digest(changes: dict[str, Any]) -> None:
    assert made().with_meta(**changes).digest != made().digest


def test_that_was_every_meta_field() -> None:
    mark = test_every_meta_field_is_in_the_digest.pytestmark[0]  # type: ignore[attr-defined]
    named = {name for changes in mark.args[1] for name in changes}
    assert named == {field.name for field in dataclasses.fields(PrefixMeta)}


def test_every_field_of_a_piece_is_in_the_digest() -> None:
    pieces = [Piece("", 3), Piece("a", 3), Piece("", 3, 0.5)]
    digests = {made().with_meta(pieces=(piece,)).digest for piece in pieces}
    assert len(digests | {made().digest}) == 4


@pytest.mark.parametrize("index", range(4))
def test_every_number_is_in_the_digest(index: int) -> None:
    expected = made().digest
    for place in range((*made().keys, *made().values)[index].numel()):
        other = made()
        (*other.keys, *other.values)[index].view(-1)[place] += 0.5
        assert other.digest != expected


def test_numbers_in_another_place_are_another_prefix() -> None:
    site = Site("attn", "decoder", 0, kv_heads=1, key_dim=2, value_dim=2)
    one, other = counting(1, 3, 2), counting(1, 3, 2) + 7
    assert Prefix((site,), (one,), (other,)).digest != Prefix((site,), (other,), (one,)).digest


@pytest.mark.parametrize(
    "changes", [{"name": "x"}, {"stack": "x"}, {"layer": 7}, {"window": 8}, {"window": None}]
)
def test_every_site_field_is_in_the_digest(changes: dict[str, Any]) -> None:
    sites = (dataclasses.replace(SITES[0], **changes), SITES[1])
    assert made(sites).digest != made().digest


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, "0000803f000000c0"),
        (torch.float16, "003c00c0"),
        (torch.bfloat16, "803f00c0"),
    ],
)
def test_tensors_are_hashed_little_endian_in_row_order(dtype: torch.dtype, expected: str) -> None:
    assert tensor_bytes(torch.tensor([1.0, -2.0], dtype=dtype)).hex() == expected
    square = torch.tensor([[1.0, 0.0], [-2.0, 0.0]], dtype=dtype).t()[:1]
    assert tensor_bytes(square).hex() == expected
