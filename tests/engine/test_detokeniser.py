"""Text as it comes: whole characters, and nothing of a stop text."""

from __future__ import annotations

import random
from typing import Any

import pytest

import foreword
from foreword.engine.slots.detokeniser import Detokeniser
from foreword.engine.slots.stops import Stop
from tests.conftest import byte_tokenizer
from tests.vocabularies import sentencepiece_tokenizer, unigram_tokenizer

TEXTS = ["plain words", "Zoë ate 東京 noodles 🍜 twice", "  spaces  in   front", "new\nlines\n\n"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_the_pieces_are_the_text(text: str, at_once: int) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    detokeniser = Detokeniser(tokenizer)
    pieces = [detokeniser.add(ids[i : i + at_once]) for i in range(0, len(ids), at_once)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + detokeniser.end() == text


@pytest.mark.parametrize("make", [sentencepiece_tokenizer, unigram_tokenizer])
def test_bytes_of_characters_of_several_sizes_are_their_text(make: Any) -> None:
    """Six tokens of context could begin in a character: all bytes that followed became U+FFFD."""
    tokenizer, drawn = make(), random.Random(0)
    for _ in range(100):
        ids = tokenizer("".join(drawn.choices("abé üß東京🍜 ", k=12)))["input_ids"]
        detokeniser = Detokeniser(tokenizer)
        found = [detokeniser.add([one]) for one in ids]
        assert "".join([*found, detokeniser.end()]) == tokenizer.decode(
            ids, skip_special_tokens=True
        )


@pytest.mark.backbone
def test_the_embedded_tokenizer_keeps_its_spaces(smollm2: foreword.Backbone) -> None:
    tokenizer = smollm2.tokenizer
    for text in TEXTS:
        detokeniser = Detokeniser(tokenizer)
        ids = tokenizer(text)["input_ids"]  # type: ignore[misc]
        assert "".join(detokeniser.add([one]) for one in ids) + detokeniser.end() == text


def test_half_a_character_is_told_at_the_end_only() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("é")["input_ids"][:1]
    detokeniser = Detokeniser(tokenizer)
    assert detokeniser.add(ids) == ""
    assert detokeniser.end() == "\ufffd"


def pieces(text: str, stop: list[str]) -> tuple[list[str], bool]:
    tokenizer = byte_tokenizer()
    detokeniser = Detokeniser(tokenizer, stop)
    found = []
    for one in tokenizer(text)["input_ids"]:
        found.append(detokeniser.add([one]))
        if detokeniser.stopped:
            break
    return [*found, detokeniser.end()], detokeniser.stopped


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one END two", ["END"], "one "),
        ("one EN", ["END"], "one EN"),
        ("aaab", ["aab"], "a"),
        ("x\n\ny", ["\n\n", "\n"], "x"),
        ("abc", ["bc", "abcd"], "a"),
        ("abc", ["d"], "abc"),
    ],
)
def test_stop_texts_end_the_output_and_are_no_part_of_it(
    text: str, stop: list[str], shown: str
) -> None:
    found, stopped = pieces(text, stop)
    assert "".join(found) == shown
    assert stopped == (shown != text)


def test_nothing_of_a_stop_text_is_shown_before_it_is_known_not_to_be_one() -> None:
    found, _ = pieces("a EN d", ["END"])
    assert found == ["a", " ", "", "", "EN ", "d", ""]


def test_stop_texts_are_found_where_a_search_of_the_whole_text_finds_them() -> None:
    """Texts of few letters, so that beginnings of stop texts overlap with themselves and each other."""
    drawn = random.Random(0)
    for _ in range(500):
        text = "".join(drawn.choices("ab", k=30))
        stop = ["".join(drawn.choices("ab", k=drawn.randint(1, 6))) for _ in range(3)]
        ends = [text.index(one) + len(one) for one in stop if one in text]
        heard = text[: min(ends, default=len(text))]  # no more comes once one is whole
        first = min((heard.index(one) for one in stop if one in heard), default=len(text))
        found, stopped = pieces(text, stop)
        assert "".join(found) == text[:first], (text, stop)
        assert stopped == bool(ends)


def test_a_long_stop_text_costs_no_more_than_a_short_one() -> None:
    """Stop texts of 4 MB slowed every client's token from 0.2 to 2 s."""
    looked = 0

    class Counted(str):
        def __getitem__(self, place: Any) -> str:
            nonlocal looked
            looked += 1
            return str.__getitem__(self, place)

    text = ("a" * 200 + "b") * 20
    for length in (300, 4 * 2**20):
        looked = 0
        stop = Stop(Counted("a" * length + "c"))
        assert all(stop.find(character) is None for character in text)
        assert looked < 8 * len(text), length


def test_bytes_that_are_no_character_are_not_decoded_again_and_again() -> None:
    """They were held back as the beginning of one, and all of them decoded at each token."""
    tokenizer = byte_tokenizer()
    (byte,) = set(tokenizer("\u0080")["input_ids"][1:])  # a byte that begins nothing
    longest = 0

    class Noting:
        def decode(self, tokens: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(tokens))
            return str(tokenizer.decode(tokens, **options))

    detokeniser = Detokeniser(Noting())
    found = [detokeniser.add([byte]) for _ in range(300)]
    assert "".join([*found, detokeniser.end()]) == "\ufffd" * 300
    assert longest < 20
