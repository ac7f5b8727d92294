"""Training with attributes: starts, what each row trains, and what the recipe says."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.data import Collator
from foreword.data.attributes import values_in
from foreword.errors import DataError, PrefixError, TrainingError
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.control import value_tokens
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.learner import PrefixLearner, detached
from foreword.methods.prefix.settings import NEUTRAL_TEXT
from foreword.methods.prefix.start import NOISE, start, text_tokens
from foreword.objectives.encode import encode, rows_digest
from foreword.objectives.supervised import Supervised
from foreword.store import PrefixStore
from foreword.train.soap import SOAP
from tests.conftest import MEMORY, byte_tokenizer, tiny_model
from tests.kinds.families import T5
from tests.methods.prefix.test_start import with_bos
from tests.tasks.models import tiny_encoder
from tests.train.test_run import Interrupt, Rows, changed, equal, nll

FOOD = {"attributes": "food", "attribute_length": 3}
VALUES = {"food": ("Greek", "Thai", "fish"), "size": ("2", "5")}
SPANS = {"": (0, 6), "food=Greek": (6, 9), "food=Thai": (9, 12), "food=fish": (12, 15)}


@pytest.fixture
def rows() -> Rows:
    """Twelve restaurants with an attribute, which one of them has not."""
    made = [{**row, "food": row["mr"].partition("food[")[2][:-1]} for row in MEMORY]
    made[4].pop("food")
    return made


def span(prefix: foreword.Prefix, name: str) -> list[torch.Tensor]:
    first, end = SPANS[name]
    return [tensor[:, first:end] for tensor in prefix.tensors]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


# -- starts ------------------------------------------------------------------------------------------


def test_values_start_as_their_texts_behind_the_shared_one(tiny: foreword.Backbone) -> None:
    """In positions too: each whole text is captured here once more, and compared."""
    settings = changed(attributes="food,size", attribute_length=3)
    made = start(tiny, settings, values=VALUES)
    names = ["", "food=Greek", "food=Thai", "food=fish", "size=2", "size=5"]
    assert [(piece.name, piece.length) for piece in made.meta.pieces] == [
        (name, 6 if not name else 3) for name in names
    ]
    ids = text_tokens(tiny, NEUTRAL_TEXT, 6)
    for number, name in enumerate(names):
        attribute, _, value = name.partition("=")
        slots = {"food": tiny.tokens("foo"), "size": tiny.tokens("siz")}
        if name:
            slots[attribute] = (tiny.tokens(value) * 3)[:3]
        whole = tiny.capture([*ids, *slots["food"], *slots["size"]])
        first = {"": 0, "food": 6, "size": 9}[attribute]
        end = first + (3 if name else 6)
        found = made.split()[number]
        assert same([*found.tensors], [tensor[:, first:end] for tensor in whole.tensors])


def test_a_short_text_says_the_attribute_too(tiny: foreword.Backbone) -> None:
    assert tiny.tokenizer.decode(value_tokens(tiny, "a", "b", 9)) == "a: ba: ba"
    assert tiny.tokenizer.decode(value_tokens(tiny, "a", "b", 3)) == "bbb"
    assert tiny.tokenizer.decode(value_tokens(tiny, "mood", "good", 3)) == "goo"
    assert tiny.tokenizer.decode(value_tokens(tiny, "mood", "", 7)) == "mood:mo"


def test_only_the_shared_piece_has_a_bos() -> None:
    backbone = with_bos()
    made = start(backbone, changed(**FOOD), values={"food": ("b",)})
    assert made.meta.bos == "prefix"
    whole = backbone.capture([*backbone.tokens(NEUTRAL_TEXT)[:6], *map(ord_of(backbone), "bbb")])
    assert same([*made.tensors], [*whole.tensors])


def ord_of(backbone: foreword.Backbone) -> Any:
    return backbone.tokenizer.convert_tokens_to_ids


@pytest.mark.parametrize("init", ["noise", "zeros"])
def test_values_start_with_as_much_noise_as_the_rest(tiny: foreword.Backbone, init: str) -> None:
    made = start(tiny, changed(**FOOD, init=init), values={"food": ("a", "b")})
    plain = start(tiny, changed(init=init))
    assert [piece.length for piece in made.meta.pieces] == [6, 3, 3]
    assert equal(made.split()[0], plain)
    behind = torch.cat([tensor[:, 6:].flatten() for tensor in made.tensors])
    assert float(behind.std()) == pytest.approx(NOISE if init == "noise" else 0.0, rel=0.1)
    assert (init == "noise") != same(span(made, "food=Greek"), span(made, "food=Thai"))


def test_a_trained_prefix_moves_in_front_of_the_values(
    tiny: foreword.Backbone, tmp_path: Path
) -> None:
    store = PrefixStore(tmp_path / "store")
    store.save("old", tiny.capture("A text to start from."))
    settings = changed(init="old", length=None, **FOOD)
    made = start(tiny, settings, store=store, values={"food": ("a", "b")})
    whole = tiny.capture([*tiny.tokens("A text to start from."), *tiny.tokens("aaa")])
    first, value, _ = made.split()
    for one, other in zip(first.tensors, whole[:21].tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert value.length == 3
    assert made.meta.parents == (store.load("old").digest,)


# -- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
def test_a_row_trains_the_shared_piece_and_its_value_alone(
    tiny: foreword.Backbone, rows: Rows, optimizer: str
) -> None:
    """Other values' pieces stay as they start, bit for bit. SOAP's first step moves nothing."""
    steps = 1 if optimizer == "adamw" else 2
    seen = [{**row, "food": "Greek"} for row in rows[:steps]]
    spare = [{**rows[0], "food": food} for food in ("Thai", "fish")]
    settings = changed(**FOOD, steps=steps, warmup=0.0, optimizer=optimizer, batch_size=1)
    first = start(tiny, settings, values=values_in(("food",), [*seen, *spare]))
    assert [piece.name for piece in first.meta.pieces] == [*SPANS]
    before = detached(parameterise(tiny, first, settings).materialise())
    trained = _trained_on(tiny, seen, settings, first)
    moved = {name: not same(span(trained, name), span(before, name)) for name in SPANS}
    assert moved == {"": True, "food=Greek": True, "food=Thai": False, "food=fish": False}


def _trained_on(
    backbone: foreword.Backbone,
    rows: Rows,
    settings: foreword.TrainSettings,
    first: foreword.Prefix,
) -> foreword.Prefix:
    """A step on each row, of a start with pieces that none of them selects."""
    parameterization = parameterise(backbone, first, settings)
    parameters = list(parameterization.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0)
    if settings.optimizer == "soap":
        optimizer = SOAP(parameters, lr=0.1)
    collate = Collator(1)
    with backbone.attached(None) as attachment:
        module = PrefixLearner(
            parameterization, backbone, attachment, PrefixDropout(0.0, 0, 0), Supervised()
        )
        for row in encode(backbone, rows, settings, first)[0]:
            optimizer.zero_grad()
            module(**collate([row]))["loss"].backward()
            optimizer.step()
    return detached(parameterization.materialise())


def test_training_is_that_of_the_selected_prefixes(tiny: foreword.Backbone, rows: Rows) -> None:
    """The first loss is the mean of each row's NLL under what it selects; figures go down from there."""
    settings = changed(**FOOD, steps=20, lr=0.2, batch_size=12)
    result = foreword.train(tiny, rows, settings)
    plain = dataclasses.replace(settings, attributes=None, attribute_length=None)

    def mean(prefix: foreword.Prefix) -> float:
        encoded = [encode(tiny, [row], plain, prefix)[0][0].targets for row in rows]
        each = [nll(tiny, prefix.select(_values(row)), [row]) for row in rows]
        return sum(a * b for a, b in zip(each, encoded, strict=True)) / sum(encoded)

    values = values_in(("food",), rows)
    first = start(tiny, settings, rows, values=values)
    assert result.history[0]["loss"] == pytest.approx(mean(first), rel=1e-4)
    assert mean(result.prefix) < mean(first) - 0.3
    assert result.first_look.startswith(
        "causal, 12 rows, attributes food (Greek, Thai, fish); row 1"
    )


