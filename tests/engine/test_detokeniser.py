"""Text as it comes: whole characters, and nothing of a stop text."""

from __future__ import annotations

import pytest

import foreword
from foreword.engine.detokeniser import Detokeniser
from tests.conftest import byte_tokenizer

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
