"""Words of a text in any script: between spaces, or a character each where a script has no spaces."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import regex

_KANA = r"[\p{scx=Hiragana}\p{scx=Katakana}]"
_UNSPACED = (
    rf"[\p{{L}}&&[\p{{scx=Han}}{_KANA}\p{{scx=Thai}}\p{{scx=Lao}}\p{{scx=Khmer}}"
    r"\p{scx=Myanmar}\p{scx=Tibetan}]]"
)
"""A letter of a script that writes no spaces between words."""

_SPACED = rf"[[\p{{L}}\p{{M}}\p{{N}}]--{_UNSPACED}]+"
_WORD = regex.compile(
    # Marks belong to the letter before them; joiners stand inside words of Persian and Hindi.
    rf"(?V1){_UNSPACED}[\p{{M}}\u200c\u200d]*|{_SPACED}(?:[\u200c\u200d]+{_SPACED})*"
)
_ALONE = regex.compile(rf"(?V1){_UNSPACED}[\p{{M}}\u200c\u200d]*")
_LETTERS = {
    "letters": regex.compile(r"\p{L}"),
    "ascii": regex.compile(r"[A-Za-z]"),
    "unspaced": regex.compile(rf"(?V1){_UNSPACED}"),
    "han": regex.compile(r"(?V1)[\p{L}&&\p{Han}]"),
    "kana": regex.compile(rf"(?V1)[\p{{L}}&&{_KANA}]"),
}


def words(text: str) -> list[str]:
    """The words of a text, as they are written and in order; punctuation and symbols are none."""
    found: list[str] = _WORD.findall(text)
    return found


def between_spaces(text: str) -> list[str]:
    """What stands between spaces, punctuation included; each letter of a script without them alone."""
    parted: str = _ALONE.sub(r" \g<0> ", text)
    return parted.split()


@dataclass(frozen=True)
class Script:
    """What the letters of some texts are.

    Attributes:
        letters: Number of letters.
        ascii: Those from a to z, in either case.
        unspaced: Those of scripts without spaces: Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan.
        han: Of these, Chinese characters, which Japanese is written with too.
        kana: Of these, Japanese ones.
    """

    letters: int = 0
    ascii: int = 0
    unspaced: int = 0
    han: int = 0
    kana: int = 0


def script_of(texts: Iterable[str]) -> Script:
    """What the letters of all these texts are."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update({name: len(found.findall(text)) for name, found in _LETTERS.items()})
    return Script(**counts)
