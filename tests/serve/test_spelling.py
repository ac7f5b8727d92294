"""What tokens are in a text: joined they are the text, and each stands where it is said to stand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers import AddedToken

import foreword
from foreword.serve.spelling import Offsets, Spelling
from tests.conftest import byte_tokenizer
from tests.vocabularies import sentencepiece_tokenizer, unigram_tokenizer

TEXTS = ["plain words", "Zoë ate 東京 noodles 🍜 twice", "  spaces  in   front", "é\n\nü", "日本"]


def compare(tokenizer: Any, ids: Sequence[int]) -> None:
    """Bytes and places of a text's tokens, with what the tokenizer itself makes of the text."""
    offsets = Offsets(Spelling(tokenizer))
    found = [offsets.next(token) for token in ids]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert b"".join(one or b"" for one, _ in found).decode(errors="replace") == text
    for number, (_, place) in enumerate(found):
        before = tokenizer.decode(ids[:number], skip_special_tokens=True)
        if not before.endswith("\ufffd"):  # a character is whole here
            assert text[:place] == before
    assert [place for _, place in found] == sorted(place for _, place in found)


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece_tokenizer])
@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_text_s_tokens_are_the_text(make: Any, text: str) -> None:
    """Each part of a character was said to be the three bytes of U+FFFD."""
    tokenizer = make()
    compare(tokenizer, tokenizer(text)["input_ids"])


@pytest.mark.parametrize(
    ("make", "first"),
    [(byte_tokenizer, 0), (sentencepiece_tokenizer, 259), (unigram_tokenizer, 0)],
)
def test_so_are_those_of_what_a_model_may_write(make: Any, first: int) -> None:
    """Special tokens in the middle, and bytes that are no character, among them.

    Not those of a byte fallback, which makes U+FFFD of whole characters beside such bytes.
    """
    tokenizer, drawn = make(), random.Random(0)
    for _ in range(200):
        compare(tokenizer, drawn.choices([1, *range(first, len(tokenizer))], k=12))


@pytest.mark.backbone
def test_so_are_those_of_the_embedded_tokenizer(smollm2: foreword.Backbone) -> None:
    tokenizer: Any = smollm2.tokenizer
    for text in TEXTS:
        compare(tokenizer, tokenizer(text)["input_ids"])
    compare(
        tokenizer, tokenizer.apply_chat_template([{"role": "user", "content": "é"}])["input_ids"]
    )


def test_an_added_token_is_its_own_text() -> None:
    """Its letters may be those that stand for bytes."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("é ü", normalized=False), AddedToken("é", normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|é|>"]})
    ids = tokenizer("aé üb<|é|>")["input_ids"]
    compare(tokenizer, ids)
    spelling = Spelling(tokenizer)
    assert spelling.bytes_of(tokenizer.convert_tokens_to_ids("é ü")) == "é ü".encode()
    assert spelling.bytes_of(ids[-1]) is None
    assert spelling.name(ids[-1]) == "<|é|>"


def test_a_token_beyond_the_vocabulary_is_nothing() -> None:
    """Models have more rows of embeddings than their tokenizers have tokens."""
    assert Spelling(byte_tokenizer()).bytes_of(1000) == b""


def test_of_two_texts_one_after_the_other_each_has_whole_characters() -> None:
    """A prompt that ends in the middle of a character is echoed with U+FFFD there."""
    tokenizer = byte_tokenizer()
    first, second = tokenizer("日")["input_ids"][:2], tokenizer("本a")["input_ids"]
    offsets = Offsets(Spelling(tokenizer))
    places = [offsets.next(token)[1] for token in first]
    offsets.begin()
    places += [offsets.next(token)[1] for token in second]
    assert tokenizer.decode(first) + tokenizer.decode(second) == "\ufffd本a"
    assert places == [0, 0, 1, 1, 1, 2]