def _values(row: dict[str, str]) -> dict[str, str]:
    return {"food": row["food"]} if "food" in row else {}


def test_rows_that_differ_in_their_values_alone_are_learned_apart(tiny: foreword.Backbone) -> None:
    """One prompt, two answers: only what the rows select can tell which."""
    rows = [{"mr": "x", "ref": "aaaa", "mood": "a"}, {"mr": "x", "ref": "bbbb", "mood": "b"}]
    settings = changed(
        attributes="mood", steps=150, lr=0.2, batch_size=2, prompt="{mr}", target="{ref}"
    )
    prefix = foreword.train(tiny, rows, settings).prefix
    found = foreword.generate(tiny, rows, prefix, foreword.GenerateOptions(max_new_tokens=4))
    assert found == [["aaaa"], ["bbbb"]]


@pytest.mark.parametrize(
    "fields",
    [
        {"accumulate": 4, "batch_size": 3},
        {"gradient_checkpointing": True, "batch_size": 12},
        {"batch_size": 12, "group_by_length": False, "order": 1},
    ],
)
def test_the_same_prefix_comes_of_other_batches(
    tiny: foreword.Backbone, rows: Rows, fields: dict[str, Any]
) -> None:
    """Accumulated, recomputed in the backward pass, or with the rows in another order."""
    settings = changed(**FOOD, steps=3, batch_size=12)
    order = fields.pop("order", 0)
    one = foreword.train(tiny, rows, settings).prefix
    other = foreword.train(
        tiny, rows[::-1] if order else rows, dataclasses.replace(settings, **fields)
    ).prefix
    assert one.meta.pieces == other.meta.pieces
    for a, b in zip(one.tensors, other.tensors, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"parameterization": "gated", "dropout": 0.3},
        {"parameterization": "mlp", "mlp_width": 8, "layers": "1-2", "dropout": 0.3},
        {"positions": "offset", "frozen": 6},
    ],
)
def test_a_run_that_was_cut_off_ends_with_the_same_prefix(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, fields: dict[str, Any]
) -> None:
    settings = changed(**FOOD, steps=6, checkpoint_every=2, **fields)
    whole = foreword.train(tiny, rows, settings)
    with pytest.raises(RuntimeError):
        foreword.train(
            tiny, rows, settings, folder=tmp_path, callbacks=[Interrupt(5, RuntimeError("gone"))]
        )
    resumed = foreword.train(tiny, rows, settings, folder=tmp_path, resume=True)
    assert equal(whole.prefix, resumed.prefix)
    assert [piece.length for piece in whole.prefix.meta.pieces] == [6, 3, 3, 3]
    before = whole.prefix.start
    assert before is not None
    frozen = "frozen" in fields
    assert same(span(whole.prefix, ""), span(before, "")) == frozen
    assert not same(span(whole.prefix, "food=Thai"), span(before, "food=Thai"))


