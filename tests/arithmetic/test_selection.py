"""Values of attributes select pieces of a prefix with control."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.description import Piece, PrefixMeta
from foreword.errors import PrefixError
from foreword.prefix import Prefix
from tests.arithmetic.test_sums import RECIPE, random

PIECES = (
    Piece("", 3),
    Piece("mood=bad", 2),
    Piece("mood=good", 2),
    Piece("size=long", 1),
    Piece("size=short", 2),
)


def control(seed: int = 1, pieces: tuple[Piece, ...] = PIECES, **fields: Any) -> Prefix:
    """A prefix of random numbers with control."""
    plain = random(seed, 10, recipe=RECIPE, **fields)
    return plain.with_meta(pieces=pieces, combination="control")


def columns(prefix: Prefix, at: list[int]) -> list[torch.Tensor]:
    return [tensor[:, at] for tensor in prefix.tensors]


def test_a_prefix_says_its_attributes_and_their_values() -> None:
    assert control().attributes == {"mood": ("bad", "good"), "size": ("long", "short")}
    assert random(1).attributes == {}


@pytest.mark.parametrize(
    ("values", "at"),
    [
        ({}, [0, 1, 2]),
        ({"mood": "bad"}, [0, 1, 2, 3, 4]),
        ({"mood": "good"}, [0, 1, 2, 5, 6]),
        ({"size": "long"}, [0, 1, 2, 7]),
        ({"size": "short", "mood": "good"}, [0, 1, 2, 5, 6, 8, 9]),
    ],
)
def test_a_selection_is_the_shared_virtual_tokens_and_those_of_the_values(
    values: dict[str, str], at: list[int]
) -> None:
    prefix = dataclasses.replace(control(), start=random(2, 10))
    found = prefix.select(values)
    assert all(map(torch.equal, found.tensors, columns(prefix, at)))
    assert found.start is not None
    assert prefix.start is not None
    assert all(map(torch.equal, found.start.tensors, columns(prefix.start, at)))
    assert (found.meta.pieces, found.meta.combination) == ((), "attention")
    assert found.digest == prefix.select(**values).digest


def test_a_selection_records_what_it_is_of() -> None:
    prefix = control()
    found = prefix.select(size="short", mood="bad")
    of = {"prefix": prefix.digest, "values": {"mood": "bad", "size": "short"}}
    assert found.meta.recipe["composition"] == {"mode": "select", "of": [of], "start": None}
    assert found.meta.recipe["prompt"] == RECIPE["prompt"]
    assert found.meta.parents == (prefix.digest,)


def test_a_prefix_without_attributes_selects_itself() -> None:
    prefix = random(1)
    assert prefix.select() is prefix
    with pytest.raises(PrefixError, match="has no attributes to select by"):
        prefix.select(mood="bad")


def test_a_value_that_was_not_trained_leaves_the_shared_part_and_says_so() -> None:
    prefix = control()
    said = r"trained for mood = 'bad', 'good', and not for 'fine': its shared part stands alone"
    with pytest.warns(foreword.UnseenValue, match=said):
        found = prefix.select(mood="fine", size="long")
    assert all(map(torch.equal, found.tensors, columns(prefix, [0, 1, 2, 7])))
    assert found.meta.recipe["composition"]["of"][0]["values"] == {"size": "long"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prefix.select(mood="good", size="long")


def test_an_unknown_attribute_is_refused_with_the_known_ones() -> None:
    said = r"no attribute 'moods'; it has 'mood', 'size'; did you mean 'mood'\?"
    with pytest.raises(PrefixError, match=said):
        control().select(moods="bad")
    with pytest.raises(PrefixError, match="value of 'mood' must be text; found 5"):
        control().select(mood=5)  # type: ignore[arg-type]
    with pytest.raises(PrefixError, match="values must be a mapping from attributes"):
        control().select("mood")  # type: ignore[arg-type]


def test_strengths_of_pieces_stay() -> None:
    pieces = (PIECES[0], dataclasses.replace(PIECES[1], strength=0.5), *PIECES[2:])
    prefix = control(pieces=pieces)
    assert prefix.select(mood="bad").meta.pieces == (PIECES[0], pieces[1])
    assert prefix.select(mood="good").meta.pieces == ()


def test_a_value_may_hold_an_equals_sign_and_other_scripts() -> None:
    prefix = control(pieces=(Piece("", 8), Piece("type=a=b", 1), Piece("type=長い", 1)))
    assert prefix.attributes == {"type": ("a=b", "長い")}
    assert all(map(torch.equal, prefix.select(type="a=b").tensors, columns(prefix, [*range(9)])))


def test_most_that_stands_in_front_of_a_text_is_the_longest_of_each_attribute() -> None:
    assert control().meta.in_front(10) == 3 + 2 + 2
    assert PrefixMeta().in_front(10) == 10


def test_a_file_keeps_what_is_selected_by(tmp_path: Path) -> None:
    prefix = control()
    foreword.save_prefix(prefix, tmp_path / "a.safetensors")
    found = foreword.load_prefix(tmp_path / "a.safetensors")
    assert found.digest == prefix.digest
    assert found.attributes == prefix.attributes
    assert found.select(mood="good").digest == prefix.select(mood="good").digest
