"""Generated texts against each row alone, and against the prefix's text in the context."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import foreword
from foreword.attention.attachment import attachment_of
from foreword.data import Task
from foreword.data.encode import Truncated
from foreword.errors import DataError, MismatchError
from foreword.generate import GenerateOptions, as_row, generate, generate_ids
from foreword.prefix import Prefix
from foreword.prompts import task_of
from foreword.tasks import LABELLINGS
from tests.conftest import byte_tokenizer, tiny_model

TEXT = "Restaurants are described here in one sentence each."
INPUTS = [
    "name[Zizzi], food[Thai]",
    "x",
    "name[The Cambridge Blue], near[Café Brazil], area",
    "Hi?",
]
PLAIN = Task("{input}", "{output}")
SHORT = GenerateOptions(max_new_tokens=12)


@pytest.fixture
def prefix(tiny: foreword.Backbone) -> Prefix:
    """A captured text whose recipe has the plain templates."""
    return tiny.capture(TEXT).with_meta(recipe=PLAIN.as_json())


def options(**changes: Any) -> GenerateOptions:
    return GenerateOptions(**{"max_new_tokens": 12, **changes})


def ids(backbone: foreword.Backbone, text: str) -> list[int]:
    return list(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("prefixed", [False, True])
def test_a_batch_gives_what_each_row_gives_alone(
    spelled: foreword.Backbone, prefix: Prefix, prefixed: bool
) -> None:
    used = prefix if prefixed else None
    alone = [generate(spelled, [one], used, SHORT, task=PLAIN)[0] for one in INPUTS]
    assert generate(spelled, INPUTS, used, SHORT, task=PLAIN) == alone
    assert generate(spelled, INPUTS, used, options(batch_size=3), task=PLAIN) == alone
    assert len({texts[0] for texts in alone}) == len(INPUTS), "the rows tell nothing apart"
    assert all(len(texts) == 1 and len(texts[0]) > 2 for texts in alone)


def test_greedy_is_the_likeliest_token_each_time(spelled: foreword.Backbone) -> None:
    sequence = ids(spelled, INPUTS[0])
    for _ in range(8):
        with torch.no_grad():
            logits = spelled.model(torch.tensor([sequence])).logits[0, -1]
        sequence.append(int(logits.argmax()))
    new = sequence[-8:]
    assert 1 not in new
    expected = spelled.tokenizer.decode(new)
    assert generate(spelled, INPUTS[:1], options=options(max_new_tokens=8)) == [[expected]]


@pytest.mark.parametrize("changes", [{}, {"num_beams": 3, "num_return_sequences": 2}])
def test_a_captured_text_gives_what_the_text_in_context_gives(
    spelled: foreword.Backbone, prefix: Prefix, changes: dict[str, int]
) -> None:
    prompts = [ids(spelled, text) for text in INPUTS]
    in_context = [[*ids(spelled, TEXT), *prompt] for prompt in prompts]
    expected = generate_ids(spelled, in_context, None, options(**changes))
    found = generate_ids(spelled, prompts, prefix, options(**changes))
    assert found == expected
    assert found != generate_ids(spelled, prompts, None, options(**changes))


def test_the_prefixs_own_templates_are_used_unless_told_otherwise(
    spelled: foreword.Backbone, prefix: Prefix
) -> None:
    asks = Task("Q: {question} A:", " {answer}")
    trained = prefix.with_meta(recipe=asks.as_json())
    assert task_of(trained) == asks
    plain = [f"Q: {text} A:" for text in INPUTS]
    expected = generate(spelled, plain, prefix, SHORT)
    assert generate(spelled, INPUTS, trained, SHORT) == expected
    assert generate(spelled, INPUTS, prefix, SHORT, task=asks) == expected
    rows = [{"question": text, "answer": "unused"} for text in INPUTS]
    assert generate(spelled, rows, trained, SHORT) == expected


def test_beams_come_best_first_and_beside_their_input(spelled: foreword.Backbone) -> None:
    beams = options(num_beams=3, num_return_sequences=3)
    alone = [generate(spelled, [one], options=beams)[0] for one in INPUTS]
    found = generate(spelled, INPUTS, options=beams)
    assert found == alone
    assert all(len(set(texts)) == 3 for texts in found)
    best = generate(spelled, INPUTS, options=options(num_beams=3))
    assert [texts[:1] for texts in found] == best
    assert best != generate(spelled, INPUTS, options=SHORT)


def test_drawn_texts_stand_beside_their_input(spelled: foreword.Backbone) -> None:
    greedy = generate(spelled, INPUTS, options=SHORT)
    for size in (1, 3, 16):
        only = options(do_sample=True, top_k=1, num_return_sequences=3, batch_size=size)
        assert generate(spelled, INPUTS, options=only) == [texts * 3 for texts in greedy]
    many = options(do_sample=True, top_k=0, num_return_sequences=3)
    assert all(len(set(texts)) == 3 for texts in generate(spelled, INPUTS, options=many))


def test_drawing_is_repeated_by_its_seed_and_leaves_the_callers_numbers_alone(
    spelled: foreword.Backbone, prefix: Prefix
) -> None:
    """`set_seed` was called even for greedy texts, which made a caller's own draws repeat."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn = options(do_sample=True, top_k=0, seed=3)
    first = generate(spelled, INPUTS, prefix, drawn)
    assert torch.equal(torch.rand(3), expected)
    assert generate(spelled, INPUTS, prefix, drawn) == first
    assert generate(spelled, INPUTS, prefix, options(do_sample=True, top_k=0, seed=4)) != first


