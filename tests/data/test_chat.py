"""Conversations: only what the assistant says is predicted, and nothing of it is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from foreword.data import Encoded, Encoder, Task
from foreword.data.encode import IGNORED
from foreword.errors import DataError
from foreword.prefix import Bos
from foreword.weights import embedded
from tests.conftest import byte_tokenizer
from tests.data.test_encode import BOS, bos_tokenizer, ids


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    """Contents as turns of user and assistant in exchange."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


TWO = turns("Hi?", "Hello.", "And?", "Bye, £5 — 日本.")
SYSTEM = [{"role": "system", "content": "Be short."}, *turns("Hi?", "Hello.")]


def chat(
    messages: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    bos: Bos = "none",
    limit: int = 10_000,
) -> Encoded:
    encoder = Encoder(tokenizer or byte_tokenizer(), Task(), bos=bos, limit=limit)
    return encoder.rows([{"messages": messages}])[0][0]


def labelled(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Each run of predicted tokens as text, special ones written out."""
    runs: list[list[int]] = [[]]
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (IGNORED, token)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs if run]


def test_only_the_assistants_turns_and_their_ends_are_predicted() -> None:
    tokenizer = byte_tokenizer()
    row = chat(TWO)
    assert labelled(row, tokenizer) == ["Hello.</s>", "Bye, £5 — 日本.</s>"]
    whole = tokenizer.apply_chat_template(TWO, tokenize=False)
    assert tokenizer.decode(row.input_ids, skip_special_tokens=False) == whole
    assert row.truncated == 0


def test_a_system_turn_is_read_and_not_predicted() -> None:
    row = chat(SYSTEM)
    assert labelled(row, byte_tokenizer()) == ["Hello.</s>"]
    text = byte_tokenizer().decode(row.input_ids, skip_special_tokens=False)
    assert text.startswith("<s>system: Be short.</s><s>user: Hi?")


def test_what_follows_the_last_answer_is_left_out() -> None:
    assert chat([*TWO, {"role": "user", "content": "Thanks!"}]) == chat(TWO)


def test_an_opening_turn_of_the_assistant_is_context() -> None:
    row = chat(turns("Welcome!", "Hi.", "What can I do?", first="assistant"))
    assert labelled(row, byte_tokenizer()) == ["What can I do?</s>"]


def test_content_that_looks_like_special_tokens_moves_no_label() -> None:
    row = chat(turns("</s><s>assistant: no", "yes</s><s>user: x", "Hi", "ok"))
    assert labelled(row, byte_tokenizer()) == ["yes</s><s>user: x</s>", "ok</s>"]


def test_the_prompt_is_the_conversation_less_an_answer_at_its_end() -> None:
    tokenizer = byte_tokenizer()
    encoder = Encoder(tokenizer, Task(), bos="none", limit=1000)
    row = chat(TWO)
    last = len(ids("Bye, £5 — 日本.")) + 1
    assert encoder.prompt({"messages": TWO}) == row.input_ids[:-last]
    assert encoder.prompt({"messages": TWO[:3]}) == row.input_ids[:-last]
    asked = tokenizer.decode(encoder.prompt("Hi?"), skip_special_tokens=False)
    assert asked == "<s>user: Hi?</s><s>assistant: "


@pytest.mark.parametrize(("bos", "starts"), [("input", 1), ("none", 1), ("prefix", 0)])
def test_a_bos_that_the_template_writes_stands_once_or_in_the_prefix(bos: Bos, starts: int) -> None:
    for tokenizer in (byte_tokenizer(), bos_tokenizer()):
        row = chat(TWO, tokenizer=tokenizer, bos=bos)
        begin = [BOS] * starts + ids("user: Hi?")
        assert row.input_ids[: len(begin)] == begin
        assert labelled(row, tokenizer) == ["Hello.</s>", "Bye, £5 — 日本.</s>"]
        asked = Encoder(tokenizer, Task(), bos=bos, limit=1000).prompt("Hi?")
        assert asked[: len(begin)] == begin


def test_the_oldest_turns_are_cut_and_the_last_answer_stays_whole() -> None:
    whole = chat(TWO)
    last = len(ids("Bye, £5 — 日本.")) + 1
    for limit in range(last + 1, len(whole.input_ids)):
        row = chat(TWO, limit=limit)
        lost = len(whole.input_ids) - limit
        assert row.truncated == lost
        assert row.input_ids == whole.input_ids[lost:]
        assert row.labels == [IGNORED, *whole.labels[lost + 1 :]], "the first has none before it"
        assert labelled(row, byte_tokenizer())[-1] == "Bye, £5 — 日本.</s>"


def test_a_last_answer_that_does_not_fit_is_named_with_its_length() -> None:
    last = len(ids("Bye, £5 — 日本.")) + 1
    for messages in (TWO, [*TWO, *turns("Thanks, and good night!")]):
        with pytest.raises(
            DataError, match=f"row 1: its last assistant turn has {last} tokens; the context leaves"
        ):
            chat(messages, limit=last)
        chat(messages, limit=last + 1)


WRONG = [
    ("hello", "must be a list of turns; found str"),
    ([], "must be a list of turns"),
    ([{"role": "user"}], "turn 1 of its messages must have role and content"),
    ([{"role": "user", "content": "x"}, {"content": "y"}], "turn 2 of its messages must have role"),
    (["hello"], "turn 1 of its messages must have role"),
    (
        [{"role": "user", "content": ["x"]}],
        "turn 1 of its messages: content must be text, found list",
    ),
    ([{"role": None, "content": "x"}], "turn 1 of its messages: role must be text, found NoneType"),
]


@pytest.mark.parametrize(("messages", "fault"), WRONG)
def test_what_is_no_conversation_is_refused_in_training_and_generation(
    messages: Any, fault: str
) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{fault}"):
        chat(messages)
    with pytest.raises(DataError, match=fault):
        Encoder(byte_tokenizer(), Task(), bos="none", limit=99).prompt({"messages": messages})


@pytest.mark.parametrize("messages", [turns("Hi?"), turns("I speak first", first="assistant")])
def test_a_conversation_without_an_answer_is_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(DataError, match="row 1: its messages have no assistant turn"):
        chat(messages)


REWRITES = {
    "earlier answers shortened": (
        "{% for m in messages %}<s>{{ m['role'] }}: "
        "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'][:2] }}{% endif %}"
        "</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"
    ),
    "number of turns first": (
        "{{ messages | length }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "another way to ask": (
        "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant (think first): {% endif %}"
    ),
}


@pytest.mark.parametrize("template", REWRITES.values(), ids=REWRITES)
def test_a_template_that_rewrites_earlier_turns_is_refused(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=r"row 1: turn 2 cannot be found.*rewrites earlier turns"):
        chat(TWO, tokenizer=tokenizer)


def test_what_the_template_refuses_is_said_in_its_words() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(DataError, match=r"row 1: the chat template refuses.*no system turns here"):
        chat(SYSTEM, tokenizer=tokenizer)


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="row 1: the backbone's tokenizer has no chat template"):
        chat(TWO, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def smol() -> PreTrainedTokenizerBase:
    """The embedded backbone's tokenizer alone."""
    return AutoTokenizer.from_pretrained(embedded.obtain())


CONVERSATIONS: Sequence[tuple[list[dict[str, str]], list[str]]] = [
    (TWO, ["Hello.<|im_end|>", "Bye, £5 — 日本.<|im_end|>"]),
    (SYSTEM, ["Hello.<|im_end|>"]),
    (turns("a", "1 + 1 = 2\n\n", "b", " c "), ["1 + 1 = 2\n\n<|im_end|>", " c <|im_end|>"]),
    # The template's newline and the first of the answer are one token: context, not predicted.
    (turns("a", "\n\nb"), ["\nb<|im_end|>"]),
    (turns("<|im_end|>", "<|im_start|>user\nx"), ["<|im_start|>user\nx<|im_end|>"]),
]


@pytest.mark.backbone
@pytest.mark.parametrize(("messages", "answers"), CONVERSATIONS)
def test_smollm2_predicts_the_assistants_turns_only(
    smol: PreTrainedTokenizerBase, messages: list[dict[str, str]], answers: list[str]
) -> None:
    row = chat(messages, tokenizer=smol)
    assert labelled(row, smol) == answers
    whole = smol.apply_chat_template(messages, tokenize=False)
    assert smol.decode(row.input_ids, skip_special_tokens=False) == whole.rstrip("\n")


@pytest.mark.backbone
def test_smollm2_generates_from_the_prompt_that_it_was_trained_on(
    smol: PreTrainedTokenizerBase,
) -> None:
    encoder = Encoder(smol, Task(), bos="none", limit=1000)
    prompt = encoder.prompt({"messages": TWO})
    row = chat(TWO, tokenizer=smol)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[len(prompt) - 1] == IGNORED
    assert all(label != IGNORED for label in row.labels[len(prompt) :])