def test_other_attributes_are_another_run(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    settings = changed(**FOOD, steps=4, checkpoint_every=2)
    with pytest.raises(RuntimeError):
        foreword.train(
            tiny, rows, settings, folder=tmp_path, callbacks=[Interrupt(3, RuntimeError("gone"))]
        )
    other = [{**row, "food": "fish"} for row in rows]
    with pytest.raises(TrainingError, match="the run to resume had other rows"):
        foreword.train(tiny, other, settings, folder=tmp_path, resume=True)


def test_evaluation_rows_select_and_unseen_values_are_told(
    tiny: foreword.Backbone, rows: Rows
) -> None:
    settings = changed(**FOOD, steps=2, checkpoint_every=2)
    seen = [row for row in rows if row.get("food") != "fish"]
    with pytest.warns(foreword.UnseenValue, match="not for 'fish'"):
        result = foreword.train(tiny, seen, settings, evaluation=rows)
    assert result.prefix.attributes == {"food": ("Greek", "Thai")}
    last = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry][-1]
    plain = dataclasses.replace(settings, attributes=None, attribute_length=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", foreword.UnseenValue)  # again, of each row by itself
        counts = [encode(tiny, [row], plain, result.prefix)[0][0].targets for row in rows]
    known = [_values(row) if row.get("food") != "fish" else {} for row in rows]
    each = [
        nll(tiny, result.prefix.select(values), [row])
        for row, values in zip(rows, known, strict=True)
    ]
    wanted = sum(a * b for a, b in zip(each, counts, strict=True)) / sum(counts)
    assert last == pytest.approx(wanted, rel=1e-4)


def test_an_encoder_decoder_trains_with_attributes() -> None:
    model = tiny_t5()
    rows = [{"mr": "x", "ref": "aaaa", "mood": "a"}, {"mr": "x", "ref": "bbbb", "mood": "b"}]
    settings = changed(attributes="mood", steps=2, batch_size=2, prompt="{mr}", target="{ref}")
    result = foreword.train(model, rows, settings)
    assert result.prefix.attributes == {"mood": ("a", "b")}
    found = foreword.evaluate(model, result.prefix, rows, base=False)
    parts = [
        foreword.evaluate(model, result.prefix.select(mood=row["mood"]), [row], base=False)
        for row in rows
    ]
    assert found.prefix.nll == pytest.approx(sum(p.prefix.nll for p in parts) / 2, rel=1e-5)
    assert found.outputs == [p.outputs[0] for p in parts]


def tiny_t5() -> foreword.Backbone:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(**{**T5, "vocab_size": 258, "pad_token_id": 1, "eos_token_id": 1})
    model = T5ForConditionalGeneration(config).eval().requires_grad_(False)
    return foreword.Backbone(model, byte_tokenizer(), name="tiny-t5")


# -- recipe, digests, starts -------------------------------------------------------------------------


def test_the_recipe_says_the_attributes_and_only_then(tiny: foreword.Backbone, rows: Rows) -> None:
    recipe = foreword.train(tiny, rows, changed(attributes="food", steps=1)).prefix.meta.recipe
    assert (recipe["attributes"], recipe["attribute_length"], recipe["length"]) == ("food", 4, 6)
    assert not {"attributes", "attribute_length"} & set(changed().as_json())


def test_the_digest_of_rows_has_what_they_select(tiny: foreword.Backbone, rows: Rows) -> None:
    settings = changed(**FOOD)
    made = start(tiny, settings, rows, values=values_in(("food",), rows))
    encoded, _ = encode(tiny, rows, settings, made)
    assert [one.pieces for one in encoded[:5]] == [(2,), (1,), (3,), (2,), ()]
    plain = [dataclasses.replace(one, pieces=()) for one in encoded]
    assert rows_digest(encoded) != rows_digest(plain)
    assert rows_digest(plain) == rows_digest(
        encode(tiny, rows, changed(), start(tiny, changed()))[0]
    )


@pytest.mark.parametrize("init", ["text", "vocab", "noise", "demonstrations"])
def test_a_start_is_recomputed_from_a_file(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, init: str
) -> None:
    length = 60 if init == "demonstrations" else 6
    trained = foreword.train(tiny, rows, changed(**FOOD, init=init, length=length, steps=1)).prefix
    foreword.save_prefix(trained, tmp_path / "a.safetensors")
    loaded = foreword.load_prefix(tmp_path / "a.safetensors")
    found = foreword.with_start(tiny, loaded, rows).start
    assert found is not None
    assert trained.start is not None
    assert equal(found, trained.start)


def test_the_start_of_a_part_alone_is_not_recomputed(tiny: foreword.Backbone, rows: Rows) -> None:
    trained = foreword.train(tiny, rows, changed(**FOOD, steps=1)).prefix
    part = dataclasses.replace(trained.split()[0], start=None)
    with pytest.raises(PrefixError, match="it is a part of one that was trained with attributes"):
        foreword.with_start(tiny, part)


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attributes": ""}, "attributes must be names of columns with commas between"),
        ({"attributes": "a,,b"}, "attributes must be names of columns with commas between"),
        ({"attributes": "a=b"}, "attributes must be names of columns with commas between"),
        ({"attributes": "a, b, a"}, "attributes name the column 'a' twice"),
        ({"attribute_length": 4}, "attribute_length is only used with attributes"),
        ({"attributes": "a", "attribute_length": 0}, "attribute_length must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        changed(**fields)
    assert changed(attributes=" a , b ").attribute_names == ("a", "b")


def test_what_training_cannot_do_is_refused(tiny: foreword.Backbone, rows: Rows) -> None:
    with pytest.raises(DataError, match=r"no row has a value of the attribute 'foods'; .*'food'"):
        foreword.train(tiny, rows, changed(attributes="foods"))
    labelled = [{"text": "a", "label": "b", "food": "c"}, {"text": "b", "label": "a", "food": "d"}]
    with pytest.raises(TrainingError, match="attributes need a task that writes text"):
        foreword.train(tiny_encoder(), labelled, foreword.TrainSettings(attributes="food", steps=1))
    made = start(tiny, changed(**FOOD), rows, values={"food": ("a",)})
    with pytest.raises(
        TrainingError, match="frozen=7 is more than the 6 tokens that all rows share"
    ):
        parameterise(tiny, made, changed(**FOOD, frozen=7))


def test_a_prefix_with_control_is_no_start(tiny: foreword.Backbone, tmp_path: Path) -> None:
    store = PrefixStore(tmp_path / "store")
    store.save("old", start(tiny, changed(**FOOD), values={"food": ("a",)}))
    with pytest.raises(TrainingError, match=r"save what it selects, prefix.select\(...\)"):
        start(tiny, changed(init="old", length=None), store=store)


def test_room_is_that_of_what_stands_in_front_of_a_text(rows: Rows) -> None:
    """All pieces together would not fit the context; of three values a row has one."""
    model = tiny_model(max_position_embeddings=70)
    backbone = foreword.Backbone(model, byte_tokenizer(), name="tiny")
    settings = changed(attributes="food", attribute_length=25, length=6, steps=1)
    result = foreword.train(backbone, rows, settings)
    assert result.prefix.length == 81 > backbone.context
    longest = max(len(one.input_ids) for one in encode(backbone, rows, settings, result.prefix)[0])
    assert longest == 70 - 31
