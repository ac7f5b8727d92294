"""One rule for what is too long: training, evaluation, generation, prediction and the server."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import foreword
from foreword.data import Task
from foreword.data.encode import Truncated
from foreword.data.room import Room
from foreword.errors import DataError
from foreword.generate import GenerateOptions, generate, generate_ids
from foreword.objectives.encode import encode
from foreword.prefix import Prefix
from foreword.prompts import encoder_for, task_of
from tests.tasks.models import CLASSIFY, tiny_encoder

SHORT = GenerateOptions(max_new_tokens=3)
ROWS = [
    {"mr": f"name[The very long name of a place that is called {name}]", "ref": f"It is {name}."}
    for name in ("Zizzi", "Aromi", "Cotto")
]
MOST = 24


def settings(**changes: Any) -> foreword.TrainSettings:
    known = {"prompt": "{mr} ->", "target": " {ref}", "length": 4, "steps": 1, "lr": 1e-9}
    return foreword.TrainSettings(**{**known, "max_length": MOST, "batch_size": 3, **changes})


@pytest.fixture
def prefix(tiny: foreword.Backbone) -> Prefix:
    return foreword.train(tiny, ROWS, settings()).prefix


def test_a_prompt_leaves_free_what_targets_took_in_training() -> None:
    assert [Room(100).of_prompt(new) for new in (0, 1, 40, 100)] == [100, 99, 60, 0]
    room = Room(100, 50, 10)
    assert (room.limit, Room(40, 50).limit) == (50, 40)
    assert [room.of_prompt(new) for new in (0, 5, 10, 40, 50, 60)] == [40] * 6
    assert [room.of_prompt(new) for new in (80, 100)] == [20, 0], "the context holds all of them"
    assert room.of_prompt(128, 30) < 0
    assert (room.of_prompt(40, 7), Room(40, 50, 10).of_prompt(5)) == (43, 35)


def test_training_tells_what_it_read(tiny: foreword.Backbone, prefix: Prefix) -> None:
    longest = max(len(row["ref"]) for row in ROWS) + 2  # a space in front, an end behind
    assert prefix.meta.training["longest_target"] == longest
    assert Room.behind(tiny, prefix) == Room(tiny.context - 4, MOST, longest)
    assert Room.behind(tiny, None) == Room(tiny.context)
    free = foreword.train(tiny, ROWS, settings(max_length=None)).prefix
    assert "longest_target" not in free.meta.training
    for wrong in ("40", -3, [5], None):
        odd = prefix.with_meta(recipe={**prefix.meta.recipe, "max_length": wrong})
        assert Room.behind(tiny, odd).max_length is None


def test_evaluation_scores_the_rows_that_training_saw(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    """Evaluation read the whole prompts, said that none was cut, and had another NLL."""
    trained, report = encode(tiny, ROWS, settings(), prefix)
    assert report.truncated_rows == len(ROWS)
    with pytest.warns(Truncated, match=f"whose max_length is {MOST}"):
        found = foreword.evaluate(tiny, prefix, ROWS, options=SHORT)
    assert isinstance(found, foreword.Evaluation)
    assert found.truncation == report
    nll, count = 0.0, 0
    for row in trained:
        with tiny.attached(prefix), torch.no_grad():
            logits = tiny.model(torch.tensor([row.input_ids])).logits[0]
        own = row.labels[-row.targets :]
        scores = logits[-row.targets - 1 : -1].double().log_softmax(-1)
        nll, count = nll - float(scores[range(len(own)), own].sum()), count + len(own)
    assert found.prefix.nll == pytest.approx(nll / count, rel=1e-6)
    first = foreword.train(tiny, ROWS, settings()).history[0]["loss"]
    assert found.prefix.nll == pytest.approx(first, rel=1e-4), "the first step starts where it ends"
    prompts = [row.input_ids[: -row.targets] for row in trained]
    assert [[text] for text in found.outputs] == generate_ids(tiny, prompts, prefix, SHORT)
    assert [[text] for text in found.base_outputs] == generate_ids(tiny, prompts, None, SHORT)


def test_generation_reads_prompts_as_training_cut_them(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    longest = prefix.meta.training["longest_target"]
    whole = tiny.tokenizer(f"{ROWS[0]['mr']} ->")["input_ids"]
    cut = whole[len(whole) - MOST + longest :]
    for new in (3, longest, 60):
        options = GenerateOptions(max_new_tokens=new)
        expected = generate_ids(tiny, [cut], prefix, options)
        with pytest.warns(Truncated, match="as prompts did in training"):
            assert generate(tiny, ROWS[:1], prefix, options) == expected
        frozen = generate_ids(tiny, [cut], None, options)
        with pytest.warns(Truncated):
            assert generate(tiny, ROWS[:1], options=options, like=prefix) == frozen
    with pytest.raises(DataError, match=f"in a context of {tiny.context - 4}"):
        generate(tiny, ROWS[:1], prefix, GenerateOptions(max_new_tokens=tiny.context))


def test_the_last_answer_of_a_conversation_is_left_free(tiny: foreword.Backbone) -> None:
    turns = [("user", "Hi?"), ("assistant", "Hello."), ("user", "Why?" * 9), ("assistant", "So.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    asked = settings(prompt=None, target=None)
    prefix = foreword.train(tiny, [row], asked).prefix
    assert prefix.meta.training["longest_target"] == len("So.") + 1
    (trained,), _ = encode(tiny, [row], asked, prefix)
    assert trained.answer == len("So.") + 1 == trained.targets
    encoder = encoder_for(tiny, prefix, task_of(prefix))
    with pytest.warns(Truncated):
        assert encoder.prompt(row, 99) == trained.input_ids[: -trained.answer]


def test_a_head_reads_what_it_was_trained_on() -> None:
    """`predict`, `features` and `evaluate` read whole texts where training had cut them."""
    encoder = tiny_encoder()
    rows = [{**row, "text": row["text"] + " and much more of it"} for row in CLASSIFY]
    prefix = foreword.train(
        encoder, rows, foreword.TrainSettings(length=4, steps=2, max_length=12)
    ).prefix
    cut = [row["text"][:10] for row in rows]  # beside two marks
    assert foreword.predict(encoder, rows, prefix) == foreword.predict(encoder, cut, prefix)
    texts = [row["text"] for row in rows]
    both = (foreword.features(encoder, each, prefix) for each in (texts, cut))
    torch.testing.assert_close(*both)
    found = foreword.evaluate(encoder, prefix, rows)
    short = [{**row, "text": text} for row, text in zip(rows, cut, strict=True)]
    assert found.truncation.truncated_rows == len(rows)
    assert found.prefix["nll"] == pytest.approx(
        foreword.evaluate(encoder, prefix, short).prefix["nll"]
    )
    assert not math.isnan(found.prefix["nll"])


def test_a_prefix_without_a_limit_is_read_as_before(tiny: foreword.Backbone) -> None:
    captured = tiny.capture("a text").with_meta(recipe=Task("{mr} ->", " {ref}").as_json())
    encoder = encoder_for(tiny, captured, task_of(captured))
    assert encoder.room == Room(tiny.context - captured.length)
    assert encoder.within_recipe([5] * 999) == [5] * 999
