"""Generation and evaluation under a prefix with control: each row selects the values that it has."""

from __future__ import annotations

from typing import Any

import pytest

import foreword
from foreword.errors import DataError, PrefixError, UnsupportedModel
from tests.conftest import MEMORY

OPTIONS = foreword.GenerateOptions(max_new_tokens=6, batch_size=3)
ROWS: list[dict[str, Any]] = [
    {**MEMORY[0], "mood": "good", "size": 5},
    {**MEMORY[5], "mood": "bad"},
    {**MEMORY[2]},
    {**MEMORY[7], "size": 5},
    {**MEMORY[0], "mood": "bad", "size": 5},
]
VALUES: list[dict[str, str]] = [
    {"mood": "good", "size": "5"},
    {"mood": "bad"},
    {},
    {"size": "5"},
    {"mood": "bad", "size": "5"},
]


@pytest.fixture
def prefix(tiny: foreword.Backbone) -> foreword.Prefix:
    """A prefix with control of captured texts, whose pieces make tiny models say different things."""
    whole = tiny.capture("Read it all. badgoodfive")
    pieces = (
        foreword.Piece("", 13),
        foreword.Piece("mood=bad", 3),
        foreword.Piece("mood=good", 4),
        foreword.Piece("size=5", 4),
    )
    recipe = {"prompt": "{mr} ->", "target": " {ref}"}
    return whole.with_meta(pieces=pieces, combination="control", recipe=recipe)


def alone(
    backbone: foreword.Backbone, prefix: foreword.Prefix, options: foreword.GenerateOptions
) -> list[list[str]]:
    """The texts of each row under the plain prefix that it selects."""
    pairs = zip(ROWS, VALUES, strict=True)
    return [
        foreword.generate(backbone, [row], prefix.select(values), options)[0]
        for row, values in pairs
    ]


@pytest.mark.parametrize("fields", [{}, {"num_beams": 2, "num_return_sequences": 2}])
def test_a_text_is_the_one_under_what_its_row_selects(
    tiny: foreword.Backbone, prefix: foreword.Prefix, fields: dict[str, Any]
) -> None:
    options = foreword.GenerateOptions(max_new_tokens=6, batch_size=3, **fields)
    found = foreword.generate(tiny, ROWS, prefix, options)
    assert found == alone(tiny, prefix, options)
    assert found[0] != found[4], "the same prompt, another mood"


def test_a_text_alone_is_under_the_shared_part(
    tiny: foreword.Backbone, prefix: foreword.Prefix
) -> None:
    text = MEMORY[0]["mr"]
    shared = foreword.generate(tiny, [text], prefix.select(), OPTIONS)
    assert foreword.generate(tiny, [text], prefix, OPTIONS) == shared
    asked = '{"mr": "name[Zizzi], food[Thai]", "mood": "bad", "size": 5}'
    assert foreword.generate(tiny, [asked], prefix, OPTIONS) == alone(tiny, prefix, OPTIONS)[4:]


def test_an_unseen_value_is_told_and_left_out(
    tiny: foreword.Backbone, prefix: foreword.Prefix
) -> None:
    with pytest.warns(foreword.UnseenValue, match="not for 'fine'"):
        found = foreword.generate(tiny, [{**ROWS[0], "mood": "fine"}], prefix, OPTIONS)
    assert found == foreword.generate(tiny, ROWS[:1], prefix.select(size="5"), OPTIONS)


def test_figures_are_those_of_each_row_under_what_it_selects(
    tiny: foreword.Backbone, prefix: foreword.Prefix
) -> None:
    """Rows 1 and 5 have one prompt and other values, so they are two inputs with a reference each."""
    found = foreword.evaluate(tiny, prefix, ROWS, options=OPTIONS)
    each = [
        foreword.evaluate(tiny, prefix.select(values), [row], options=OPTIONS, base=False)
        for row, values in zip(ROWS, VALUES, strict=True)
    ]
    assert (found.inputs, found.rows) == (5, 5)
    targets = [one.targets for one in each]
    total = sum(one.prefix.nll * count for one, count in zip(each, targets, strict=True))
    assert found.prefix.nll == pytest.approx(total / sum(targets), rel=1e-5)
    assert found.outputs == [one.outputs[0] for one in each]
    assert found.references == [[row["ref"]] for row in ROWS]
    same = foreword.evaluate(tiny, prefix, [ROWS[0], {**ROWS[0], "ref": "Other."}], base=False)
    assert same.references == [[ROWS[0]["ref"], "Other."]]
    assert found.base is not None
    plain = foreword.evaluate(tiny, prefix.select(), ROWS, options=OPTIONS)
    assert plain.base is not None
    assert found.base.nll == pytest.approx(plain.base.nll, rel=1e-5)


def test_rows_without_any_value_are_told(tiny: foreword.Backbone, prefix: foreword.Prefix) -> None:
    said = "no row has a value of the attributes 'mood', 'size', so the prefix's shared part stands"
    with pytest.warns(foreword.UnseenValue, match=said):
        found = foreword.evaluate(tiny, prefix, MEMORY[:2], options=OPTIONS, base=False)
    shared = foreword.evaluate(tiny, prefix.select(), MEMORY[:2], options=OPTIONS, base=False)
    assert found.outputs == shared.outputs


def test_what_is_no_value_is_refused_with_its_row(
    tiny: foreword.Backbone, prefix: foreword.Prefix
) -> None:
    rows = [ROWS[0], {**ROWS[1], "size": 0.5}]
    with pytest.raises(DataError, match="^row 2: column 'size': found the number 0.5"):
        foreword.evaluate(tiny, prefix, rows, options=OPTIONS)
    with pytest.raises(DataError, match="^input 2: column 'size': found the number 0.5"):
        foreword.generate(tiny, rows, prefix, OPTIONS)


def test_only_what_is_selected_is_moved(tiny: foreword.Backbone, prefix: foreword.Prefix) -> None:
    with pytest.raises(PrefixError, match=r"choose first, with prefix.select\(...\)"):
        tiny.moved(prefix, "offset")
    assert tiny.moved(prefix.select(mood="bad"), "offset").meta.positions == "offset"


def test_attaching_it_whole_is_refused(tiny: foreword.Backbone, prefix: foreword.Prefix) -> None:
    with pytest.raises(UnsupportedModel, match=r"choose them first, with prefix.select\(...\)"):
        foreword.attach(tiny, prefix)
    foreword.attach(tiny, prefix.select(mood="bad"))
    foreword.detach(tiny)
