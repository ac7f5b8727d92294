"""Which sites a choice of layers and stacks means."""

from __future__ import annotations

import pytest

from foreword.errors import TrainingError
from foreword.methods.prefix.subset import check_layers, chosen
from foreword.prefix import Site

SITES = [
    Site(f"{stack}.{layer}", stack, layer, kv_heads=1, key_dim=2, value_dim=2)
    for stack, count in (("encoder", 2), ("decoder", 5))
    for layer in range(count)
]
DECODER = SITES[2:]


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("0", [0]),
        ("3,1", [1, 3]),
        ("1-3", [1, 2, 3]),
        ("0-1, 4", [0, 1, 4]),
        ("first:2", [0, 1]),
        ("last:2", [3, 4]),
        ("first:1,last:1,4", [0, 4]),
        ("first:5", [0, 1, 2, 3, 4]),
    ],
)
def test_layers_are_numbers_ranges_and_ends(layers: str | None, numbers: list[int]) -> None:
    assert chosen(DECODER, layers, None) == [f"decoder.{number}" for number in numbers]


def test_stacks_are_chosen_by_name_and_layers_counted_within_each() -> None:
    assert chosen(SITES, "last:1", None) == ["encoder.1", "decoder.4"]
    assert chosen(SITES, None, "encoder") == ["encoder.0", "encoder.1"]
    assert chosen(SITES, "0", "decoder, encoder") == ["decoder.0", "encoder.0"]


@pytest.mark.parametrize(
    "layers", ["", "x", "1-", "3-1", "last:0", "last", "1,,2", "-1", "middle:2"]
)
def test_what_cannot_be_read_is_refused(layers: str) -> None:
    with pytest.raises(TrainingError, match=r"cannot read .* such as 0-9,20 or last:8"):
        check_layers(layers)


@pytest.mark.parametrize(
    ("layers", "stacks", "message"),
    [
        ("5", None, r"decoder has 5 layers, 0 to 4; there is no 5"),
        ("3-7", None, r"0 to 4; there is no 7"),
        ("last:6", None, r"0 to 4; there is no 6 from its end"),
        ("first:6", None, r"0 to 4; there is no 5"),
        (None, "vision", r"no stack 'vision'; it has decoder"),
        (None, "", r"no stack ''; it has decoder"),
    ],
)
def test_what_the_backbone_has_not_is_refused(
    layers: str | None, stacks: str | None, message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        chosen(DECODER, layers, stacks)