def test_options_reach_the_model(spelled: foreword.Backbone) -> None:
    def texts(**changes: Any) -> list[list[str]]:
        return generate(spelled, INPUTS, options=options(max_new_tokens=40, **changes))

    free = texts()
    assert texts(repetition_penalty=3.0) != free
    assert texts(do_sample=True, top_p=1e-6) == free
    assert texts(do_sample=True, temperature=1e-4) == free
    for (text,) in texts(no_repeat_ngram_size=1):
        assert len(set(text)) == len(text)
    assert any(len(set(text)) < len(text) for (text,) in free)
    assert [[text[:5]] for (text,) in free] == generate(
        spelled, INPUTS, options=options(max_new_tokens=5)
    )


def test_text_ends_where_the_model_ends_it_else_where_the_tokenizer_does(
    spelled: foreword.Backbone,
) -> None:
    (whole,) = generate(spelled, INPUTS[2:3], options=options(max_new_tokens=40))[0]
    place = max(whole.index(char) for char in set(whole))
    assert 2 < place < len(whole) - 1
    ended = [[whole[: place + 1]]]
    (stop,) = spelled.tokenizer.convert_tokens_to_ids([whole[place]])
    long = options(max_new_tokens=40)
    spelled.model.generation_config.eos_token_id = stop
    assert generate(spelled, INPUTS[2:3], options=long) == ended
    spelled.model.generation_config.eos_token_id = None
    assert generate(spelled, INPUTS[2:3], options=long) == [[whole]]
    spelled.tokenizer.eos_token = whole[place]
    assert generate(spelled, INPUTS[2:3], options=long) == ended


