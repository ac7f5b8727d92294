"""Texts as token ids, and where each token stands."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing

import foreword
from foreword.errors import DataError
from foreword.tasks import Reader
from tests.conftest import byte_tokenizer
from tests.tasks.models import marking_tokenizer

TEXT = "Ein Bär, a bear."


def reader(limit: int = 40, *, marks: bool = True, bos: foreword.prefix.Bos = "none") -> Reader:
    tokenizer = marking_tokenizer() if marks else byte_tokenizer()
    return Reader(tokenizer, marks, bos, limit)


def shown(text: str, found: foreword.tasks.Reading) -> list[str]:
    return [text[slice(*span)] for span in found.spans if span is not None]


def test_spans_are_the_characters_of_each_token() -> None:
    found = reader().read(TEXT)
    assert len(found.ids) == len(found.spans) == len(TEXT.encode()) + 2
    assert (found.spans[0], found.spans[-1]) == (None, None)
    assert (found.ids[0], found.ids[-1]) == (0, 1)
    assert set(shown(TEXT, found)) == set(TEXT)
    assert found.cut == 0


def test_what_does_not_fit_is_cut_from_the_right_and_counted() -> None:
    found = reader(10).read("0123456789")
    assert len(found.ids) == 10
    assert found.ids[-1] == 1
    assert "".join(shown("0123456789", found)) == "01234567"
    assert found.cut == 2


@pytest.mark.parametrize(("bos", "front"), [("input", [0]), ("prefix", []), ("none", [])])
def test_a_decoders_text_has_a_bos_by_policy(bos: foreword.prefix.Bos, front: list[int]) -> None:
    found = reader(5, marks=False, bos=bos).read("0123456789")
    assert found.ids[: len(front)] == front
    assert len(found.ids) == 5
    assert found.cut == 10 - (5 - len(front))


def test_windows_hold_the_question_and_together_the_whole_context() -> None:
    context = "".join(map(chr, range(33, 100)))
    found = reader(40).windows("Who?", context, stride=8)
    assert len(found) > 2
    question = marking_tokenizer()("Who?", add_special_tokens=False)["input_ids"]
    texts = ["".join(shown(context, one)) for one in found]
    for one, text in zip(found, texts, strict=True):
        assert one.ids[1 : 1 + len(question)] == question
        assert len(one.ids) <= 40
        assert text in context
    for before, after in itertools.pairwise(texts):
        assert before[-8:] == after[:8]
    assert texts[0] + "".join(text[8:] for text in texts[1:]) == context


def test_a_question_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(DataError, match="its question leaves 0 of 12 tokens"):
        reader(12).windows("a long one", "context", stride=8)


SEPARATED = TemplateProcessing(
    single="<s> $A </s>",
    pair="<s> $A </s> </s> $B </s>",
    special_tokens=[("<s>", 0), ("</s>", 1)],
)
"""Marks as RoBERTa's tokenizer has them: two between the texts of a pair, so four in all."""


@pytest.mark.parametrize("question", ["Who?", "", "\x00\x00"])
@pytest.mark.parametrize("separated", [False, True])
def test_windows_leave_room_for_all_marks_of_a_pair(question: str, separated: bool) -> None:
    """The room was counted on an empty context, which is read as one text: a mark or two too few.

    A question that left no room then ended in a tokenizer's own exception, or in windows of one token.
    """
    tokenizer = marking_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\x00", "")
    if separated:
        tokenizer.backend_tokenizer.post_processor = SEPARATED
    around = len(question.strip("\x00")) + (4 if separated else 3)
    for room in (0, 1):
        with pytest.raises(DataError, match=f"leaves {room} of {around + room} tokens"):
            Reader(tokenizer, True, "none", around + room).windows(question, TEXT, stride=8)
    for room in (2, 3, 9):
        found = Reader(tokenizer, True, "none", around + room).windows(question, TEXT, stride=8)
        spans = [[span for span in one.spans if span is not None] for one in found]
        assert all(len(one.ids) <= around + room for one in found)
        assert all(len(own) == room for own in spans[:-1])
        assert {place for own in spans for span in own for place in range(*span)} == {
            *range(len(TEXT))
        }


def test_windows_of_a_decoder_have_no_marks() -> None:
    found = reader(10, marks=False, bos="input").windows("Who?", TEXT, stride=2)
    assert [len(one.ids) for one in found[:-1]] == [10] * (len(found) - 1)
    assert found[0].ids[0] == 0
    assert 1 not in found[0].ids


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="no tokens"):
        reader(marks=False).read("")
    assert len(reader().read("").ids) == 2


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match="fast tokenizer"):
        Reader(SimpleNamespace(is_fast=False), True, "none", 10)
