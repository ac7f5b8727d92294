"""Where training started: kept with its result, and recomputed from the recipe of a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.description import Piece
from foreword.errors import BackboneError, DataError, MismatchError, PrefixError
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.start import start
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from foreword.train.begun import check_recomputable
from tests.conftest import byte_tokenizer, tiny_model
from tests.tasks.models import CLASSIFY, tiny_encoder
from tests.train.test_run import Interrupt, Rows, changed, equal


def loaded(prefix: Prefix, folder: Path) -> Prefix:
    """The prefix as its file gives it."""
    foreword.save_prefix(prefix, folder / "p.safetensors")
    found = foreword.load_prefix(folder / "p.safetensors")
    assert found.start is None
    return found


def start_of(prefix: Prefix) -> Prefix:
    assert prefix.start is not None
    return prefix.start


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(tmp_path / "store")


KINDS: list[dict[str, Any]] = [
    {},
    {"init_text": "Name the food."},
    {"init": "vocab", "seed": 3},
    {"init": "noise", "seed": 4},
    {"init": "zeros"},
    {"init": "demonstrations", "length": 120},
    {"layers": "last:2"},
    {"sites": "decoder", "layers": "0"},
    {"length": 9},
    {"length": None},
    {"parameterization": "gated"},
    {"parameterization": "mlp", "mlp_width": 8},
    {"positions": "offset"},
    {"windows": "windowed"},
    {"frozen": 2},
]


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: " ".join(map(str, fields.values())))
def test_the_recomputed_start_is_what_training_started_from(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, fields: dict[str, Any]
) -> None:
    settings = changed(**{"steps": 2, **fields})
    result = foreword.train(tiny, rows, settings).prefix
    kept = start_of(result)
    with torch.no_grad():
        first = start(tiny, settings, rows)
        step_0 = parameterise(tiny, first, settings).materialise()
    for tensor, expected in zip(kept.tensors, step_0.tensors, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-6, atol=1e-7)
    assert not equal(kept, result)
    again = foreword.with_start(tiny, loaded(result, tmp_path), rows)
    assert equal(start_of(again), kept)
    assert start_of(again).sites == kept.sites
    assert again.digest == result.digest
    assert equal(0.5 * again, 0.5 * result)


def test_rows_are_needed_for_demonstrations_alone(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    text = loaded(foreword.train(tiny, rows, changed(steps=1)).prefix, tmp_path)
    assert foreword.with_start(tiny, text).start is not None
    settings = changed(steps=1, init="demonstrations", length=120)
    shown = loaded(foreword.train(tiny, rows, settings).prefix, tmp_path)
    with pytest.raises(
        PrefixError, match=r"without the training rows: with_start\(backbone, prefix, r"
    ):
        foreword.with_start(tiny, shown)
    with pytest.raises(PrefixError, match="not those that the prefix was trained on"):
        foreword.with_start(tiny, shown, rows[::-1])
    with pytest.raises(DataError, match="row 1 has no column 'mr'"):
        foreword.with_start(tiny, shown, [{"other": "a"}])


def test_rows_with_several_references_are_spread_as_in_training(
    tiny: foreword.Backbone, tmp_path: Path
) -> None:
    rows = [{"mr": str(n), "ref": ["one", "two"]} for n in range(4)]
    settings = changed(steps=1, init="demonstrations", length=40)
    result = foreword.train(tiny, rows, settings).prefix
    again = foreword.with_start(tiny, loaded(result, tmp_path), rows)
    assert equal(start_of(again), start_of(result))


def test_a_prefix_that_is_there_still_is_where_training_started(
    tiny: foreword.Backbone, rows: Rows, store: PrefixStore, tmp_path: Path
) -> None:
    first = foreword.train(tiny, rows, changed(steps=3)).prefix
    store.save("first", first)
    result = foreword.train(tiny, rows, changed(init="first", steps=2), store=store).prefix
    assert equal(start_of(result), first)
    again = foreword.with_start(tiny, loaded(result, tmp_path), store=store)
    assert equal(start_of(again), first)
    store.save("first", tiny.capture([5, 6, 7, 8, 9, 10]), overwrite=True)
    with pytest.raises(PrefixError, match=r"'first' is another prefix now \(digest"):
        foreword.with_start(tiny, loaded(result, tmp_path), store=store)
    with pytest.raises(PrefixError, match="cannot be recomputed: init 'first' is neither"):
        foreword.with_start(tiny, loaded(result, tmp_path), store=PrefixStore(tmp_path / "none"))


def test_a_head_started_at_zero_or_at_the_one_that_was_there(
    store: PrefixStore, tmp_path: Path
) -> None:
    encoder = tiny_encoder()
    short = foreword.TrainSettings(length=4, steps=3)
    result = foreword.train(encoder, CLASSIFY, short).prefix
    again = foreword.with_start(encoder, loaded(result, tmp_path))
    zeros = start_of(again).head
    assert zeros is not None
    assert not any(bool(tensor.any()) for tensor in zeros.tensors)
    assert equal(start_of(again), start_of(result))
    half = (0.5 * again).head
    assert half is not None
    assert result.head is not None
    assert torch.equal(half.weight, 0.5 * result.head.weight)
    store.save("first", result)
    on = foreword.train(encoder, CLASSIFY, dataclasses.replace(short, init="first"), store=store)
    begun = start_of(foreword.with_start(encoder, loaded(on.prefix, tmp_path), store=store)).head
    assert begun is not None
    assert torch.equal(begun.weight, result.head.weight)


def test_a_composed_prefix_is_composed_again_after_a_file(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    a = foreword.train(tiny, rows, changed(steps=2)).prefix
    b = foreword.train(tiny, rows[:6], changed(steps=3)).prefix
    made = [a + b, a - 0.5 * b, a.interpolate(b, 0.3), a[1:5], (a + b)[2:][:3], a.strength(0.5)]
    for live in made:
        again = foreword.with_start(tiny, loaded(live, tmp_path))
        assert equal(start_of(again), start_of(live))
        assert equal(2 * again, 2 * live)
    again = foreword.with_start(tiny, loaded(a + b, tmp_path))
    for found, expected in zip((again - b).tensors, a.tensors, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_moved_prefix_has_a_moved_start(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    moved = tiny.moved(foreword.train(tiny, rows, changed(steps=2)).prefix, "offset")
    again = foreword.with_start(tiny, loaded(moved, tmp_path))
    assert equal(start_of(again), start_of(moved))
    captured = start(tiny, changed(positions="offset"))
    for found, expected in zip(start_of(moved).keys, captured.keys, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_start_that_is_known_is_kept(tiny: foreword.Backbone, rows: Rows) -> None:
    result = foreword.train(tiny, rows, changed(steps=1)).prefix
    assert foreword.with_start(tiny, result) is result
    other = foreword.Backbone(tiny_model(seed=1), byte_tokenizer(), name="tiny")
    bare = dataclasses.replace(result, start=None)
    with pytest.raises(MismatchError, match="weights"):
        foreword.with_start(other, bare)


def test_a_training_that_stops_has_its_start_as_well(tiny: foreword.Backbone, rows: Rows) -> None:
    callback = Interrupt(2, KeyboardInterrupt())
    with pytest.raises(foreword.TrainingStopped) as caught:
        foreword.train(tiny, rows, changed(steps=4), callbacks=[callback])
    assert equal(start_of(caught.value.result.prefix), start(tiny, changed()))


def test_what_has_no_start_says_why(tiny: foreword.Backbone, rows: Rows, tmp_path: Path) -> None:
    captured: Any = tiny.capture([5, 6, 7])
    with pytest.raises(PrefixError, match=r"a captured or imported prefix.*interpolate\(b, t\)"):
        foreword.with_start(tiny, captured)
    with pytest.raises(BackboneError, match="backbone must be a Backbone"):
        foreword.with_start(captured, captured)
    with pytest.raises(PrefixError, match="prefix must be a Prefix"):
        foreword.with_start(tiny, "name")  # type: ignore[arg-type]
    a = foreword.train(tiny, rows, changed(steps=1)).prefix
    both = loaded(foreword.concat(a, captured), tmp_path)
    with pytest.raises(PrefixError, match="put together from prefixes whose starts differ"):
        foreword.with_start(tiny, both)
    odd = loaded(a, tmp_path).with_meta(recipe={"init": 3})
    with pytest.raises(PrefixError, match="its recipe is no set of settings: init must be text"):
        foreword.with_start(tiny, odd)
    for length in (3, 7):
        other = loaded(a, tmp_path).with_meta(recipe={**a.meta.recipe, "length": length})
        part = rf"has {length} virtual tokens at 3 sites.*has 6 at 3: they are not of one training"
        with pytest.raises(PrefixError, match=part):
            foreword.with_start(tiny, other)
    beyond = loaded(a, tmp_path).with_meta(recipe={**a.meta.recipe, "layers": "9"})
    with pytest.raises(
        PrefixError, match="cannot be recomputed: layers '9': the backbone's decoder"
    ):
        foreword.with_start(tiny, beyond)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, None),
        ({"init": "noise", "length": 20}, None),
        ({"length": 21}, "its start takes 21 tokens to recompute, .* at most 20 are read here"),
        ({"init": "zeros", "length": 10**9}, "its start takes 1000000000 tokens"),
        ({"init_text": "long " * 300}, "from a text of 1500 characters"),
        ({"init": "demonstrations"}, "it started from demonstrations, .* `foreword compose`"),
        (
            {"init": "/etc/passwd.safetensors"},
            "it started from '/etc/passwd.safetensors', of which",
        ),
        ({"lr": "high"}, "its recipe is no set of settings"),
        ({"init": None}, "its recipe is no set of settings"),
        ({"layers": f"0-{'9' * 5000}"}, "its recipe is no set of settings: layers may have 4096"),
        ({"layers": f"0-{'9' * 4000}"}, "its recipe is no set of settings: .*cannot read"),
        ({"attributes": ",".join(["same"] * 10**5)}, "name the column 'same' twice"),
    ],
)
def test_what_a_start_costs_is_told_by_its_recipe(fields: dict[str, Any], said: str | None) -> None:
    """Nothing is computed or read for it, whatever a file says."""
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    recipe = {"init": "text", "length": 6, "prompt": "{a}", "target": "{b}", **fields}
    prefix = backbone.capture([3, 4, 5]).with_meta(recipe=recipe)
    if said is None:
        check_recomputable(prefix, 20)
        return
    with pytest.raises(PrefixError, match=said):
        check_recomputable(prefix, 20)


def test_values_of_attributes_count_into_what_a_start_costs() -> None:
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    recipe = {"init": "text", "length": 5, "prompt": "{a}", "target": "{b}"}
    recipe |= {"attributes": "mood", "attribute_length": 2}
    pieces = (Piece("", 5), Piece("mood=a", 2), Piece("mood=b", 2))
    meta: dict[str, Any] = {"recipe": recipe, "pieces": pieces, "combination": "control"}
    prefix = backbone.capture([3] * 9).with_meta(**meta)
    check_recomputable(
        prefix, 28
    )  # the shared part's text, and four times that with a value's place
    with pytest.raises(PrefixError, match="takes 28 tokens"):
        check_recomputable(prefix, 27)
    with pytest.raises(PrefixError, match="cannot be recomputed"):
        check_recomputable(prefix.select({}), 28)
