"""Rows as token ids: what is predicted, what is cut, and where the BOS goes."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from foreword.data import Encoded, Encoder, Task
from foreword.data.collate import padding_of
from foreword.data.encode import IGNORED, Truncated
from foreword.errors import DataError
from foreword.prefix import Bos
from foreword.weights.fingerprint import adds_bos
from tests.conftest import byte_tokenizer

BOS, EOS = 0, 1
TASK = Task("{mr} ->", " {ref}")


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer, which now puts <s> before every text by itself."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    assert adds_bos(tokenizer)
    return tokenizer


def encoder(
    task: Task = TASK,
    bos: Bos = "none",
    limit: int = 256,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Encoder:
    return Encoder(tokenizer or byte_tokenizer(), task, bos=bos, limit=limit)


def ids(text: str) -> list[int]:
    return list(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def labelled(encoded: Encoded) -> str:
    """The text of the predicted tokens, special ones written out."""
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    kept = [label for token, label in pairs if label != IGNORED and label == token]
    assert len(kept) == encoded.targets
    return str(byte_tokenizer().decode(kept, skip_special_tokens=False))


@pytest.mark.parametrize(
    "ref", ["Zizzi serves Thai food.", "  spaces ", "Café £20\u201325 日本 🍜", "a\nb"]
)
def test_the_target_and_its_end_are_predicted_and_nothing_else(ref: str) -> None:
    row = encoder().row({"mr": "name[Zizzi]", "ref": ref})
    assert labelled(row) == f" {ref}</s>"
    assert row.input_ids == [*ids("name[Zizzi] ->"), *ids(f" {ref}"), EOS]
    assert row.labels == [IGNORED] * len(ids("name[Zizzi] ->")) + [*ids(f" {ref}"), EOS]


def test_prompt_and_target_are_tokenised_apart() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["ab"])
    together = tokenizer("ab", add_special_tokens=False)["input_ids"]
    row = encoder(Task("{x}", "{y}"), tokenizer=tokenizer).row({"x": "a", "y": "b"})
    assert len(together) == 1
    assert row.input_ids == [*ids("a"), *ids("b"), EOS]


def test_a_prompt_loses_its_left_and_a_target_nothing() -> None:
    for limit in range(8, 13):
        row = encoder(limit=limit).row({"mr": "abc", "ref": "12345"})
        assert labelled(row) == " 12345</s>"
        lost = max(0, len("abc ->") + 7 - limit)
        assert row.truncated == lost
        assert row.input_ids == [*ids("abc ->"[lost:]), *ids(" 12345"), EOS]


def test_what_was_cut_is_counted_exactly() -> None:
    rows = [{"mr": "a" * n, "ref": "12345"} for n in (1, 3, 4, 10)]
    encoded, report = encoder(limit=13).rows(rows)
    assert [one.truncated for one in encoded] == [0, 0, 1, 7]
    assert (report.rows, report.truncated_rows, report.truncated_tokens) == (4, 2, 8)
    assert str(report) == ("4 rows, 2 of them with 8 prompt tokens cut to fit the context")
    assert str(encoder().rows(rows)[1]) == "4 rows, none truncated"


def test_a_target_that_does_not_fit_alone_is_named() -> None:
    rows = [{"mr": "m", "ref": "12345"}, {"mr": "m", "ref": "123456"}]
    with pytest.raises(DataError, match="row 2: its target has 8 tokens; the context leaves 8 for"):
        encoder(limit=8).rows(rows)
    assert encoder(limit=8).rows(rows[:1])[0][0].input_ids == [*ids(">"), *ids(" 12345"), EOS]


def test_an_empty_target_is_named() -> None:
    rows = [{"mr": "m", "ref": "x"}, {"mr": "m", "ref": ""}]
    with pytest.raises(DataError, match="row 2: its target '' has no tokens"):
        encoder(Task("{mr}", "{ref}")).rows(rows)


@pytest.mark.parametrize("bos", ["none", "prefix", "input"])
def test_an_empty_prompt_starts_with_one_bos(bos: Bos) -> None:
    row = encoder(Task("", "{ref}"), bos).row({"ref": "x"})
    assert row.input_ids == [BOS, *ids("x"), EOS]
    assert row.labels == [IGNORED, *ids("x"), EOS]


def test_an_empty_prompt_starts_with_eos_where_there_is_no_bos() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    made = encoder(Task("", "{ref}"), tokenizer=tokenizer)
    assert made.row({"ref": "x"}).input_ids == [EOS, *ids("x"), EOS]
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="its prompt has no tokens"):
        made.row({"ref": "x"})


def test_a_tokenizer_without_an_end_adds_none() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    row = encoder(tokenizer=tokenizer).row({"mr": "m", "ref": "r"})
    assert row.input_ids == ids("m -> r")
    assert labelled(row) == " r"


@pytest.mark.parametrize(("bos", "starts"), [("input", 1), ("prefix", 0), ("none", 0)])
def test_the_bos_policy_decides_and_not_the_tokenizer(bos: Bos, starts: int) -> None:
    for tokenizer in (byte_tokenizer(), bos_tokenizer()):
        made = encoder(bos=bos, tokenizer=tokenizer)
        start = [BOS] * starts
        row = made.row({"mr": "m", "ref": "r"})
        assert row.input_ids == [*start, *ids("m -> r"), EOS]
        assert labelled(row) == " r</s>"
        assert made.prompt({"mr": "m"}) == [*start, *ids("m ->")]
        assert made.prompt("m ->") == [*start, *ids("m ->")]


def test_a_prompt_to_generate_from_is_that_of_training() -> None:
    row = {"mr": "name[Zizzi]", "ref": "x"}
    made = encoder(limit=15)
    trained = made.row(row)
    assert trained.truncated == 2
    with pytest.warns(Truncated, match="lost 2 from its left"):
        prompt = made.prompt(row, room=trained.targets)
    assert prompt == trained.input_ids[: -trained.targets]


def test_a_prompt_leaves_room_for_new_tokens() -> None:
    made = encoder(limit=10)
    assert made.prompt("0123456789") == ids("0123456789")
    with pytest.warns(Truncated, match="10 tokens lost 4"):
        assert made.prompt("0123456789", room=4) == ids("456789")
    with pytest.warns(Truncated, match="10 tokens lost 9"):
        assert made.prompt("0123456789", room=9) == ids("9")
    assert made.prompt("01", room=4) == ids("01")
    with pytest.raises(
        DataError, match="10 new tokens leave no room for a prompt in a context of 10"
    ):
        made.prompt("0", room=10)


def test_a_bos_that_inputs_add_stays_when_the_prompt_is_cut() -> None:
    """It is the attention sink: without it every logit moves."""
    made = encoder(bos="input", limit=8)
    with pytest.warns(Truncated):
        assert made.prompt("0123456789") == [0, *ids("3456789")]
    row = made.row({"mr": "0123456789", "ref": "x"})
    assert row.input_ids[0] == 0
    assert (len(row.input_ids), row.labels[0]) == (8, IGNORED)


def test_a_missing_column_is_found_before_anything_is_encoded() -> None:
    with pytest.raises(DataError, match="row 2 has no column 'ref'"):
        encoder().rows([{"mr": "m", "ref": "r"}, {"mr": "m"}])
    with pytest.raises(DataError, match="names column 'mr'; the columns are: ref"):
        encoder().prompt({"ref": "r"})


LONE = "half of a \ud800 character"


@pytest.mark.parametrize("column", ["mr", "ref"])
def test_half_of_a_character_is_refused_with_its_row(column: str) -> None:
    """The tokenizer raised TypeError: TextEncodeInput must be Union[...], and named no row."""
    rows = [{"mr": "m", "ref": "r"}, {"mr": "m", "ref": "r", column: LONE}]
    with pytest.raises(DataError, match=r"row 2: its text has a lone surrogate, '\\ud800' at char"):
        encoder().rows(rows)


def test_half_of_a_character_in_a_conversation_is_refused_with_its_row() -> None:
    turns = [{"role": "user", "content": LONE}, {"role": "assistant", "content": "a"}]
    made = encoder(Task())
    with pytest.raises(DataError, match="row 1: its text has a lone surrogate"):
        made.rows([{"messages": turns}])
    with pytest.raises(DataError, match="its text has a lone surrogate"):
        made.prompt({"messages": turns})


def test_tokens_without_an_embedding_are_refused_with_their_row() -> None:
    """A tokenizer with more tokens than the backbone raised IndexError in the forward pass."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<new>"])
    made = Encoder(tokenizer, TASK, bos="none", limit=256, vocabulary=258)
    rows = [{"mr": "m", "ref": "r"}, {"mr": "m", "ref": "a <new> one"}]
    named = (
        r"row 2: token 258 \('<new>'\) is not among the 258 that the backbone has embeddings for"
    )
    with pytest.raises(DataError, match=named):
        made.rows(rows)
    with pytest.raises(DataError, match="token 258"):
        made.prompt({"mr": "<new>"})


def test_a_padding_token_without_an_embedding_is_not_used() -> None:
    """It is masked, and yet it was embedded: a batch of unlike lengths raised IndexError."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert padding_of(tokenizer) == 258
    assert padding_of(tokenizer, 258) == EOS
