"""Where texts begin and end, and which of their tokens are text: as in training."""

from __future__ import annotations

import string
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, decoders
from tokenizers.processors import TemplateProcessing

import foreword
from foreword.data import Task
from foreword.data.written import (
    OtherBeginning,
    end_of_turn,
    special_ids,
    stop_of_turn,
    written_for,
)
from foreword.engine import Engine, Limits, Request, Sampling, Weighted
from foreword.generate import GenerateOptions, generate, generate_ids, generated
from foreword.prefix import Prefix
from tests.backbone.test_decoding import tiny_bart
from tests.conftest import CHAT, byte_tokenizer
from tests.tasks.models import marking_tokenizer

TASK = Task("{mr} ->", " {ref}")
LONG = GenerateOptions(max_new_tokens=24)
ASKED = "name[Zizzi], food[Thai]"
TURN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<s>{% endfor %}" + (
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A template that ends turns with a token that is not the tokenizer's end of sequence."""


@pytest.fixture
def prefix(tiny: foreword.Backbone) -> Prefix:
    """A captured text whose recipe says that it was trained with templates."""
    return tiny.capture("Restaurants in short: ").with_meta(recipe=TASK.as_json())


def written(backbone: foreword.Backbone, prefix: Prefix | None, prompt: str) -> list[int]:
    """Token ids that the likeliest tokens give, whatever ends them."""
    ids = torch.tensor([backbone.tokenizer(prompt)["input_ids"]])
    with backbone.attached(prefix), torch.no_grad():
        out = backbone.model.generate(
            ids, max_new_tokens=24, do_sample=False, eos_token_id=[257], pad_token_id=1
        )
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


def served(backbone: foreword.Backbone, prefix: Prefix | None, prompt: str) -> tuple[int, ...]:
    """Tokens that the engine gives."""
    ids = tuple(backbone.tokenizer(prompt)["input_ids"])
    sampling = Sampling(max_tokens=24, temperature=0)
    prefixes = () if prefix is None else (Weighted(prefix),)
    with Engine(backbone, Limits(rows=2)) as engine:
        return engine.generate([Request(ids, sampling, prefixes)])[0].tokens