def state(backbone: foreword.Backbone) -> dict[str, Any]:
    model = backbone.model
    return {
        "fields": {name: id(value) for name, value in model.__dict__.items()},
        "attention": model.config._attn_implementation,
        "generation": model.generation_config.to_dict(),
        "weights": {name: tensor.sum().item() for name, tensor in model.state_dict().items()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "training": model.training,
        "attachment": attachment_of(model),
    }


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was_found(
    tiny: foreword.Backbone, prefix: Prefix, failing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(tiny)
    assert before["attachment"] is None
    generate(tiny, INPUTS, prefix, SHORT)
    generate(tiny, INPUTS, None, options(num_beams=2))
    if failing:
        with monkeypatch.context() as patch:
            patch.setattr(type(tiny.model), "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                generate(tiny, INPUTS, prefix, SHORT)
    assert state(tiny) == before


def test_a_prefix_that_was_attached_stays_and_takes_no_part(
    spelled: foreword.Backbone, prefix: Prefix
) -> None:
    alone = generate(spelled, INPUTS, options=SHORT)
    under = generate(spelled, INPUTS, prefix, SHORT)
    foreword.attach(spelled, prefix)
    assert generate(spelled, INPUTS, options=SHORT) == alone
    given = torch.tensor([ids(spelled, INPUTS[0])])
    out = spelled.model.generate(given, max_new_tokens=12, do_sample=False, pad_token_id=1)
    text = spelled.tokenizer.decode(out[0, given.shape[1] :], skip_special_tokens=True)
    assert [text] == under[0]
    foreword.detach(spelled)


ROWS: list[tuple[Any, Task, Any]] = [
    ("name[Zizzi]", Task("{mr} ->", "{ref}"), {"mr": "name[Zizzi]"}),
    ("x", Task("{mr} and {mr}", "{ref}"), {"mr": "x"}),
    ('{"mr": "x", "more": 1}', Task("{mr}", "{ref}"), {"mr": "x", "more": 1}),
    (' {"a": "x", "b": 2}', Task("{a} {b}", "{ref}"), {"a": "x", "b": 2}),
    ('{"other": "x"}', Task("{mr}", "{ref}"), {"mr": '{"other": "x"}'}),
    ("{not json", Task("{mr}", "{ref}"), {"mr": "{not json"}),
    ("", Task("Say something:", "{ref}"), {}),
    ('{"mr": "x"}', Task("Say something:", "{ref}"), {"mr": "x"}),
    ("Hi?", Task(), "Hi?"),
    ('{"mr": "x"}', Task(), '{"mr": "x"}'),
    ({"mr": "x"}, Task("{mr}", "{ref}"), {"mr": "x"}),
]


@pytest.mark.parametrize(("given", "task", "row"), ROWS)
def test_a_text_meets_the_template(given: Any, task: Task, row: Any) -> None:
    assert as_row(given, task) == row


@pytest.mark.parametrize("text", ["x", '{"a": "x"}', '["a", "b"]', '{"a": "x", "b": }'])
def test_a_text_for_several_columns_is_a_json_object(text: str) -> None:
    with pytest.raises(DataError, match="names the columns a, b; give them as a JSON object"):
        as_row(text, Task("{a} {b}", "{ref}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"rude": "hi"', "Expecting ',' delimiter: line 1 column 14"),
        ("{'rude': 'hi'}", "Expecting property name enclosed in double quotes"),
        ('{"rude": "hi\nthere"}', "Invalid control character"),
        ('{"rude": ' + "[" * 100_000, "it is nested too deeply"),
    ],
    ids=["cut off", "single quotes", "line break", "deep"],
)
def test_an_object_that_is_not_valid_json_is_no_text(text: str, said: str) -> None:
    """It was taken for the column's text, braces and all, and answered with nonsense."""
    with pytest.raises(DataError, match=r"^the text .* is not valid JSON") as error:
        as_row(text, Task("{rude} ->", "{ref}"))
    assert said in str(error.value)
    assert 'give its text alone, or a whole JSON object, such as {"rude": "..."}' in str(
        error.value
    )
    with pytest.raises(
        DataError, match=r"not valid JSON .* names the columns rude, b; give them as"
    ):
        as_row(text, Task("{rude} {b}", "{ref}"))


@pytest.mark.parametrize("text", ["x", "[]", "{not json"])
def test_a_text_that_has_no_place_in_the_template_is_refused(
    tiny: foreword.Backbone, prefix: Prefix, text: str
) -> None:
    """It was dropped, and the prompt was the same whatever one asked."""
    task = Task("Say something:", "{ref}")
    with pytest.raises(DataError, match="names no column, so the text .* has no place in it"):
        generate(tiny, [text], prefix, SHORT, task=task)
    with pytest.raises(DataError, match="names no column"):
        LABELLINGS["classify"].given(task, text)


def test_chat_asks_for_the_assistants_turn(spelled: foreword.Backbone, prefix: Prefix) -> None:
    asked = "<s>user: Hi?</s><s>assistant: "
    expected = generate_ids(spelled, [ids(spelled, asked)], prefix, SHORT)
    conversation = {"messages": [{"role": "user", "content": "Hi?"}]}
    answered = {"messages": [*conversation["messages"], {"role": "assistant", "content": "Yes."}]}
    for one in ("Hi?", conversation, answered):
        assert generate(spelled, [one], prefix, SHORT, task=Task()) == expected


def test_a_conversation_is_continued_from_its_last_question(spelled: foreword.Backbone) -> None:
    """A question after an answer was dropped together with that answer."""
    turns = [("user", "Hi?"), ("assistant", "Yes."), ("user", "Why?")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    whole = "<s>user: Hi?</s><s>assistant: Yes.</s><s>user: Why?</s><s>assistant: "
    expected = generate_ids(spelled, [ids(spelled, whole)], None, SHORT)
    assert generate(spelled, [row], options=SHORT, task=Task()) == expected


def test_a_prompt_makes_room_for_prefix_and_new_tokens(spelled: foreword.Backbone) -> None:
    prefix = spelled.capture(TEXT)
    room = spelled.context - prefix.length - 12
    long = "ab" * room
    expected = generate_ids(spelled, [ids(spelled, long[-room:])], prefix, SHORT)
    with pytest.warns(Truncated):
        assert generate(spelled, [long], prefix, SHORT, task=PLAIN) == expected
    with pytest.raises(DataError, match="new tokens leave no room for a prompt"):
        generate(spelled, ["x"], prefix, options(max_new_tokens=spelled.context), task=PLAIN)


def test_no_inputs_give_no_texts(tiny: foreword.Backbone) -> None:
    assert generate(tiny, []) == []


def test_a_prefix_of_another_model_is_refused(prefix: Prefix, tiny: foreword.Backbone) -> None:
    other = foreword.Backbone(tiny_model(num_hidden_layers=2), tiny.tokenizer)
    with pytest.raises(MismatchError):
        generate(other, ["x"], prefix, SHORT)


def test_texts_need_a_tokenizer_and_their_columns(tiny: foreword.Backbone) -> None:
    with pytest.raises(DataError, match="names column 'input'; the columns are: mr"):
        generate(tiny, [{"mr": "x"}])
    with pytest.raises(DataError, match="its messages must be a list of turns; found NoneType"):
        generate(tiny, [{"mr": "x"}], task=Task())
    with pytest.raises(DataError, match="has no tokenizer"):
        generate(foreword.Backbone(tiny_model()), ["x"])


WRONG: list[dict[str, Any]] = [
    {"max_new_tokens": 0},
    {"num_beams": 0},
    {"num_return_sequences": 0},
    {"batch_size": 0},
    {"top_k": -1},
    {"no_repeat_ngram_size": -1},
    {"temperature": 0.0},
    {"temperature": float("nan")},
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": float("inf")},
    {"num_return_sequences": 2},
    {"num_return_sequences": 3, "num_beams": 2},
    {"num_return_sequences": 3, "num_beams": 2, "do_sample": True},
]


@pytest.mark.parametrize("changes", WRONG)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    found = str(next(iter(changes.values())))
    with pytest.raises(DataError, match=found):
        GenerateOptions(**changes)


RIGHT: list[dict[str, Any]] = [
    {"num_return_sequences": 2, "do_sample": True},
    {"num_return_sequences": 2, "num_beams": 2},
    {"num_return_sequences": 2, "num_beams": 2, "do_sample": True},
    {"do_sample": True, "top_k": 0, "top_p": 0.9, "temperature": 0.7},
]


@pytest.mark.parametrize("changes", RIGHT)
def test_numbers_in_range_are_those_that_the_model_takes(
    tiny: foreword.Backbone, changes: dict[str, Any]
) -> None:
    count = changes.get("num_return_sequences", 1)
    found = generate(tiny, ["x", "name"], options=options(max_new_tokens=2, **changes))
    assert [len(texts) for texts in found] == [count, count]


def test_a_row_without_text_is_refused_with_its_number(tiny: foreword.Backbone) -> None:
    """A null was the text "None"."""
    task = Task("{mr} ->", "{ref}")
    for value, why in ((None, "there is no value"), (b"x", "found bytes"), (["x"], "found a list")):
        with pytest.raises(DataError, match=f"^input 2: column 'mr': {why}"):
            generate(tiny, [{"mr": "a"}, {"mr": value}], task=task)


def test_a_model_in_training_mode_answers_as_in_evaluation() -> None:
    """One that was made from a config drops out: another text at every call, and no word of it."""
    config = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 258}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**config, embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5))
    backbone = foreword.Backbone(model.eval(), byte_tokenizer(), name="gpt2")
    prefix, row = backbone.capture([5, 6, 7]), {"input": "a", "output": "b"}
    options = foreword.GenerateOptions(max_new_tokens=6)

    def every() -> list[Any]:
        figures = foreword.evaluate(
            backbone, prefix, [row], task=foreword.Task("{input}", "{output}"), options=options
        )
        return [
            foreword.generate(backbone, ["a"], prefix, options),
            foreword.features(backbone, ["a text"], prefix).tolist(),
            figures.prefix.nll,
        ]

    expected = every()
    model.train()
    model.transformer.h[1].eval()
    assert every() == expected
    assert model.training
    assert not model.transformer.h[1].training