def test_what_training_appended_ends_a_text_and_the_configs_own_word_does_not(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    """A config whose end of sequence is an ordinary piece of text cut every output there."""
    prompt = f"{ASKED} ->"
    whole = written(tiny, prefix, prompt)
    place = max(whole.index(token) for token in set(whole))
    assert 1 < place < len(whole) - 1
    tiny.model.generation_config.eos_token_id = whole[place]
    expected = tiny.tokenizer.decode(whole).strip()
    assert generate(tiny, [ASKED], prefix, LONG) == [[expected]]
    assert served(tiny, prefix, prompt) == tuple(whole)
    alone = written(tiny, None, prompt)
    tiny.model.generation_config.eos_token_id = [alone[5]]
    first = alone.index(alone[5])
    assert served(tiny, None, prompt) == tuple(alone[: first + 1]), "a frozen model ends as it says"


def test_the_tokenizers_end_ends_a_text_where_the_config_names_another(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    """Training appends the tokenizer's; generation stopped at the config's only, and ran on."""
    prompt = f"{ASKED} ->"
    whole = written(tiny, prefix, prompt)
    place = max(whole.index(token) for token in set(whole))
    tiny.model.generation_config.eos_token_id = 0
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(whole[place])
    assert tiny.eos_ids == {0, whole[place]}
    assert served(tiny, prefix, prompt) == tuple(whole[: place + 1])
    (text,) = generate(tiny, [ASKED], prefix, LONG)[0]
    assert tiny.tokenizer.decode(whole[:place]).strip() == text.removesuffix(
        tiny.tokenizer.eos_token
    )


def test_an_end_of_the_models_own_that_is_no_text_ends_a_text_too(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    tiny.model.generation_config.eos_token_id = [0, 99]
    assert written_for(tiny, prefix, TASK).ends == {0, 1}
    assert written_for(tiny, None, TASK).ends == {0, 1, 99}
    captured = prefix.with_meta(recipe={})
    assert written_for(tiny, captured, TASK).ends == {0, 1, 99}


def test_a_chat_templates_end_of_turn_ends_an_answer(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    """Base models' tokenizers have chat templates whose turns end otherwise than their texts."""
    chat = prefix.with_meta(recipe=Task().as_json())
    assert end_of_turn(tiny.tokenizer) == {1}
    tiny.tokenizer.chat_template = TURN
    assert end_of_turn(tiny.tokenizer) == {0}
    assert written_for(tiny, chat, Task()).ends == {0, 1}
    assert written_for(tiny, prefix, TASK).ends == {1}
    tiny.tokenizer.chat_template = TURN.replace("<s>", " (over)")
    assert end_of_turn(tiny.tokenizer) == frozenset(), "plain text is no single token"
    assert stop_of_turn(tiny.tokenizer) == (" (over)",)
    tiny.tokenizer.chat_template = None
    assert end_of_turn(tiny.tokenizer) == frozenset()
    assert stop_of_turn(tiny.tokenizer) == ()


def test_an_end_of_turn_in_plain_text_ends_an_answer_too(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    """A base model's vocabulary may lack the template's marks; training predicts them all the same."""
    tiny.tokenizer.backend_tokenizer.decoder = decoders.Fuse()  # a character for each token
    chat = prefix.with_meta(recipe=Task().as_json())
    for said in string.ascii_letters:
        prompt = f"<s>user: {said}</s><s>assistant: "
        whole = tiny.tokenizer.decode(written(tiny, chat, prompt))
        places = [i for i in range(3, 20) if whole.find(whole[i : i + 2]) == i]
        if places and not set("{}%#") & set(whole):
            break
    mark = whole[places[-1] : places[-1] + 2]
    assert not mark.isspace()
    tiny.tokenizer.chat_template = CHAT.replace(
        "</s>{%", "{% if m['role'] == 'user' %}</s>{% else %}" + mark + "{% endif %}{%", 1
    )
    assert stop_of_turn(tiny.tokenizer) == (mark,)
    assert end_of_turn(tiny.tokenizer) == frozenset()
    expected = whole.partition(mark)[0].strip()
    assert generate(tiny, [said], chat, LONG) == [[expected]]
    ids = tuple(tiny.tokenizer(prompt)["input_ids"])
    sampling = Sampling(max_tokens=24, temperature=0)
    with Engine(tiny, Limits(rows=2)) as engine:
        found = engine.generate([Request(ids, sampling, (Weighted(chat),))])[0]
    assert (found.text.strip(), found.finish) == (expected, "stop")


def multilingual(**changes: Any) -> foreword.Backbone:
    """A BART whose tokenizer begins targets with <en>, as mBART-50's does with the language."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<en>"]})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<en> $A </s>", special_tokens=[("<en>", 258), ("</s>", 1)]
    )
    return tiny_bart(tokenizer, vocab_size=259, **changes)


def given_first(backbone: foreword.Backbone) -> list[list[int]]:
    """What the decoder is given in the first pass of generation, then the texts' beginnings."""
    seen: list[list[int]] = []
    _ = backbone.context  # whose measuring calls the decoder as well
    hook = backbone.model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    generate(backbone, [ASKED], options=GenerateOptions(max_new_tokens=3))
    hook.remove()
    return seen


def test_an_encoder_decoders_text_begins_as_its_targets_do() -> None:
    """The language stands in front of a target in training; no config needs to force it."""
    backbone = multilingual()
    labels = backbone.tokenizer(text_target="x")["input_ids"]
    trained = backbone.model.prepare_decoder_input_ids_from_labels(torch.tensor([labels]))
    assert given_first(backbone)[0] == trained[0, :2].tolist() == [1, 258]
    own = backbone.model.generation_config
    own.forced_bos_token_id = 258
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert given_first(backbone)[0] == [1, 258]
    own.forced_bos_token_id = 65
    with pytest.warns(
        OtherBeginning, match=r"forced_bos_token_id=65; texts begin with .*\[1, 258\]"
    ):
        assert given_first(backbone)[0] == [1, 258]
    own.forced_bos_token_id, own.decoder_start_token_id = None, 70
    with pytest.warns(OtherBeginning, match="decoder_start_token_id=70"):
        assert given_first(backbone)[0] == [1, 258]


def test_marks_of_an_encoder_decoder_are_no_text() -> None:
    """BART's targets are <s> text </s>, and so are its outputs."""
    backbone = tiny_bart(marking_tokenizer())
    found = written_for(backbone, None, TASK)
    assert (found.begin, found.ends, found.kept) == ((1, 0), {1}, frozenset())
    assert (
        found.text([*backbone.tokenizer("ab", add_special_tokens=False)["input_ids"], 1, 1]) == "ab"
    )


def marked(tiny: foreword.Backbone) -> int:
    """The number of a special token <sep> that stands in targets; its texts stay in a vocabulary."""
    tiny.tokenizer.add_special_tokens({"additional_special_tokens": ["<sep>"]})
    tiny.model.resize_token_embeddings(259)
    return int(tiny.tokenizer.convert_tokens_to_ids("<sep>"))


def test_special_tokens_of_targets_are_text_in_outputs_and_references(
    tiny: foreword.Backbone, rows: list[dict[str, str]]
) -> None:
    """They were taken out of outputs and left in references: never an exact match."""
    sep = marked(tiny)
    for row in rows:
        row["ref"] = row["ref"].replace(" serves ", "<sep>")
    settings = foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", length=4, steps=1)
    prefix = foreword.train(tiny, rows, settings).prefix
    assert prefix.meta.training["target_specials"] == [sep]
    found = foreword.evaluate(
        tiny, prefix, rows[:2], base=False, options=GenerateOptions(max_new_tokens=3)
    )
    assert found.references == [[row["ref"]] for row in rows[:2]]
    ids = tiny.tokenizer(" Zizzi<sep>Thai")["input_ids"]
    assert written_for(tiny, prefix, TASK).text([*ids, 1, 1]) == "Zizzi<sep>Thai"
    assert written_for(tiny, None, TASK).text([*ids, 1, 1]) == "ZizziThai"
    plain = foreword.train(tiny, [{"mr": "m", "ref": "r"}] * 2, settings).prefix
    assert "target_specials" not in plain.meta.training
    sampling = Sampling(max_tokens=2, temperature=0, logit_bias={sep: 1e4})
    with Engine(tiny, Limits(rows=2)) as engine:
        texts = [
            engine.generate([Request((5,), sampling, (Weighted(one),))])[0].text
            for one in (prefix, plain)
        ]
    assert texts == ["<sep><sep>", ""]


def test_a_template_says_which_special_tokens_are_text(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    sep = marked(tiny)
    task = Task("{mr} ->", " {ref}<sep>{mr}</s>")
    found = written_for(tiny, prefix.with_meta(recipe=task.as_json()), task)
    assert (found.kept, found.ends) == ({sep}, {1})


def test_what_the_tokenizer_cannot_write_is_no_text(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    """T5 has no braces: a reference keeps them, and no output has an <unk> in their place."""
    sep = marked(tiny)
    tiny.tokenizer.unk_token = "<sep>"
    found = written_for(tiny, prefix, TASK).keeping(["a<sep>b"])
    assert found.kept == frozenset()
    assert found.reference("a<sep>b") == "a<sep>b"
    assert found.text([*tiny.tokenizer("a")["input_ids"], sep, 1]) == "a"


def test_a_text_says_whether_the_model_ended_it(tiny: foreword.Backbone, prefix: Prefix) -> None:
    """As the engine does, which looks at each token as it comes: ended by a token, or cut."""
    asked = [ASKED, "x"]
    tokens = [written(tiny, prefix, f"{one} ->") for one in asked]
    end = next(token for token in tokens[0][3:] if token not in tokens[1])
    tiny.model.generation_config.eos_token_id = end
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(end)
    found = generated(tiny, asked, prefix, LONG)
    assert [[one.finish for one in each] for each in found] == [["stop"], ["length"]]
    assert [[one.text for one in each] for each in found] == generate(tiny, asked, prefix, LONG)
    count = tokens[0].index(end)
    for most, finish in ((count, "length"), (count + 1, "stop")):
        options = GenerateOptions(max_new_tokens=most)
        assert generated(tiny, ASKED, prefix, options)[0][0].finish == finish
        ids = tuple(tiny.tokenizer(f"{ASKED} ->")["input_ids"])
        sampling = Sampling(max_tokens=most, temperature=0)
        with Engine(tiny, Limits(rows=2)) as engine:
            request = Request(ids, sampling, (Weighted(prefix),))
            assert engine.generate([request])[0].finish == finish


def test_each_of_several_texts_says_whether_the_model_ended_it(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    options = GenerateOptions(max_new_tokens=12, do_sample=True, num_return_sequences=8)
    plain = generated(tiny, ASKED, prefix, options)[0]
    assert {one.finish for one in plain} == {"length"}
    spared = plain[1].text
    letter = next(one for one in plain[0].text if one.isascii() and one not in spared)
    (end,) = tiny.tokenizer(letter, add_special_tokens=False)["input_ids"]
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(end)
    found = generated(tiny, ASKED, prefix, options)[0]
    assert [one.finish for one in found][:2] == ["stop", "length"]


def test_an_end_of_turn_in_plain_text_ends_a_text_as_a_token_does(
    tiny: foreword.Backbone, prefix: Prefix
) -> None:
    found = replace(written_for(tiny, prefix, TASK), stop=("ver)",))
    for text, ended in (("It is over", False), ("It is (over)", True), ("It is</s>", True)):
        ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert found.is_ended(ids) is ended


def test_a_reference_ends_where_a_text_would(tiny: foreword.Backbone, prefix: Prefix) -> None:
    """A target that brings an end of its own was compared with it, and outputs without."""
    found = written_for(tiny, prefix, TASK)
    assert found.reference(" Zizzi.</s>") == found.reference(" Zizzi.") == "Zizzi."


def test_spaces_stay_where_the_tokens_have_them(tiny: foreword.Backbone, prefix: Prefix) -> None:
    """Some tokenizers tidy up spaces before full stops when they decode; references are not tidied."""
    tiny.tokenizer.clean_up_tokenization_spaces = True
    text = "Zizzi 's food , is n't it ?"
    found = written_for(tiny, prefix, TASK)
    assert found.text(tiny.tokenizer(text)["input_ids"]) == text == found.reference(text)
    expected = tiny.tokenizer.decode(written(tiny, prefix, "x"), clean_up_tokenization_spaces=False)
    prompts = [tiny.tokenizer("x")["input_ids"]]
    assert generate_ids(tiny, prompts, prefix, LONG) == [[expected.strip()]]


def test_special_tokens_are_those_that_decoding_leaves_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("<own>", special=True), AddedToken("plain", special=False)])
    assert special_ids(tokenizer) == {0, 1, tokenizer.convert_tokens_to_ids("<own>")}
